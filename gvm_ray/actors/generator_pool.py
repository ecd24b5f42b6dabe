"""The pool of generators: requests are shared out by predicted tokens, and what a dying one left is done by others."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import ray

from gvm_ray.actors.dispatch import LengthHistory, Pieces, assign
from gvm_ray.actors.generator_client import GeneratorClient
from gvm_ray.actors.generator_fleet import GeneratorFleet
from gvm_ray.actors.gpu_turns import GPUTurns
from gvm_ray.config.run import DeadlineConfig, EngineConfig, Placement
from gvm_ray.engines import EngineKind
from gvm_ray.exceptions import ActorFailure, ObjectsLost
from gvm_ray.failure_log import FailureLog
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.resources import generator_bundles
from gvm_ray.types import (
    GroupOutcome,
    OpenOutcome,
    SampleKey,
    SampleRequest,
    SamplingParameters,
    WeightsRef,
    WeightTransfer,
)

Outcome = GroupOutcome | OpenOutcome
Score = Callable[[ray.ObjectRef], Awaitable[list[Outcome]]]  # of a chunk: a tuple of unscored groups


class GeneratorPool(GeneratorFleet):
    """Samples by the generators that are available, named <name>-0, <name>-1 ...

    Only requests without an outcome are sampled again after a failure, so nothing is ever there twice.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        kind: EngineKind,
        placement: Placement = "disaggregated",
        model_path: str,
        max_model_len: int,
        max_tokens: int,
        revision: str | None = None,
        trust_remote_code: bool = False,
        deadlines: DeadlineConfig,
        failures: FailureLog,
        clock: PhaseClock | None = None,
        name: str = "generator",
        transfer: WeightTransfer = "object_store",
    ) -> None:
        def make(number: int) -> GeneratorClient:
            return GeneratorClient(
                f"{name}-{number}",
                kind=kind,
                model_path=model_path,
                config=config,
                bundles=generator_bundles(config, placement=placement),
                max_model_len=max_model_len,
                revision=revision,
                trust_remote_code=trust_remote_code,
                deadlines=deadlines,
                transfer=transfer,
            )

        super().__init__(
            make,
            num_generators=config.num_generators,
            deadlines=deadlines,
            failures=failures,
            turns=GPUTurns(apart=placement == "colocated" and config.sleep),
        )
        self._clock = clock or PhaseClock()
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
            requests: what to sample.
            sampling: how.
            score: scores a chunk.
            episodes: where the samples are on their way, if this is the next turn of all of them.

        Returns:
            The outcomes in order of the requests and their samples; one that was split has several.

        Raises:
            TooManyFailures: generators died or hung more often than the run puts up with.
            DeadlineExceeded: all of them died, and none came back.
            ObjectsLost: episodes are gone.
        """
        call = _Call(sampling=sampling, score=score, episodes=episodes or {})
        placed = await self._dispatch(list(enumerate(requests)), call)
        return [outcome for _, outcome in sorted(placed, key=lambda item: (item[0], item[1].sample_indices))]

    async def _dispatch(self, pieces: Pieces, call: "_Call") -> list[tuple[int, Outcome]]:
        """Outcomes with their positions."""
        available = await self._available()
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
        """Outcomes of one generator's share with their positions, those included that others had to make."""
        positions = {(piece.prompt.prompt_id, index): at for at, piece in pieces for index in piece.sample_indices}
        life, weights = generator.life, self._weights
        outcomes, failure = await self._stream(generator, pieces, call, weights)
        placed: list[tuple[int, Outcome]] = []
        for outcome in outcomes:
            at = [positions.pop((outcome.prompt_id, index)) for index in outcome.sample_indices]
            placed.append((at[0], outcome))
        if failure is not None:
            await self._handle(failure, generator, life=life, weights=weights)
        if positions:
            if isinstance(failure, ObjectsLost) and call.episodes:
                raise failure
            left = [(at, piece.only(positions.keys())) for at, piece in pieces]
            placed += await self._dispatch([(at, piece) for at, piece in left if piece.seeds], call)
        return placed

    async def _stream(
        self, generator: GeneratorClient, pieces: Pieces, call: "_Call", weights: WeightsRef | None
    ) -> tuple[list[Outcome], Exception | None]:
        """The outcomes of a call, and what ended it early or lost some of it, if anything."""
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
                async with self._turns.take("generators"):
                    with self._clock.phase("sampling"):
                        async for chunk in generator.chunks(requests, call.sampling, weights, episodes):
                            scoring.append(asyncio.ensure_future(scored(chunk)))
            except ActorFailure as error:
                failure = error  # the last chunk may be this error, and its scoring then fails with it
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
    """What is the same for all requests of one call."""

    sampling: SamplingParameters
    score: Score
    episodes: Mapping[SampleKey, ray.ObjectRef]
