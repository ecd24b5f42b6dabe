"""An engine as an asynchronous service: requests and weights come in at any time."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from gvm_ray.config.run import InFlightPolicy
from gvm_ray.exceptions import ConfigError, SystemFailure
from gvm_ray.protocols import Engine
from gvm_ray.types import Completion, SampleRequest, SamplingParameters


@runtime_checkable
class Sleeps(Protocol):
    """What an engine offers besides, if it can leave its GPUs to the learners that share them."""

    def sleep(self) -> None:
        """Give back the memory of weights, keys and values; no request is under way.

        The weights stay the engine's. `load_weights` brings those back, and `add` everything, whichever comes first.
        """
        ...


Answer = tuple[SampleRequest, tuple[Completion, ...]]
T = TypeVar("T")

_LOOK_UP_S = 0.02  # the engine's thread looks up from its work this often; looking up costs about 0.1 ms


@dataclass(frozen=True, kw_only=True, eq=False)
class _Submission:
    """The requests of one caller, and where their answers go."""

    requests: Sequence[SampleRequest]
    sampling: SamplingParameters
    answers: asyncio.Queue[Answer | Exception]


@dataclass(frozen=True, kw_only=True, eq=False)
class _NewWeights:
    policy_version: int
    tensors: Callable[[], Iterable[tuple[str, Any]]]
    loaded: asyncio.Future[int]

    @property
    def waits(self) -> asyncio.Future[Any]:
        return self.loaded


class Pause:
    """The engine at rest between two steps, from when `begun` is done until `end` is called."""

    def __init__(self) -> None:
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()

    @property
    def waits(self) -> asyncio.Future[Any]:
        return self.begun

    def end(self) -> None:
        """The engine goes on."""
        self.ended.set()


class EngineServer:
    """One engine in a thread of its own.

    Args:
        create: makes the engine; called in that thread, by the first call that needs it.
        in_flight: what new weights mean for samples under way. "keep": they go on with the new weights from their next
            token on. "finish": they are ended under the weights they began with, and later requests wait until the new
            weights are in.
    """

    def __init__(self, create: Callable[[], Engine], *, in_flight: InFlightPolicy) -> None:
        self._create = create
        self._in_flight = in_flight
        self._created: Engine | None = None
        self._version = -1  # of the weights that were loaded last
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._submissions: list[_Submission] = []  # not given to the engine yet
        self._under_way: dict[int, _Submission] = {}  # id of a request in the engine -> who asked
        self._weights: list[_NewWeights | Pause] = []
        self._spoiled: Exception | None = None  # why the engine can't go on
        self._at_work: asyncio.Task[None] | None = None

    async def policy_version(self) -> int:
        """Version of the loaded weights; answers once the engine has started, or raises what its start raised."""
        return await self.ask(lambda engine: engine.policy_version)

    async def ask(self, question: Callable[[Engine], T]) -> T:
        """What a function says of the engine, called in the engine's thread between two steps."""
        return await self._in_thread(lambda: question(self._engine))

    async def sample(self, requests: Sequence[SampleRequest], sampling: SamplingParameters) -> AsyncIterator[Answer]:
        """Each request with its completions, as soon as it is finished.

        Raises:
            Exception: what the engine raised; every request under way has then ended.
        """
        submission = _Submission(requests=requests, sampling=sampling, answers=asyncio.Queue())
        self._submissions.append(submission)
        self._work()
        for _ in requests:
            answer = await submission.answers.get()
            if isinstance(answer, Exception):
                raise answer
            yield answer

    async def load_weights(self, policy_version: int, tensors: Callable[[], Iterable[tuple[str, Any]]]) -> int:
        """The engine's version once it has weights of this version or newer; `tensors` is called in its thread."""
        if self._version >= policy_version:
            return self._version
        loaded: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._weights.append(_NewWeights(policy_version=policy_version, tensors=tensors, loaded=loaded))
        self._work()
        return await loaded

    async def pause(self) -> Pause:
        """The engine at rest for new weights that come by `ask`, with no sample under way where `in_flight` says so."""
        pause = Pause()
        self._weights.append(pause)
        self._work()
        await pause.begun
        return pause

    def loaded(self, policy_version: int) -> None:
        """The engine has weights of this version, which came while it paused."""
        self._version = policy_version

    def spoil(self, error: Exception) -> None:
        """The engine holds parts of two policies: from here on every call raises this."""
        self._spoiled = error

    async def sleep(self) -> None:
        """Have the engine leave its GPUs once nothing is under way; new requests or weights wake it.

        Raises:
            ConfigError: it can't.
        """
        while self._at_work is not None and not self._at_work.done():
            await asyncio.wait({self._at_work})
        await self._in_thread(self._put_to_sleep)

    async def reset(self) -> None:
        """End every call that waits for samples or weights, and have the engine forget all but its model.

        Raises:
            Exception: what the engine raised.
        """
        dropped, self._submissions = self._submissions, []
        for weights in self._weights:
            _settle(weights.waits, error=SystemFailure("the engine was reset before these weights were loaded"))
        self._weights.clear()
        await self.ask(lambda engine: engine.reset())  # after what the thread is at, which may be taking in requests
        under_way, self._under_way = self._under_way, {}
        for submission in {*dropped, *under_way.values()}:
            submission.answers.put_nowait(SystemFailure("the engine was reset before this request was answered"))
        self._version = -1

    def _work(self) -> None:
        if self._at_work is None or self._at_work.done():
            self._at_work = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        """Until there is nothing left to do."""
        while self._weights or self._submissions or self._under_way:
            if self._weights and (self._in_flight == "keep" or not self._under_way):
                change = self._weights.pop(0)
                await (self._rest(change) if isinstance(change, Pause) else self._load(change))
            elif self._submissions and not self._weights:
                await self._submit(self._submissions.pop(0))
            else:
                await self._advance()

    async def _rest(self, pause: Pause) -> None:
        if not pause.begun.done():  # else who asked has given up
            pause.begun.set_result(None)
            await pause.ended.wait()

    async def _load(self, weights: _NewWeights) -> None:
        def load() -> int:
            if self._engine.policy_version < weights.policy_version:
                self._engine.load_weights(weights.policy_version, weights.tensors())
            return self._engine.policy_version

        try:
            version = await self._in_thread(load)
        except Exception as error:
            _settle(weights.loaded, error=error)
        else:
            self._version = version
            _settle(weights.loaded, result=version)

    async def _submit(self, submission: _Submission) -> None:
        try:
            await self._in_thread(lambda: self._engine.add(submission.requests, submission.sampling))
        except Exception as error:
            submission.answers.put_nowait(error)
        else:
            self._under_way |= {id(request): submission for request in submission.requests}

    async def _advance(self) -> None:
        """Some steps of the engine; what they finish goes to who asked."""
        try:
            finished = await self._in_thread(self._steps)
        except Exception as error:
            for submission in set(self._under_way.values()):
                submission.answers.put_nowait(error)
            self._under_way.clear()
            if self._spoiled is None:
                await self._in_thread(self._engine.abort)
            return
        for request, completions in finished:
            submission = self._under_way.pop(id(request), None)
            if submission is not None:  # else it was reset while the step ran
                submission.answers.put_nowait((request, completions))

    def _steps(self) -> list[Answer]:
        """In the engine's thread: steps until it is time to look up, or nothing is under way."""
        finished: list[Answer] = []
        end = time.monotonic() + _LOOK_UP_S
        while self._engine.num_unfinished:
            finished += self._engine.step()
            if time.monotonic() >= end:
                break
        return finished

    def _put_to_sleep(self) -> None:
        """In the engine's thread: one that was not made yet has nothing on a GPU."""
        if self._created is None:
            return
        if not isinstance(self._created, Sleeps):
            raise ConfigError(
                f"engine.sleep=true, and an engine of {type(self._created).__name__} has no sleep(); write "
                "engine.sleep=false, or cluster.placement='disaggregated'"
            )
        self._created.sleep()

    @property
    def _engine(self) -> Engine:
        """In the engine's thread only."""
        if self._spoiled is not None:
            raise self._spoiled
        if self._created is None:
            self._created = self._create()
        return self._created

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _settle(future: asyncio.Future[Any], *, result: int = -1, error: Exception | None = None) -> None:
    if future.done():  # who waited has given up
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
