"""PODS: which samples of a group are kept."""

import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.base import RunShape
from gvm_ray.allocators.rivals.pods import PODSAllocatorConfig
from tests.builders import NAN, outcome, prompts


def step(outcomes, *, kept_samples: int = 2):
    """The report of a step in which a and b get five samples each."""
    strategy = AllocationDriver.of(PODSAllocatorConfig(kept_samples=kept_samples), accept_threshold=0.5)
    assert dict(strategy.plan(prompts("ab"), step=0, budget=9).counts) == {"a": 5, "b": 4}
    assert strategy.observe(outcomes, step=0).total == 0
    return strategy.report(step=0)


def test_the_subset_of_largest_variance_is_kept_of_each_group() -> None:
    report = step([outcome("a", [0, 1, 1, 0, 1]), outcome("b", [0.5, 0.9, 0.1, 0.4])])
    assert report.estimator.kept == {"a": (0, 4), "b": (1, 2)}
    assert report.estimator.num_prompts == 2
    assert report.estimator.accept_rates == {}
    assert report.metrics["allocation/total"] == 9
    assert report.metrics["allocation/dropped"] == 0


def test_a_group_may_come_in_parts_with_indices_of_its_own() -> None:
    report = step([outcome("a", [1, 1], first_index=3), outcome("b", [0] * 4), outcome("a", [1, 0, 1])])
    assert report.estimator.kept["a"] == (1, 2)  # the rejected one, and of the others the last that came


def test_unscored_samples_are_not_among_the_kept() -> None:
    report = step([outcome("a", [NAN, 1, NAN, 0, 0]), outcome("b", [NAN, NAN, 1, NAN])])
    assert report.estimator.kept == {"a": (1, 3)}  # b has no more scored samples than are kept
    assert step([]).estimator.kept == {}


def test_keeping_everything_is_refused() -> None:
    shape = RunShape(prompts_per_step=4, samples_per_prompt=4, max_staleness=0, checkpoint_every_steps=1)
    with pytest.raises(ValueError, match=r"kept_samples=4 keeps all of samples_per_prompt=4; write fewer, or .*=16"):
        PODSAllocatorConfig(kept_samples=4).check_fits(shape)
