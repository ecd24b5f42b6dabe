"""Reward actors on a local Ray cluster: scoring by ref, faults in a reward, and actors that die."""

import asyncio
import os
import signal
import time

import numpy as np
import pytest

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.reward import RewardPool
from gvm_ray.config.rewards import ExactRewardConfig, FunctionRewardConfig, MathVerifyRewardConfig, RewardsConfig
from gvm_ray.config.run import DeadlineConfig, FaultsConfig
from gvm_ray.exceptions import ActorDied, ConfigError
from gvm_ray.failure_log import FailureLog
from gvm_ray.types import GroupOutcome, RolloutGroup
from tests import builders
from tests.builders import completion, prompt

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

DEADLINES = DeadlineConfig(start_s=120, sample_s=120)
PATH = "tests.faulty_rewards:faulty"  # found from the repository's root, where tests are started


def group(prompt_id: str, *texts: str, answer: str = "") -> RolloutGroup:
    """Of version 3, and of a token for each character."""
    completions = [completion(text, num_tokens=len(text), version=3) for text in texts]
    return builders.group(prompt(prompt_id, answer=answer), completions)


def run(
    config: RewardsConfig, *chunks: tuple[RolloutGroup, ...]
) -> tuple[list[GroupOutcome], list[RolloutGroup], dict[str, float]]:
    """Chunks scored at once: the outcomes, the scored groups behind their refs, and the pool's metrics."""

    async def main():
        pool = RewardPool(
            config, max_tokens=100, context=RunContext(deadlines=DEADLINES, failures=FailureLog(FaultsConfig()))
        )
        try:
            await pool.start()
            scored = await asyncio.gather(*(pool.score(ray.put(chunk)) for chunk in chunks))
            outcomes = [outcome for part in scored for outcome in part]
            return outcomes, [ray.get(o.ref.ref)[o.ref.index] for o in outcomes], pool.metrics
        finally:
            pool.close()

    return asyncio.run(main())


def test_outcomes_and_scored_groups_agree():
    config = RewardsConfig(terms=(MathVerifyRewardConfig(), ExactRewardConfig(weight=0.5)))
    outcomes, scored, metrics = run(
        config, (group("a", r"\boxed{0.5}", r"\boxed{1/2}", "no", answer="1/2"), group("b"))
    )
    assert [o.prompt_id for o in outcomes] == ["a", "b"]
    np.testing.assert_array_equal(outcomes[0].rewards, [1.0, 1.5, 0.0])
    np.testing.assert_array_equal(outcomes[0].reward_terms["exact"], [0.0, 1.0, 0.0])
    np.testing.assert_array_equal(outcomes[0].num_tokens, [11, 11, 2])
    np.testing.assert_array_equal(outcomes[0].policy_versions, [3, 3, 3])
    assert not outcomes[0].truncated.any()
    assert outcomes[1].rewards.shape == (0,)
    assert scored[0].rewards is not None
    np.testing.assert_array_equal(scored[0].rewards, [1.0, 1.5, 0.0])
    assert [c.text for c in scored[0].completions] == [r"\boxed{0.5}", r"\boxed{1/2}", "no"]
    assert metrics == {}


def test_faults_leave_samples_unscored_and_neighbours_scored():
    config = RewardsConfig(terms=(FunctionRewardConfig(path=PATH),), timeout_s=2.0)
    outcomes, _, metrics = run(config, (group("a", "xx", "hang", "xxx"), group("b", "exit", "raise", "x")))
    np.testing.assert_array_equal(outcomes[0].rewards, [2.0, np.nan, 3.0])
    np.testing.assert_array_equal(outcomes[1].rewards, [np.nan, np.nan, 1.0])
    assert [outcome.unscored for outcome in outcomes] == [{"timeout": 1}, {"crash": 1, "error": 1}]
    assert metrics == {
        "rewards/unscored_crash": 1.0,
        "rewards/unscored_error": 1.0,
        "rewards/unscored_timeout": 1.0,
    }


def test_chunks_go_to_the_least_busy_actor():
    config = RewardsConfig(terms=(FunctionRewardConfig(path=PATH),), num_actors=2)
    outcomes, scored, _ = run(config, *[(group(name, "pid"), group(name * 2, "pid")) for name in "abcd"])
    assert [o.prompt_id for o in outcomes] == ["a", "aa", "b", "bb", "c", "cc", "d", "dd"]
    assert [g.prompt.prompt_id for g in scored] == [o.prompt_id for o in outcomes]
    pids = [float(o.rewards[0]) for o in outcomes]
    assert pids[0::2] == pids[1::2]
    assert sorted(pids.count(pid) for pid in set(pids)) == [4, 4]


def wait_for_end(process: int) -> None:
    """Return when there is no such process: one that notices its parent's death takes a moment to end."""
    for _ in range(300):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail(f"process {process} is still there")


def test_a_killed_actor_is_replaced_and_its_process_dies_with_it():
    config = RewardsConfig(terms=(FunctionRewardConfig(path=PATH),))

    async def main():
        pool = RewardPool(
            config, max_tokens=100, context=RunContext(deadlines=DEADLINES, failures=FailureLog(FaultsConfig()))
        )
        try:
            await pool.start()
            (before,) = await pool.score(ray.put((group("a", "pid", "parent"),)))
            process, actor = map(int, before.rewards)
            (again,) = await pool.score(ray.put((group("a", "pid"),)))
            assert again.rewards[0] == process
            os.kill(actor, signal.SIGKILL)
            (after,) = await pool.score(ray.put((group("b", "four", "parent"),)))
            return process, actor, after.rewards
        finally:
            pool.close()

    process, actor, rewards = asyncio.run(main())
    assert rewards[0] == 4.0
    assert rewards[1] != actor
    wait_for_end(process)


def test_an_unimportable_reward_function_is_a_config_error():
    config = RewardsConfig(terms=(FunctionRewardConfig(path="no_such_module:score"),))
    with pytest.raises(ConfigError, match="no_such_module"):
        run(config, (group("a", "x"),))


@ray.remote(num_cpus=0)
class DyingGenerator:
    """Makes no groups."""

    def generate(self) -> None:
        os._exit(1)


def test_the_death_of_who_made_the_groups_is_not_the_reward_actors():
    config = RewardsConfig(terms=(ExactRewardConfig(),))
    failures = FailureLog(FaultsConfig())

    async def main():
        pool = RewardPool(config, max_tokens=100, context=RunContext(deadlines=DEADLINES, failures=failures))
        try:
            await pool.start()
            with pytest.raises(ActorDied, match="DyingGenerator"):
                await pool.score(DyingGenerator.remote().generate.remote())
        finally:
            pool.close()

    asyncio.run(main())
    assert failures.counts.total() == 0
