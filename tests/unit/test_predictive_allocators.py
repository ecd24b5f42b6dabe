"""Allocators that predict: what they choose once they know something, and what they do before they know anything."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from gvm_ray.allocators import AllocationDriver, AllocatorSettings
from gvm_ray.allocators.gvm_online import GVMOnlineAllocatorConfig, NeymanAllocatorConfig
from gvm_ray.allocators.gvm_pool import GVMPoolAllocatorConfig
from gvm_ray.types import Allocation, AllocationReport, FloatArray, TrainedNorms
from tests.allocator_cases import run_script
from tests.builders import outcome, prompts

Rates = Callable[[np.ndarray], np.ndarray]


def pool(**settings: Any) -> GVMPoolAllocatorConfig:
    drawn_groups = {"score": "norm_neyman", "uniform_share": 0.1, "group_size": 4}
    return GVMPoolAllocatorConfig(**{"candidates_per_step": 200, **drawn_groups, **settings})


def create(config: AllocatorSettings, *, seed: int = 0) -> AllocationDriver:
    return AllocationDriver.of(config, accept_threshold=0.5, seed=seed)


def levels(count: int) -> FloatArray:
    """[P, 1] states: the prompt's difficulty, 0 (solved), 1 (half and half), 2 (out of reach), in turn."""
    return (np.arange(count) % 3).astype(np.float32)[:, None]


def by_level(states: np.ndarray) -> np.ndarray:
    return np.array([1.0, 0.5, 0.0])[states[:, 0].astype(int)]


def run_steps(
    allocator: AllocationDriver,
    *,
    steps: range,
    size: int = 200,
    budget: int = 128,
    rates: Rates = by_level,
    norms: Sequence[float] | None = None,
) -> tuple[list[Allocation], AllocationReport]:
    """Allocations of steps on new prompts, one of each level in turn, and the last report.

    With `norms` training measures them for the accepted samples, one for each level.
    """
    under_way = allocator
    allocations, report = [], None
    for step in steps:
        rng = np.random.default_rng(step)
        group, states = prompts(range(1000 * step, 1000 * step + size)), levels(size)
        allocation = under_way.plan(group, step=step, budget=budget, states=states)
        allocations.append(allocation)
        outcomes = [
            outcome(prompt.prompt_id, (rng.random(allocation.counts[prompt.prompt_id]) < p).astype(np.float64))
            for prompt, p in zip(group, rates(states), strict=True)
            if allocation.counts[prompt.prompt_id]
        ]
        assert under_way.observe(outcomes, step=step).total == 0
        report = under_way.report(step=step)
        if norms is not None:
            measured = [
                TrainedNorms(
                    prompt_id=each.prompt_id,
                    positive=each.rewards > 0.5,
                    norms=np.full(len(each.rewards), norms[int(each.prompt_id) % 1000 % 3]),
                )
                for each in outcomes
            ]
            under_way.observe_training(measured)
    assert report is not None
    return allocations, report


def samples_by_level(allocation: Allocation) -> np.ndarray:
    """[3] samples of the prompts of each level."""
    per_prompt = np.array(list(allocation.counts.values()))
    return np.array([per_prompt[level::3].sum() for level in range(3)])


def test_the_pool_begins_without_history_and_then_takes_prompts_near_one_half() -> None:
    allocations, report = run_steps(create(pool()), steps=range(6))
    first = np.array(list(allocations[0].counts.values()))
    assert set(first) == {0, 4}
    assert (first > 0).sum() == 32
    assert samples_by_level(allocations[0])[1] < 80
    for allocation in allocations:
        counts = np.array(list(allocation.counts.values()))
        assert counts.sum() == 128
        assert counts[counts > 0].min() >= 4
    assert np.mean([samples_by_level(each)[1] for each in allocations[3:]]) > 0.6 * 128  # a third by chance
    assert report.estimator.num_prompts == (np.array(list(allocations[-1].counts.values())) > 0).sum()
    assert report.metrics["allocation/prompts"] == report.estimator.num_prompts
    true = {prompt.prompt_id: p for prompt, p in zip(prompts(200, first=5000), by_level(levels(200)), strict=True)}
    assert np.mean([(p - true[id_]) ** 2 for id_, p in report.estimator.expected_rates.items()]) < 0.05


def test_the_defaults_take_single_samples_nearest_one_half() -> None:
    defaults = GVMPoolAllocatorConfig(candidates_per_step=200)
    allocations, report = run_steps(create(defaults), steps=range(5), budget=50)
    counts = np.array(list(allocations[-1].counts.values()))
    assert sorted(set(counts)) == [0, 1]
    assert counts.sum() == 50
    rates, chosen = report.histograms["accept_rate"], counts > 0
    assert np.abs(rates[chosen] - 0.5).max() <= np.abs(rates[~chosen] - 0.5).min()
    assert samples_by_level(allocations[-1])[1] > 40
    sampled = [prompt_id for prompt_id, count in allocations[-1].counts.items() if count]
    # No sample of these prompts was seen before, so nothing is known of their rewards but the prior.
    assert report.estimator.baselines == report.estimator.deviations == pytest.approx(dict.fromkeys(sampled, 0.5))


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({}, True),
        ({"group_size": 2}, False),
        ({"group_size": 2, "predicted_baseline": True}, True),
        ({"predicted_baseline": False}, False),
    ],
)
def test_the_baseline_follows_the_group_size_unless_it_is_set(settings: dict[str, Any], given: bool) -> None:
    config = GVMPoolAllocatorConfig(candidates_per_step=200, **settings)
    assert config.gives_baselines == given
    _, report = run_steps(create(config), steps=range(2))
    assert bool(report.estimator.baselines) == given


def test_every_candidate_keeps_a_chance() -> None:
    allocator = create(pool(uniform_share=0.2, predictor={"forgetting": 1.0}))
    run_steps(allocator, steps=range(5))
    sampled = np.zeros(30)
    for step in range(5, 405):
        allocation = allocator.plan(prompts(range(30)), step=step, budget=64, states=levels(30))
        sampled += np.array(list(allocation.counts.values())) > 0
    assert (sampled > 400 * 0.5 * 0.2 * 64 / 30 / 4).all()  # at least half of what the even share gives
    assert sampled[1::3].min() > 1.5 * sampled[0::3].max()


def test_sharpness_and_the_uniform_share_move_the_split() -> None:
    even, usual, sharp = (
        samples_by_level(run_steps(create(pool(**settings)), steps=range(5))[0][-1])[1]
        for settings in ({"uniform_share": 1.0}, {}, {"sharpness": 4.0, "uniform_share": 0.0})
    )
    assert even < 70
    assert even < usual <= sharp
    assert sharp > 120


def test_pcls_rule_gives_equal_groups_to_the_candidates_nearest_one_half() -> None:
    config = GVMPoolAllocatorConfig(candidates_per_step=200, group_size=4)
    # 1/2 - |p - 1/2|; a budget of 14 makes three groups, 14 = 5 + 5 + 4
    scores = np.array([0.1, 0.4, 0.5, 0.3, 0.4, 0.2])
    expected = config.expected_samples(scores, budget=14)
    np.testing.assert_allclose(expected, [0, 14 / 3, 14 / 3, 0, 14 / 3, 0])
    few = config.expected_samples(scores, budget=100)  # 25 groups, but at most half of the candidates
    np.testing.assert_allclose(few, [0, 100 / 3, 100 / 3, 0, 100 / 3, 0])
    mixed = pool(score="pcl", uniform_share=0.3, group_size=4).expected_samples(scores, budget=14)
    np.testing.assert_allclose(mixed, 0.7 * expected + 0.3 * 14 / 6)

    allocations, report = run_steps(create(config), steps=range(5))
    counts = np.array(list(allocations[-1].counts.values()))
    assert set(counts) == {0, 4}
    rates, chosen = report.histograms["accept_rate"], counts > 0
    assert chosen.sum() == 128 // 4
    assert np.abs(rates[chosen] - 0.5).max() <= np.abs(rates[~chosen] - 0.5).min()
    assert np.flatnonzero(list(allocations[0].counts.values())).tolist() == list(range(32))  # all alike: in their order


def test_pcls_rule_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(
        ValueError, match=r"write score=\"norm_neyman\" and uniform_share=0\.1, or undo_selection=false"
    ):
        pool(score="pcl", uniform_share=0.0, undo_selection=True)
    assert pool(score="pcl", undo_selection=True).uniform_share == 0.1
    with pytest.raises(ValueError, match="'log_neyman' or 'gvm'"):
        GVMOnlineAllocatorConfig.model_validate({"score": "pcl"})


def test_norms_of_training_move_samples_to_the_larger_ones() -> None:
    config = pool(score="norm_neyman", uniform_share=0.0)

    def rates(states: np.ndarray) -> np.ndarray:
        return np.full(len(states), 0.5)

    plain = run_steps(create(config), steps=range(6), rates=rates)[0][-1]
    normed = run_steps(create(config), steps=range(6), rates=rates, norms=(1.0, 1.0, 9.0))[0][-1]
    assert samples_by_level(normed)[2] > 1.5 * samples_by_level(plain)[2]


def test_the_online_allocator_and_neymans_share_the_step_within_their_bounds() -> None:
    for config, favoured in (
        (GVMOnlineAllocatorConfig(min_samples=2, max_samples=30), 2),  # the hardest, G / sqrt(p)
        (NeymanAllocatorConfig(max_samples=30), 1),
        (NeymanAllocatorConfig(score="log_neyman", max_samples=30), 2),
    ):
        allocations, report = run_steps(create(config), steps=range(6), size=24, budget=24 * 8)
        assert set(allocations[0].counts.values()) == {8}
        counts = np.array(list(allocations[-1].counts.values()))
        assert counts.sum() == 24 * 8
        assert counts.min() >= 2
        assert counts.max() <= 30
        assert np.argmax(samples_by_level(allocations[-1])) == favoured
        assert report.estimator.num_prompts == 24


def test_a_single_prompt_gets_everything() -> None:
    for config in (pool(), GVMOnlineAllocatorConfig(), NeymanAllocatorConfig()):
        allocations, _ = run_steps(create(config), steps=range(12), size=1, budget=8)
        assert [list(each.counts.values()) for each in allocations] == [[8]] * 12


def test_a_prompt_that_stands_twice_counts_once() -> None:
    allocator = create(GVMOnlineAllocatorConfig())
    steps = allocator
    allocation = steps.plan(prompts("aba"), step=0, budget=12, states=levels(3))
    assert allocation.counts == {"a": 6, "b": 6}
    steps.observe([outcome(id_, np.array([1.0, 0, 0, 0, 0, 0])) for id_ in "ab"], step=0)
    report = steps.report(step=0)
    assert report.histograms["accept_rate"].shape == report.histograms["samples_per_prompt"].shape == (2,)
    assert report.estimator.accept_rates == {"a": 0.5, "b": 0.5}  # predicted, not that of these samples
    assert report.estimator.num_prompts == 2


def test_unscored_samples_teach_nothing() -> None:
    allocator = create(pool())
    before = allocator.state_dict()["strategy"]["predictor"]["observations"]
    run_steps(allocator, steps=range(2))
    steps = allocator
    allocation = steps.plan(prompts(range(5000, 5050)), step=2, budget=64, states=levels(50))
    known = allocator.state_dict()["strategy"]["predictor"]
    nothing = [outcome(id_, np.full(count, np.nan)) for id_, count in allocation.counts.items() if count]
    steps.observe(nothing, step=2)
    assert steps.report(step=2).estimator.expected_rates
    assert allocator.state_dict()["strategy"]["predictor"] == known != before


def test_accept_rates_are_those_predicted_before_the_samples() -> None:
    allocator = create(pool())
    run_steps(allocator, steps=range(4))
    steps = allocator
    allocation = steps.plan(prompts(range(5000, 5050)), step=4, budget=64, states=levels(50))
    chosen = [id_ for id_, count in allocation.counts.items() if count]
    steps.observe([outcome(id_, np.ones(allocation.counts[id_])) for id_ in chosen], step=4)
    report = steps.report(step=4)
    predicted = dict(zip(allocation.counts, report.histograms["accept_rate"], strict=True))
    assert report.estimator.accept_rates == {id_: predicted[id_] for id_ in chosen}
    assert min(report.estimator.accept_rates.values()) < 0.9  # though every sample was accepted


def test_predicted_baselines_and_weights_reach_the_estimator() -> None:
    allocator = create(pool(predicted_baseline=True, undo_selection=True, undo_selection_cap=3.0))
    allocations, report = run_steps(allocator, steps=range(6))
    terms = report.estimator
    chosen = {id_ for id_, count in allocations[-1].counts.items() if count}
    assert set(terms.baselines) == set(terms.deviations) == set(terms.prompt_weights) == chosen
    for id_ in chosen:
        p = terms.baselines[id_]
        assert 0.02 <= p <= 0.98
        assert terms.deviations[id_] == pytest.approx(np.sqrt(p * (1 - p)))
        assert 0 < terms.prompt_weights[id_] <= 3
    weights = np.array(list(terms.prompt_weights.values()))
    assert report.metrics["allocation/undo_weight_max"] == weights.max()
    assert report.metrics["allocation/undo_weight_mean"] == pytest.approx(weights.mean())
    assert report.metrics["allocation/undo_effective_prompts"] == pytest.approx(weights.sum() ** 2 / sum(weights**2))
    middle = [terms.prompt_weights[id_] for id_ in chosen if int(id_) % 1000 % 3 == 1]
    assert np.mean(middle) < 1  # sampled more often than an even choice would
    plain = run_steps(create(pool()), steps=range(2))[1].estimator
    assert plain.baselines == plain.deviations == plain.prompt_weights == {}


@pytest.mark.parametrize("source", ["default", "history", "features", "both"])
def test_the_predicted_baseline_is_of_one_source_and_may_go_without_its_scale(source: str) -> None:
    config = pool(
        group_size=1,
        uniform_share=1.0,
        predicted_baseline=True,
        predicted_scale=source == "features",
        **({} if source == "default" else {"baseline_source": source}),
        states=None,
        predictor={"forgetting": 0.5, "history_trials": 2.0},
    )
    allocator, ids = create(config), "abcdefghij"
    script = {id_: [1.0, 0.0, 1.0] if id_ == "a" else [1.0, 1.0, 1.0] if id_ < "f" else [0.0, 0.0, 0.0] for id_ in ids}
    reports = []
    for step in range(3):
        rewards = {id_: values[step:] for id_, values in script.items()}
        reports.append(run_script(allocator, ids, budget=10, rewards=rewards, step=step)[1])
    terms = reports[-1].estimator
    # At step 2 a sample of step 0 counts 1/4 and one of step 1 counts 1/2: 1/4 of 3/4 successes for a, 3/4 for b.
    own = {"a": (1 / 4, 3 / 4), "b": (3 / 4, 3 / 4), "f": (0.0, 3 / 4)}
    # Without features all prompts have the same prediction, here recovered from a's own accept rate.
    common = (terms.accept_rates["a"] * (2 + 3 / 4) - 1 / 4) / 2
    assert 0.4 < common < 0.6
    for id_, (successes, trials) in own.items():
        expected = {
            "default": (successes + 1 / 2) / (trials + 1),
            "history": (successes + 1 / 2) / (trials + 1),
            "features": common,
            "both": (2 * common + successes) / (2 + trials),
        }[source]
        assert terms.baselines[id_] == pytest.approx(expected, rel=1e-9)
        if source == "features":
            assert terms.deviations[id_] == pytest.approx(np.sqrt(common * (1 - common)), rel=1e-9)
    assert source == "features" or terms.deviations == {}


def test_settings_of_a_predicted_baseline_need_one() -> None:
    for settings in ({"predicted_scale": False}, {"baseline_source": "both"}):
        with pytest.raises(ValueError, match="are of the predicted baseline; write predicted_baseline=true, or leave"):
            pool(**settings)


def test_a_resumed_run_goes_on_to_the_bit() -> None:
    config = pool(exploration="thompson", undo_selection=True)
    allocator, resumed = create(config, seed=3), create(config, seed=3)
    run_steps(allocator, steps=range(4), norms=(1.0, 2.0, 3.0))
    resumed.load_state_dict(json.loads(json.dumps(allocator.state_dict(), allow_nan=False)))
    went_on = [run_steps(each, steps=range(4, 7), norms=(3.0, 2.0, 1.0)) for each in (allocator, resumed)]
    assert went_on[0][0] == went_on[1][0]
    assert went_on[0][1].metrics == went_on[1][1].metrics
    assert went_on[0][1].estimator == went_on[1][1].estimator
    assert allocator.state_dict() == resumed.state_dict()
    other = create(config, seed=4)
    other.load_state_dict(json.loads(json.dumps(allocator.state_dict())))
    assert run_steps(other, steps=range(7, 8))[0] != run_steps(allocator, steps=range(7, 8))[0]


def test_exploration_spreads_over_uncertain_prompts() -> None:
    """Of prompts believed to be near 1 and alike, draws favour another one at each step."""
    config = GVMOnlineAllocatorConfig(score="neyman", exploration="thompson")
    allocator = create(config)
    run_steps(allocator, steps=range(3), size=24, budget=192, rates=lambda states: np.full(len(states), 0.95))
    splits = []
    for step in (3, 4):
        allocation = allocator.plan(prompts(range(9000, 9024)), step=step, budget=192, states=levels(24))
        splits.append(list(allocation.counts.values()))
    assert splits[0] != splits[1]
    assert len(set(splits[0])) > 3
