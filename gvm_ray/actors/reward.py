"""Reward actors: each answers turns and scores groups in a sandboxed process; results stay in the object store."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.reward_env import make_reward_sandbox
from gvm_ray.actors.waiting import wait_for
from gvm_ray.actors.watch import REWARDS, ActorWatch, WatchedActor
from gvm_ray.config.environments import EnvironmentSettings
from gvm_ray.config.rewards import RewardsConfig
from gvm_ray.exceptions import ActorFailure, DeadlineExceeded
from gvm_ray.rewards.sandbox import Observed, Result, Scored, Unscored
from gvm_ray.types import GroupOutcome, GroupRef, Metrics, OpenEpisodes, OpenOutcome, RolloutGroup

_LOGGED_FAILURES = 5  # per actor; later ones are only counted

logger = logging.getLogger(__name__)


@ray.remote
class RewardActor:
    """Scores one call at a time."""

    def __init__(
        self, name: str, config: RewardsConfig, *, max_tokens: int, environment: EnvironmentSettings | None
    ) -> None:
        self._name = name
        self._sandbox = make_reward_sandbox(config, max_tokens=max_tokens, environment=environment)
        self._num_failures = 0

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> None:
        """Return once the sandbox runs.

        Raises:
            ConfigError: a reward function can't be made.
        """
        self._sandbox.start()

    def score(
        self, groups: tuple[RolloutGroup, ...]
    ) -> tuple[tuple[RolloutGroup, ...], tuple[OpenEpisodes, ...], "_Numbers"]:
        """Score the groups; returns scored groups, episodes with another turn, and the driver's numbers for both."""
        results = self._sandbox.score([(group.prompt, c) for group in groups for c in group.completions])
        unscored = [result for result in results if isinstance(result, Unscored)]
        for failure in unscored[: max(0, _LOGGED_FAILURES - self._num_failures)]:
            logger.warning("unscored (%s): %s", failure.reason, failure.detail)
        self._num_failures += len(unscored)
        remaining = iter(results)
        by_group = [[next(remaining) for _ in range(len(group))] for group in groups]
        parts = [_split(group, own) for group, own in zip(groups, by_group, strict=True)]
        reasons = [_reasons(own) for own, (group, _) in zip(by_group, parts, strict=True) if group is not None]
        scored = tuple(group for group, _ in parts if group is not None)
        open_ = tuple(episodes for _, episodes in parts if episodes is not None)
        numbers = _Numbers(
            outcomes=[
                replace(GroupOutcome.of(group, ref=GroupRef(ref=None, index=i)), unscored=reasons[i])
                for i, group in enumerate(scored)
            ],
            open=[
                OpenOutcome(
                    prompt_id=episodes.group.prompt.prompt_id,
                    sample_indices=episodes.group.sample_indices,
                    ref=GroupRef(ref=None, index=i),
                )
                for i, episodes in enumerate(open_)
            ],
            unscored=_reasons(unscored),
            num_malformed=sum(map(_is_malformed, results)),
        )
        return scored, open_, numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class _Numbers:
    """Results of a call for the driver; the refs are filled in there."""

    outcomes: list[GroupOutcome]
    open: list[OpenOutcome]
    unscored: Counter[str]  # samples by reason
    num_malformed: int  # samples with reward 0 because the scorer couldn't parse them


class RewardClient(WatchedActor):
    """The driver's side of one reward actor."""

    num_pending = 0  # calls under way


class RewardPool:
    """The reward actors of a run, named <name>-0, <name>-1 ...

    An actor that dies or hangs is restarted, and its calls go to the least busy of the others.
    """

    def __init__(
        self,
        config: RewardsConfig,
        *,
        max_tokens: int,
        context: RunContext,
        environment: EnvironmentSettings | None = None,
        name: str = "reward",
    ) -> None:
        self._deadlines = context.deadlines
        self._actors = tuple(
            RewardClient(
                f"{name}-{index}",
                RewardActor.options(name=f"{name}-{index}", num_cpus=config.cpus_per_actor, max_restarts=-1).remote(
                    f"{name}-{index}", config, max_tokens=max_tokens, environment=environment
                ),
            )
            for index in range(config.num_actors)
        )
        self._watch: ActorWatch[RewardClient] = ActorWatch(
            self._actors, what="reward actor(s)", policy=REWARDS, revive=self._revive, context=context
        )
        self._unscored: Counter[str] = Counter()
        self._num_malformed = 0

    async def start(self) -> None:
        """Return once every actor's reward process runs.

        Raises:
            ConfigError: a reward function can't be imported.
            DeadlineExceeded, SystemFailure: an actor didn't start.
        """
        await wait_for(
            asyncio.gather(*(_result(actor.handle.ready.remote()) for actor in self._actors)),
            timeout_s=self._deadlines.start_s,
            what=f"starting {len(self._actors)} reward actor(s)",
            setting="deadlines.start_s",
        )

    async def score(self, groups: ray.ObjectRef) -> list[GroupOutcome | OpenOutcome]:
        """Have the least busy actor score the tuple of groups behind a ref, which the driver never fetches.

        Each response, or turn, takes at most `rewards.timeout_s`.

        Returns:
            First an outcome for each group with finished samples, in order; the reward is NaN for a sample that
            couldn't be scored. Then an open outcome for each group with samples that have another turn.

        Raises:
            ActorDied: the generator died before the groups were complete.
            ObjectsLost: the groups are gone.
            TooManyFailures: reward actors died or hung more often than `faults` allows.
        """
        while True:
            actor = min(await self._watch.wait_available(), key=lambda each: each.num_pending)
            life = actor.life
            actor.num_pending += 1
            try:
                return await self._scored(groups, actor)
            except (ActorFailure, DeadlineExceeded) as error:
                self._watch.failed(actor, error, life=life)
            finally:
                actor.num_pending -= 1

    async def _revive(self, actor: RewardClient) -> bool:
        await wait_for(
            _result(actor.handle.ready.options(max_task_retries=-1).remote()),
            timeout_s=self._deadlines.start_s,
            what=f"the restart of {actor.name}",
            setting="deadlines.start_s",
        )
        return True

    async def _scored(self, groups: ray.ObjectRef, actor: RewardClient) -> list[GroupOutcome | OpenOutcome]:
        scored, open_, numbers = actor.handle.score.options(num_returns=3).remote(groups)
        told: _Numbers = await wait_for(
            _result(numbers),
            timeout_s=self._deadlines.sample_s,
            what=f"scoring by {actor.name}",
            setting="deadlines.sample_s",
        )
        self._unscored.update(told.unscored)
        self._num_malformed += told.num_malformed
        return [
            *(replace(outcome, ref=replace(outcome.ref, ref=scored)) for outcome in told.outcomes),
            *(replace(outcome, ref=replace(outcome.ref, ref=open_)) for outcome in told.open),
        ]

    @property
    def metrics(self) -> Metrics:
        """Numbers of unscored samples since the start, by reason, and of malformed ones; zeros are left out."""
        unscored = {f"rewards/unscored_{reason}": float(count) for reason, count in sorted(self._unscored.items())}
        return unscored | ({"rewards/malformed": float(self._num_malformed)} if self._num_malformed else {})

    def close(self) -> None:
        """Kill the actors; their processes die with them."""
        self._watch.close()


def _reasons(results: Sequence[Result]) -> Counter[str]:
    """Number of results without a reward, by reason."""
    return Counter(result.reason for result in results if isinstance(result, Unscored))


def _is_malformed(result: Result) -> bool:
    """Whether a reward term marks the sample as malformed (`CombinedReward.terms`)."""
    terms = result.terms.items() if isinstance(result, Scored) else ()
    return any(name.endswith("_malformed") and value > 0 for name, value in terms)


async def _result(ref: Any) -> Any:
    return await ref


def _split(group: RolloutGroup, results: list[Result]) -> tuple[RolloutGroup | None, OpenEpisodes | None]:
    """Split a group into finished samples with their rewards, and open episodes; None if a part is empty."""
    if not any(isinstance(result, Observed) for result in results):
        return _with_results(group, results), None
    over = [i for i, result in enumerate(results) if not isinstance(result, Observed)]
    observations = {i: result.observation for i, result in enumerate(results) if isinstance(result, Observed)}
    episodes = OpenEpisodes(group=group.select(list(observations)), observations=tuple(observations.values()))
    return (_with_results(group.select(over), [results[i] for i in over]) if over else None), episodes


def _with_results(group: RolloutGroup, results: list[Result]) -> RolloutGroup:
    """The group with its rewards; a term is NaN where the sample is unscored."""
    names = sorted({name for result in results if isinstance(result, Scored) for name in result.terms})
    return replace(
        group,
        rewards=np.array([r.reward if isinstance(r, Scored) else np.nan for r in results], dtype=np.float64),
        reward_terms={
            name: np.array(
                [r.terms.get(name, np.nan) if isinstance(r, Scored) else np.nan for r in results], dtype=np.float64
            )
            for name in names
        },
    )
