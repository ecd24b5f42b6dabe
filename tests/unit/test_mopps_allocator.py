"""MoPPS: what the posterior remembers, and whom it chooses by it."""

import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.rivals.mopps import MoPPSAllocatorConfig
from tests.allocator_cases import accepted, all_equal, run_step


def mopps(**settings):
    config = MoPPSAllocatorConfig(**{"group_size": 4, **settings})
    return AllocationDriver.of(config, accept_threshold=0.5, seed=1)


def known(**counts: tuple[float, float]) -> dict[str, object]:
    """A memory of successes and trials."""
    return {"prompts": {id_: [t, s, None] for id_, (s, t) in counts.items()}, "strategy": {}}


def test_the_prompts_nearest_the_target_get_equal_groups() -> None:
    strategy = mopps()
    strategy.load_state_dict(known(a=(0, 1e6), b=(5e5, 1e6), c=(1e6, 1e6), d=(4e5, 1e6)))
    rounds, report = run_step(strategy, "abcd", budget=9, rewards=all_equal())
    assert [dict(allocation.counts) for allocation in rounds] == [{"b": 5, "d": 4}]
    assert report.estimator.num_prompts == 2
    assert report.metrics["allocation/zero"] == 2
    assert report.estimator.accept_rates == pytest.approx({"b": 0.5, "d": 0.4}, abs=1e-6)  # of the earlier visits
    strategy = mopps(target_accept_rate=1.0)
    strategy.load_state_dict(known(a=(0, 1e6), b=(5e5, 1e6), c=(1e6, 1e6), d=(4e5, 1e6)))
    assert list(run_step(strategy, "abcd", budget=9, rewards=all_equal())[0][0].counts) == ["c", "b"]


def test_earlier_counts_are_discounted_at_each_visit_and_only_then() -> None:
    strategy = mopps(decay=0.5)
    for step, (ids, number) in enumerate((("a", 1), ("b", 4), ("a", 3))):
        run_step(strategy, ids, budget=4, rewards=lambda _, n, number=number: accepted(number, n), step=step)
    successes, trials = strategy.memory.counts(["a", "b"])
    assert successes.tolist() == [0.5 * 1 + 3, 4]
    assert trials.tolist() == [0.5 * 4 + 4, 4]


def test_candidates_that_got_no_samples_leave_no_trace() -> None:
    strategy = mopps()
    rounds, _ = run_step(strategy, "abcdef", budget=8, rewards=all_equal())
    assert set(strategy.state_dict()["prompts"]) == set(rounds[0].counts)
    assert len(rounds[0].counts) == 2


def test_new_prompts_are_drawn_at_random_from_the_seed_and_the_step() -> None:
    chosen = [tuple(run_step(mopps(), "abcdef", budget=8, rewards=all_equal(), step=s)[0][0].counts) for s in range(9)]
    again = [tuple(run_step(mopps(), "abcdef", budget=8, rewards=all_equal(), step=s)[0][0].counts) for s in range(9)]
    assert chosen == again
    assert len(set(chosen)) > 1


def test_groups_of_equal_rewards_are_replaced_by_the_next_nearest_if_asked() -> None:
    strategy = mopps(refill=True)
    # so much is known that the draws are as good as the rates: d, c, b, a, e, f in the order of |p - 1/2|
    strategy.load_state_dict(
        known(a=(8e5, 1e6), b=(7e5, 1e6), c=(6e5, 1e6), d=(5e5, 1e6), e=(1e5, 1e6), f=(0, 1e6)),
    )
    rounds, report = run_step(strategy, "abcdef", budget=9, rewards=all_equal(solved="a", failed="c"))
    assert [dict(allocation.counts) for allocation in rounds] == [{"d": 5, "c": 4}, {"b": 4}]
    assert report.estimator.kept == {"c": ()}
    assert report.estimator.num_prompts == 2
    assert report.estimator.accept_rates == {}  # whose samples are averaged over depends on their rewards
    assert report.metrics["allocation/total"] == 13
    _, trials = strategy.memory.counts(["c", "a"])  # dropped groups are remembered
    assert trials.tolist() == [5e5 + 4, 1e6]


def test_refills_end_with_their_budget_and_are_no_default() -> None:
    strategy = mopps(refill=True, max_batches=2)
    rounds, report = run_step(strategy, "abcdef", budget=8, rewards=all_equal(solved="abcdef"))
    assert [sum(allocation.counts.values()) for allocation in rounds] == [8, 8]
    assert len(report.estimator.kept) == 4
    rounds, report = run_step(mopps(), "abcdef", budget=8, rewards=all_equal(solved="abcdef"))
    assert len(rounds) == 1
    assert report.estimator.kept == {}
    assert (MoPPSAllocatorConfig().max_budget_factor, MoPPSAllocatorConfig(refill=True).max_budget_factor) == (1, 3)


def test_a_prior_without_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="prior_successes"):
        MoPPSAllocatorConfig(prior_successes=0)
