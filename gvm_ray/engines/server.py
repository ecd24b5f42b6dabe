"""Asynchronous server of an engine, which accepts requests and weights at any time."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from gvm_ray.config.engine import InFlightPolicy
from gvm_ray.exceptions import ConfigError, SystemFailure
from gvm_ray.protocols import Engine
from gvm_ray.types import Completion, SampleRequest, SamplingParameters


@runtime_checkable
class Sleeps(Protocol):
    """Optional protocol of engines that can free their GPUs for learners that share them."""

    def sleep(self) -> None:
        """Free the GPU memory of weights, keys and values. Called only while no request is under way.

        The engine keeps its weights. `load_weights` brings the weights back to the GPU, `add` everything.
        """
        ...


Answer = tuple[SampleRequest, tuple[Completion, ...]]
T = TypeVar("T")

_LOOK_UP_S = 0.02  # interval at which the engine's thread returns to the event loop; returning costs about 0.1 ms


@dataclass(frozen=True, kw_only=True, eq=False)
class _Submission:
    """The requests of one caller, and the queue of their answers."""

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
    """A pause of the engine between two steps, from the completion of `begun` until `end` is called."""

    def __init__(self) -> None:
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()

    @property
    def waits(self) -> asyncio.Future[Any]:
        return self.begun

    def end(self) -> None:
        """Let the engine continue."""
        self.ended.set()


class EngineServer:
    """Runs one engine in its own thread.

    Args:
        create: creates the engine; called in the engine's thread, by the first call that needs it.
        in_flight: treatment of samples under way when new weights arrive. "keep": they continue with the new weights
            from their next token on. "finish": they finish under the old weights, and later requests wait until the new
            weights are loaded.
    """

    def __init__(self, create: Callable[[], Engine], *, in_flight: InFlightPolicy) -> None:
        self._create = create
        self._in_flight = in_flight
        self._created: Engine | None = None
        self._version = -1  # of the weights loaded last
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._submissions: list[_Submission] = []  # not yet passed to the engine
        self._under_way: dict[int, _Submission] = {}  # id of a request in the engine -> its submission
        self._weights: list[_NewWeights | Pause] = []
        self._spoiled: Exception | None = None  # the reason why the engine can't continue
        self._at_work: asyncio.Task[None] | None = None

    async def policy_version(self) -> int:
        """Return the version of the loaded weights once the engine has started, or raise its start's error."""
        return await self.ask(lambda engine: engine.policy_version)

    async def ask(self, question: Callable[[Engine], T]) -> T:
        """Call a function with the engine, in the engine's thread between two steps, and return its result."""
        return await self._in_thread(lambda: question(self._engine))

    async def sample(self, requests: Sequence[SampleRequest], sampling: SamplingParameters) -> AsyncIterator[Answer]:
        """Sample, and yield each request with its completions as soon as it is finished.

        Raises:
            Exception: the engine raised it; all requests under way have then ended.
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
        """Load weights unless the engine has this version or a newer one; return the engine's version afterwards.

        `tensors` is called in the engine's thread.
        """
        if self._version >= policy_version:
            return self._version
        loaded: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._weights.append(_NewWeights(policy_version=policy_version, tensors=tensors, loaded=loaded))
        self._work()
        return await loaded

    async def pause(self) -> Pause:
        """Pause the engine for new weights sent by `ask`; with in_flight "finish", samples under way finish first."""
        pause = Pause()
        self._weights.append(pause)
        self._work()
        await pause.begun
        return pause

    def loaded(self, policy_version: int) -> None:
        """Record that the engine received weights of this version during a pause."""
        self._version = policy_version

    def spoil(self, error: Exception) -> None:
        """Make every later call raise this error, because the engine holds parts of two policies."""
        self._spoiled = error

    async def sleep(self) -> None:
        """Free the engine's GPUs once nothing is under way; new requests or weights wake it.

        Raises:
            ConfigError: the engine can't sleep.
        """
        while self._at_work is not None and not self._at_work.done():
            await asyncio.wait({self._at_work})
        await self._in_thread(self._put_to_sleep)

    async def reset(self) -> None:
        """End all calls that wait for samples or weights, and reset the engine, which keeps only its model.

        Raises:
            Exception: the engine raised it.
        """
        dropped, self._submissions = self._submissions, []
        for weights in self._weights:
            _settle(weights.waits, error=SystemFailure("the engine was reset before these weights were loaded"))
        self._weights.clear()
        await self.ask(lambda engine: engine.reset())  # after the thread's current call, which may be adding requests
        under_way, self._under_way = self._under_way, {}
        for submission in {*dropped, *under_way.values()}:
            submission.answers.put_nowait(SystemFailure("the engine was reset before this request was answered"))
        self._version = -1

    def _work(self) -> None:
        if self._at_work is None or self._at_work.done():
            self._at_work = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        """Work until nothing is left to do."""
        while self._weights or self._submissions or self._under_way:
            if self._weights and (self._in_flight == "keep" or not self._under_way):
                change = self._weights.pop(0)
                await (self._rest(change) if isinstance(change, Pause) else self._load(change))
            elif self._submissions and not self._weights:
                await self._submit(self._submissions.pop(0))
            else:
                await self._advance()

    async def _rest(self, pause: Pause) -> None:
        if not pause.begun.done():  # done if the caller has given up
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
        """Run some steps of the engine, and pass finished requests to their callers."""
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
            if submission is not None:  # None if a reset came during the step
                submission.answers.put_nowait((request, completions))

    def _steps(self) -> list[Answer]:
        """Run steps for `_LOOK_UP_S`, or until nothing is under way. In the engine's thread."""
        finished: list[Answer] = []
        end = time.monotonic() + _LOOK_UP_S
        while self._engine.num_unfinished:
            finished += self._engine.step()
            if time.monotonic() >= end:
                break
        return finished

    def _put_to_sleep(self) -> None:
        """Put the engine to sleep; before its creation it has nothing on a GPU. In the engine's thread."""
        if self._created is None:
            return
        if not isinstance(self._created, Sleeps):
            raise ConfigError(
                f"engine.sleep=true, but {type(self._created).__name__} has no sleep(); write "
                "engine.sleep=false, or cluster.placement='disaggregated'"
            )
        self._created.sleep()

    @property
    def _engine(self) -> Engine:
        """The engine, created on first use. In the engine's thread only."""
        if self._spoiled is not None:
            raise self._spoiled
        if self._created is None:
            self._created = self._create()
        return self._created

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _settle(future: asyncio.Future[Any], *, result: int = -1, error: Exception | None = None) -> None:
    if future.done():  # the caller has given up
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
