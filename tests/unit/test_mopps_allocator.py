"""MoPPS: what the posterior remembers, and whom it chooses by it."""

import pytest

from gvm_ray.allocators import create_allocator
from gvm_ray.config.selecting_allocators import MoPPSAllocatorConfig
from tests.allocator_cases import accepted, all_equal, run_step


def mopps(**settings):
    config = MoPPSAllocatorConfig(**{"group_size": 4, **settings})
    return create_allocator(config, accept_threshold=0.5, seed=1)


def known(**counts: tuple[float, float]) -> dict[str, object]:
    """A memory of successes and trials."""
    return {
        "prompts": {
            id_: {"successes": s, "trials": t, "gradient_norm": None, "policy_version": 0}
            for id_, (s, t) in counts.items()
        }
    }


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
    memory = strategy.state_dict()["prompts"]
    assert (memory["a"]["successes"], memory["a"]["trials"]) == (0.5 * 1 + 3, 0.5 * 4 + 4)
    assert (memory["b"]["successes"], memory["b"]["trials"]) == (4, 4)


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


def test_a_prior_without_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="prior_successes"):
        MoPPSAllocatorConfig(prior_successes=0)
