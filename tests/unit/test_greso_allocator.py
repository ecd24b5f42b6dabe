"""GRESO over several visits: who is skipped, what is remembered, and how exploration adapts."""

import numpy as np
import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.base import RunShape
from gvm_ray.allocators.rivals.greso import GRESOAllocatorConfig
from tests.allocator_cases import all_equal, run_step

SURE = {"easy_probability": 1e-9, "hard_probability": 1e-9, "min_probability": 1e-9, "min_sampling_probability": 0.0}
REWARDS = all_equal(solved="ab", failed="d")


def greso(**settings):
    config = GRESOAllocatorConfig(**{"group_size": 4, "probability_step": 0, **settings})
    return AllocationDriver.of(config, accept_threshold=0.5, seed=3)


def counts(strategy, ids: str, *, budget: int = 8, step: int = 0) -> dict[str, int]:
    rounds, _ = run_step(strategy, ids, budget=budget, rewards=REWARDS, step=step)
    return dict(rounds[0].counts)


def test_the_first_candidates_that_are_not_skipped_get_the_groups() -> None:
    strategy = greso(**SURE)
    assert counts(strategy, "abcdef") == {"a": 4, "b": 4}  # nothing is known yet
    assert counts(strategy, "abcdef") == {"c": 4, "d": 4}  # a and b had zero variance
    assert counts(strategy, "abcdef") == {"c": 4, "e": 4}  # and d; c had not
    assert strategy.state_dict()["strategy"]["zero_variance_runs"] == {"a": 1, "b": 1, "c": 0, "d": -1, "e": 0}


def test_skipped_candidates_fill_up_and_the_budget_is_spent() -> None:
    strategy = greso(**SURE)
    counts(strategy, "abd", budget=12)
    assert counts(strategy, "abcd", budget=13) == {"c": 5, "a": 4, "b": 4}
    assert strategy.state_dict()["strategy"]["zero_variance_runs"] == {"a": 2, "b": 2, "c": 0, "d": -1}


def test_a_prompt_with_a_run_is_sampled_as_often_as_its_probability_says() -> None:
    strategy = greso(easy_probability=0.5, hard_probability=0.8)
    strategy.load_state_dict(
        {
            "prompts": {},
            "strategy": {
                "zero_variance_runs": {"a": 2, "d": -1},
                "easy_probability": 0.5,
                "hard_probability": 0.8,
            },
        }
    )
    memory = strategy.state_dict()
    skipped = np.zeros(2)
    for step in range(2000):
        rounds = counts(strategy, "adefgh", budget=16, step=step)
        skipped += ["a" not in rounds, "d" not in rounds]
        strategy.load_state_dict(memory)
    np.testing.assert_allclose(skipped / 2000, [1 - 0.5**2, 1 - 0.8], atol=0.03)


def test_zero_variance_groups_leave_the_batch_unless_set_otherwise() -> None:
    _, report = run_step(greso(), "abcef", budget=16, rewards=REWARDS)
    assert report.estimator.kept == {"a": (), "b": ()}
    assert report.estimator.num_prompts == 2
    assert report.histograms["samples_per_prompt"].tolist() == [4, 4, 4, 4, 0]
    np.testing.assert_array_equal(report.histograms["accept_rate"], [1, 1, 0.5, 0.5, np.nan])
    _, report = run_step(greso(drop_zero_variance=False), "abcef", budget=16, rewards=REWARDS)
    assert report.estimator.kept == {}
    assert report.estimator.num_prompts == 4


def test_other_candidates_replace_zero_variance_groups_if_asked() -> None:
    rounds, report = run_step(greso(refill=True, max_batches=3), "abcdefgh", budget=8, rewards=REWARDS)
    # a and b are solved, and d failed
    assert [dict(each.counts) for each in rounds] == [{"a": 4, "b": 4}, {"c": 4, "d": 4}, {"e": 4}]
    assert report.estimator.kept == {"a": (), "b": (), "d": ()}
    assert report.estimator.num_prompts == 2


def test_refills_end_with_their_budget() -> None:
    rounds, _ = run_step(greso(refill=True, max_batches=2), "abdcefgh", budget=8, rewards=REWARDS)
    assert [dict(each.counts) for each in rounds] == [{"a": 4, "b": 4}, {"d": 4, "c": 4}]
    assert GRESOAllocatorConfig(refill=True, max_batches=2).max_budget_factor == 2
    assert GRESOAllocatorConfig(max_batches=2).max_budget_factor == 1


def test_rewards_within_the_tolerance_have_zero_variance() -> None:
    _, report = run_step(greso(tolerance=0.25), "ab", budget=8, rewards=lambda id_, n: [0.5, 0.75] * (n // 2))
    assert report.estimator.kept == {"a": (), "b": ()}


def test_exploration_adapts_once_prompts_come_again() -> None:
    strategy = greso(probability_step=0.1, target_easy_fraction=0.5, target_hard_fraction=0.3)
    run_step(strategy, "abce", budget=16, rewards=REWARDS)
    assert strategy.state_dict()["strategy"]["easy_probability"] == 0.5
    assert strategy.state_dict()["strategy"]["hard_probability"] == 0.5
    # a, b solved, c, e neither: half are easy, which reaches the target; none is hard, which doesn't
    _, report = run_step(strategy, "abce", budget=16, rewards=REWARDS, step=1)
    assert report.metrics["allocation/easy_probability"] == 0.5  # what the step was decided with
    assert strategy.state_dict()["strategy"]["easy_probability"] == pytest.approx(0.4)
    assert strategy.state_dict()["strategy"]["hard_probability"] == pytest.approx(0.6)


def test_settings_that_cannot_be_met_are_refused() -> None:
    shape = RunShape(prompts_per_step=8, samples_per_prompt=4, max_staleness=0, checkpoint_every_steps=1)
    GRESOAllocatorConfig(group_size=4, candidates_per_step=9).check_fits(shape)
    with pytest.raises(ValueError, match=r"nothing to select: the budget of 32 samples makes 8 groups .*step=32"):
        GRESOAllocatorConfig(group_size=4).check_fits(shape)
    with pytest.raises(ValueError, match="group_size=33 is above the step's budget of 32 samples; write group_size=4"):
        GRESOAllocatorConfig(group_size=33).check_fits(shape)
    with pytest.raises(ValueError, match="write drop_zero_variance=true or refill=false"):
        GRESOAllocatorConfig(refill=True, drop_zero_variance=False)
    with pytest.raises(ValueError, match=r"hard_probability=0.97 is outside min_probability=0.05 to .*=0.95"):
        GRESOAllocatorConfig(hard_probability=0.97)
