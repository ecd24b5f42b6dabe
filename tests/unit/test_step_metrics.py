"""Numbers of a step by prompt, by hand: what its groups came to, useful tokens, and estimates against what came."""

import numpy as np
import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.uniform import UniformAllocatorConfig
from gvm_ray.maths.statistics import calibration_error
from gvm_ray.metric_names import OPTIONAL_METRICS, STEP_METRICS
from gvm_ray.step_metrics import step_metrics
from gvm_ray.types import EstimatorTerms, TrainBatch
from tests.allocator_cases import all_equal, run_step
from tests.builders import NAN, outcome, prompts, train_group
from tests.loop_fakes import run, run_config

OUTCOMES = [
    outcome("solved", [1, 1], num_tokens=[3, 4]),
    outcome("mixed", [1, 0], num_tokens=[5, 6]),
    outcome("mixed", [0], first_index=2, num_tokens=7),  # a second round
    outcome("failed", [0, 0, NAN], num_tokens=8),
    outcome("unscored", [NAN], num_tokens=9),
]
BATCH = TrainBatch(step=0, groups=(train_group("mixed", [1.0, -1.0], num_tokens=5), train_group("mixed", [0.0])))


def numbers(terms: EstimatorTerms | None = None, *, outcomes=OUTCOMES, batch=BATCH):
    return step_metrics(outcomes, batch=batch, terms=terms or EstimatorTerms(num_prompts=4), accept_threshold=0.5)


def test_prompts_by_what_came() -> None:
    metrics, arrays = numbers()
    assert [metrics[f"groups/{kind}_fraction"] for kind in ("solved", "mixed", "failed")] == [1 / 3] * 3
    reasons = ("solved", "mixed", "failed", "unscored")
    assert [metrics[f"groups/dropped_{reason}"] for reason in reasons] == [1, 0, 1, 1]
    assert metrics["samples/per_prompt"] == (2 + 3 + 3 + 1) / 4
    assert (metrics["tokens/useful"], metrics["tokens/useful_fraction"]) == (10, 10 / (7 + 18 + 24 + 9))
    assert arrays == {}  # no estimates
    assert not metrics.keys() & OPTIONAL_METRICS.keys()
    assert metrics.keys() <= STEP_METRICS.keys()


def test_a_mixed_group_that_trains_nothing_is_dropped_as_mixed() -> None:
    metrics, _ = numbers(batch=TrainBatch(step=0, groups=()))
    assert metrics["groups/dropped_mixed"] == 1
    assert metrics["tokens/useful_fraction"] == 0


def test_a_step_without_samples_has_no_shares() -> None:
    metrics, arrays = numbers(
        EstimatorTerms(num_prompts=0, expected_rates={"a": 0.5}), outcomes=[], batch=TrainBatch(step=0, groups=())
    )
    assert set(metrics.values()) == {0.0}
    assert arrays == {}


def test_estimates_against_what_came() -> None:
    rates = {"solved": 0.75, "mixed": 0.5, "failed": 0.25, "unscored": 0.5, "never drawn": 0.1}
    metrics, arrays = numbers(EstimatorTerms(num_prompts=4, expected_rates=rates))
    np.testing.assert_allclose(arrays["predicted_accept_rate"], [0.75, 0.5, 0.25])
    np.testing.assert_allclose(arrays["observed_accept_rate"], [1, 1 / 3, 0])
    assert metrics["allocation/brier"] == pytest.approx((1 / 16 + 1 / 36 + 1 / 16) / 3)
    assert metrics["allocation/calibration_error"] == pytest.approx((1 / 4 + 1 / 6 + 1 / 4) / 3)
    # one of three prompts is the hardest 10 and 25 %, two are the hardest half
    assert [metrics[f"reward/accept_rate_hardest_{p}"] for p in (10, 25, 50)] == pytest.approx([0, 0, 1 / 6])
    assert metrics.keys() - STEP_METRICS.keys() <= OPTIONAL_METRICS.keys()


def test_samples_that_told_the_estimate_are_not_compared_with_it() -> None:
    terms = EstimatorTerms(
        num_prompts=4, expected_rates={"mixed": 0.5, "solved": 1.0}, pilots={"mixed": (0, 1), "solved": (0, 1)}
    )
    _, arrays = numbers(terms)
    assert arrays["predicted_accept_rate"].tolist() == [0.5]
    assert arrays["observed_accept_rate"].tolist() == [0.0]


def test_calibration_error_by_hand() -> None:
    # bins [0, 1/2) and [1/2, 1]: |0.5 - 0.2| for two, |0.25 - 0.9| for one
    assert calibration_error([0.1, 0.3, 0.9], [0, 1, 0.25], num_bins=2) == pytest.approx((2 * 0.3 + 0.65) / 3)
    assert calibration_error([0.5, 0.5], [0, 1]) == 0


def test_an_allocator_without_estimates_is_compared_with_the_runs_earlier_samples() -> None:
    driver = AllocationDriver.of(UniformAllocatorConfig(), accept_threshold=0.5)
    rewards = all_equal(solved="a", failed="b")
    _, first = run_step(driver, "abc", budget=6, rewards=rewards)
    assert first.estimator.expected_rates == {}
    driver.plan(prompts("abd"), step=1, budget=6)
    driver.observe([outcome("a", [0, 0])], step=1)
    rates = driver.report(step=1).estimator.expected_rates
    assert (rates["a"], rates["b"]) == (1, 0)  # before the step
    assert "d" not in rates


def test_the_loop_logs_them() -> None:
    _, _, records = run(run_config(num_steps=2))
    for _, metrics in records.steps:
        assert STEP_METRICS.keys() >= {name for name in metrics if name.startswith(("groups/", "tokens/"))}
        assert 0 < metrics["tokens/useful_fraction"] <= 1
        assert sum(metrics[f"groups/{kind}_fraction"] for kind in ("solved", "mixed", "failed")) == pytest.approx(1)
