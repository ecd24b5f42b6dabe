"""The generators as one pool: requests are divided among them, and outcomes returned in order."""

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import ray

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.generator import GeneratorClient
from gvm_ray.actors.generator_fleet import GeneratorFleet, WeightSource
from gvm_ray.actors.gpu_shifts import GPUShifts
from gvm_ray.config.cluster import Placement
from gvm_ray.config.engine import EngineConfig
from gvm_ray.engines import EngineKind
from gvm_ray.exceptions import ActorFailure, ObjectsLost
from gvm_ray.resources import generator_bundles
from gvm_ray.types import (
    GroupOutcome,
    ModelSpec,
    OpenOutcome,
    SampleKey,
    SampleRequest,
    SamplingParameters,
    WeightsRef,
)

Pieces = list[tuple[int, SampleRequest]]  # (position among all requests, the request or a part of it)

_SMOOTHING = 0.5  # weight of a prompt's latest mean length in its moving average


class LengthHistory:
    """Predicts response lengths: of a known prompt from its own samples, of a new one from all samples so far."""

    def __init__(self, *, max_tokens: int) -> None:
        self._by_prompt: dict[str, float] = {}
        self._mean = float(max_tokens)  # until the first observation

    def observe(self, outcome: GroupOutcome) -> None:
        """Remember the lengths of a prompt's samples."""
        if not len(outcome.num_tokens):
            return
        length = float(outcome.num_tokens.sum()) / len(outcome.num_tokens)
        known = self._by_prompt.get(outcome.prompt_id, length)
        self._by_prompt[outcome.prompt_id] = known + _SMOOTHING * (length - known)
        rate = 1 / min(len(self._by_prompt), 1000)  # a plain mean at first, then a moving average
        self._mean += rate * (length - self._mean)

    def predict(self, request: SampleRequest) -> float:
        """Tokens of all the request's samples together."""
        return len(request.seeds) * self._by_prompt.get(request.prompt.prompt_id, self._mean)


def assign(requests: Sequence[SampleRequest], *, loads: Sequence[float], lengths: LengthHistory) -> list[Pieces]:
    """Each generator's share of the requests, longest first. Deterministic.

    Longest processing time first (R. L. Graham, 1969): the next longest request goes to the generator with the fewest
    predicted tokens so far. A request longer than an even share is split.

    Args:
        requests: to be sampled.
        loads: [G] predicted tokens that each generator has yet to sample.
        lengths: predicts a request's tokens.
    """
    total = sum(lengths.predict(request) for request in requests)
    pieces: list[tuple[float, int, SampleRequest]] = []
    for position, request in enumerate(requests):
        num_parts = min(len(request.seeds), -(-lengths.predict(request) * len(loads) // max(total, 1.0)))
        pieces += [(lengths.predict(part), position, part) for part in _split(request, num_parts=int(num_parts))]
    shares: list[Pieces] = [[] for _ in loads]
    queue = [(load, generator) for generator, load in enumerate(loads)]  # ties go to the first generator
    heapq.heapify(queue)
    for tokens, position, piece in sorted(pieces, key=lambda item: -item[0]):
        load, generator = queue[0]
        shares[generator].append((position, piece))
        heapq.heapreplace(queue, (load + tokens, generator))
    return shares


def _split(request: SampleRequest, *, num_parts: int) -> Iterator[SampleRequest]:
    """Split the request into near-equal parts, in order of its samples."""
    if num_parts <= 1:
        yield request
        return
    bounds = np.linspace(0, len(request.seeds), num_parts + 1).round().astype(int)
    for start, stop in pairwise(bounds.tolist()):
        yield replace(request, sample_indices=request.sample_indices[start:stop], seeds=request.seeds[start:stop])


Outcome = GroupOutcome | OpenOutcome
Score = Callable[[ray.ObjectRef], Awaitable[list[Outcome]]]  # of a chunk: a tuple of unscored groups


class GeneratorPool(GeneratorFleet):
    """Samples requests with the available generators, named <name>-0, <name>-1 ...

    After a failure only samples without an outcome are repeated, so none comes twice.

    Args:
        config: the engines and their number.
        kind: from `resolve_engine`.
        model: loaded by every engine.
        max_tokens: of a response; the predicted length until the first sample is finished.
        context: deadlines, the failure log, and the clock that measures sampling time.
        placement: whether learners share the GPUs.
        num_threads: of each generator.
        source: see `GeneratorFleet`.
        name: prefix of the actors' names.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        kind: EngineKind,
        model: ModelSpec,
        max_tokens: int,
        context: RunContext,
        placement: Placement = "disaggregated",
        num_threads: int = 1,
        source: WeightSource | None = None,
        name: str = "generator",
    ) -> None:
        def make(number: int) -> GeneratorClient:
            return GeneratorClient(
                f"{name}-{number}",
                kind=kind,
                model=model,
                config=config,
                bundles=generator_bundles(config, placement=placement),
                num_threads=num_threads,
                deadlines=context.deadlines,
            )

        super().__init__(
            make,
            num_generators=config.num_generators,
            context=context,
            source=source,
            live=model.transfer != "object_store",
            shifts=GPUShifts(alternate=placement == "colocated" and config.sleep),
        )
        self._lengths = LengthHistory(max_tokens=max_tokens)

    async def sample(
        self,
        requests: Sequence[SampleRequest],
        sampling: SamplingParameters,
        *,
        score: Score,
        episodes: Mapping[SampleKey, ray.ObjectRef] | None = None,
    ) -> list[Outcome]:
        """Sample everything, and have each chunk of groups scored as soon as it is finished.

        Args:
            requests: to be sampled.
            sampling: temperature and token limits.
            score: scores a chunk.
            episodes: refs of the samples' open episodes, if this is their next turn.

        Returns:
            The outcomes in order of the requests and their samples. A split request has several.

        Raises:
            TooManyFailures: generators died or hung more often than `faults` allows.
            DeadlineExceeded: all generators died, and none came back.
            ObjectsLost: episodes are gone.
        """
        call = _Call(sampling=sampling, score=score, episodes=episodes or {})
        placed = await self._dispatch(list(enumerate(requests)), call)
        return [outcome for _, outcome in sorted(placed, key=lambda item: (item[0], item[1].sample_indices))]

    async def _dispatch(self, pieces: Pieces, call: "_Call") -> list[tuple[int, Outcome]]:
        """Divide the pieces among the available generators; returns outcomes with their positions."""
        available = await self._watch.wait_available()
        shares = assign(
            [piece for _, piece in pieces], loads=[generator.load for generator in available], lengths=self._lengths
        )
        served = await asyncio.gather(
            *(
                self._serve(generator, [(pieces[index][0], piece) for index, piece in share], call)
                for generator, share in zip(available, shares, strict=True)
                if share
            )
        )
        return [item for part in served for item in part]

    async def _serve(self, generator: GeneratorClient, pieces: Pieces, call: "_Call") -> list[tuple[int, Outcome]]:
        """Outcomes of one generator's share with their positions; after a failure others sample what is left."""
        positions = {(piece.prompt.prompt_id, index): at for at, piece in pieces for index in piece.sample_indices}
        life, weights = generator.life, self._weights
        outcomes, failure = await self._stream(generator, pieces, call, weights)
        placed: list[tuple[int, Outcome]] = []
        for outcome in outcomes:
            at = [positions.pop((outcome.prompt_id, index)) for index in outcome.sample_indices]
            placed.append((at[0], outcome))
        if failure is not None:
            await self._failed(failure, generator, life=life, weights=weights)
        if positions:
            if isinstance(failure, ObjectsLost) and call.episodes:
                raise failure
            left = [(at, piece.only(positions.keys())) for at, piece in pieces]
            placed += await self._dispatch([(at, piece) for at, piece in left if piece.seeds], call)
        return placed

    async def _stream(
        self, generator: GeneratorClient, pieces: Pieces, call: "_Call", weights: WeightsRef | None
    ) -> tuple[list[Outcome], Exception | None]:
        """The outcomes of a call, and the error that ended it early or lost some of them, if any."""
        requests = [piece for _, piece in pieces]
        pending = {
            (request.prompt.prompt_id, index): self._lengths.predict(request) / len(request.seeds)
            for request in requests
            for index in request.sample_indices
        }
        episodes = list(dict.fromkeys(call.episodes[key] for key in pending if key in call.episodes))

        async def scored(chunk: ray.ObjectRef) -> list[Outcome]:
            outcomes = await call.score(chunk)
            for outcome in outcomes:
                for index in outcome.sample_indices:
                    del pending[outcome.prompt_id, index]
                if isinstance(outcome, GroupOutcome):
                    self._lengths.observe(outcome)
            return outcomes

        scoring: list[asyncio.Future[list[Outcome]]] = []
        failure: Exception | None = None
        generator.pending.append(pending)
        try:
            try:
                async with self._shifts.shift("generators"):
                    with self._context.clock.phase("sampling"):
                        async for chunk in generator.chunks(requests, call.sampling, weights, episodes):
                            scoring.append(asyncio.ensure_future(scored(chunk)))
            except ActorFailure as error:
                failure = error  # the last chunk may hold this error too; scoring it then fails as well
            results = await asyncio.gather(*scoring, return_exceptions=True)
        finally:
            generator.pending = [other for other in generator.pending if other is not pending]
        for error in (result for result in results if isinstance(result, BaseException)):
            if isinstance(error, ObjectsLost):
                failure = failure or error
            elif failure is None:
                raise error
        return [outcome for result in results if isinstance(result, list) for outcome in result], failure


@dataclass(frozen=True, kw_only=True, eq=False)
class _Call:
    """Arguments shared by all requests of one call of `GeneratorPool.sample`."""

    sampling: SamplingParameters
    score: Score
    episodes: Mapping[SampleKey, ray.ObjectRef]
