"""The pool of generators: requests are shared out by predicted tokens, and what a dying one left is done by others."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import ray

from gvm_ray.actors.dispatch import LengthHistory, Pieces, assign
from gvm_ray.actors.generator_client import GeneratorClient
from gvm_ray.actors.generator_fleet import GeneratorFleet
from gvm_ray.config.run import DeadlineConfig, EngineConfig
from gvm_ray.engines import EngineKind
from gvm_ray.exceptions import ActorFailure, ObjectsLost
from gvm_ray.failure_log import FailureLog
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.types import GroupOutcome, SampleRequest, SamplingParameters, WeightsRef

Score = Callable[[ray.ObjectRef], Awaitable[list[GroupOutcome]]]  # of a chunk: a tuple of unscored groups


class GeneratorPool(GeneratorFleet):
    """Samples by the generators that are available, named <name>-0, <name>-1 ...

    Only requests without an outcome are sampled again after a failure, so nothing is ever there twice.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        kind: EngineKind,
        model_path: str,
        max_model_len: int,
        max_tokens: int,
        revision: str | None = None,
        trust_remote_code: bool = False,
        deadlines: DeadlineConfig,
        failures: FailureLog,
        clock: PhaseClock | None = None,
        name: str = "generator",
    ) -> None:
        def make(number: int) -> GeneratorClient:
            return GeneratorClient(
                f"{name}-{number}",
                kind=kind,
                model_path=model_path,
                config=config,
                max_model_len=max_model_len,
                revision=revision,
                trust_remote_code=trust_remote_code,
                deadlines=deadlines,
            )

        super().__init__(make, num_generators=config.num_generators, deadlines=deadlines, failures=failures)
        self._clock = clock or PhaseClock()
        self._lengths = LengthHistory(max_tokens=max_tokens)

    async def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingParameters, *, score: Score
    ) -> list[GroupOutcome]:
        """Sample everything, and have each chunk of groups scored as soon as it is finished.

        Returns the outcomes in order of the requests and their samples; one that was split has several.

        Raises:
            TooManyFailures: generators died or hung more often than the run puts up with.
            DeadlineExceeded: all of them died, and none came back.
        """
        placed = await self._dispatch(list(enumerate(requests)), sampling, score)
        return [outcome for _, outcome in sorted(placed, key=lambda item: (item[0], item[1].sample_indices))]

    async def _dispatch(
        self, pieces: Pieces, sampling: SamplingParameters, score: Score
    ) -> list[tuple[int, GroupOutcome]]:
        """Outcomes with their positions."""
        available = await self._available()
        shares = assign(
            [piece for _, piece in pieces], loads=[generator.load for generator in available], lengths=self._lengths
        )
        served = await asyncio.gather(
            *(
                self._serve(generator, [(pieces[index][0], piece) for index, piece in share], sampling, score)
                for generator, share in zip(available, shares, strict=True)
                if share
            )
        )
        return [item for part in served for item in part]

    async def _serve(
        self, generator: GeneratorClient, pieces: Pieces, sampling: SamplingParameters, score: Score
    ) -> list[tuple[int, GroupOutcome]]:
        """Outcomes of one generator's share with their positions, those included that others had to make."""
        waiting = {(piece.prompt.prompt_id, piece.sample_indices): (at, piece) for at, piece in pieces}
        life, weights = generator.life, self._weights
        outcomes, failure = await self._stream(generator, pieces, sampling, score, weights)
        placed: list[tuple[int, GroupOutcome]] = []
        for outcome in outcomes:
            position, _ = waiting.pop((outcome.prompt_id, outcome.sample_indices))
            placed.append((position, outcome))
        if failure is not None:
            await self._handle(failure, generator, life=life, weights=weights)
        if waiting:
            placed += await self._dispatch(list(waiting.values()), sampling, score)
        return placed

    async def _stream(
        self,
        generator: GeneratorClient,
        pieces: Pieces,
        sampling: SamplingParameters,
        score: Score,
        weights: WeightsRef | None,
    ) -> tuple[list[GroupOutcome], Exception | None]:
        """The outcomes of a call, and what ended it early or lost some of it, if anything."""
        load = {(p.prompt.prompt_id, p.sample_indices): self._lengths.predict(p) for _, p in pieces}
        generator.load += sum(load.values())

        async def scored(chunk: ray.ObjectRef) -> list[GroupOutcome]:
            outcomes = await score(chunk)
            for outcome in outcomes:
                generator.load -= load.pop((outcome.prompt_id, outcome.sample_indices))
                self._lengths.observe(outcome)
            return outcomes

        scoring: list[asyncio.Future[list[GroupOutcome]]] = []
        failure: Exception | None = None
        try:
            try:
                with self._clock.phase("sampling"):
                    async for chunk in generator.chunks([piece for _, piece in pieces], sampling, weights):
                        scoring.append(asyncio.ensure_future(scored(chunk)))
            except ActorFailure as error:
                failure = error  # the last chunk may be this error, and its scoring then fails with it
            results = await asyncio.gather(*scoring, return_exceptions=True)
        finally:
            generator.load -= sum(load.values())
        for error in (result for result in results if isinstance(result, BaseException)):
            if isinstance(error, ObjectsLost):
                failure = failure or error
            elif failure is None:
                raise error
        return [outcome for result in results if isinstance(result, list) for outcome in result], failure
