"""SPO: tracked values by hand, who is drawn by them, and measurements of new prompts."""

import json
from typing import Any

import numpy as np
import pytest

from gvm_ray.algorithms import create_algorithm
from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.base import RunShape
from gvm_ray.allocators.rivals.spo import SPOAllocatorConfig
from gvm_ray.config import parse_config
from gvm_ray.config.strategy import GRPOConfig, ReinforcePlusPlusConfig
from gvm_ray.maths.rival_rules import draw_by_uncertainty
from tests.allocator_cases import all_equal, run_script, run_step
from tests.builders import NAN, outcome, prompts


def spo(**settings: Any) -> AllocationDriver:
    return AllocationDriver.of(SPOAllocatorConfig(**settings), accept_threshold=0.5, seed=1)


def tracked(driver: AllocationDriver) -> dict[str, list[float]]:
    return driver.state_dict()["strategy"]["tracked"]


def test_a_value_is_read_before_its_sample_and_then_decayed() -> None:
    driver = spo()
    script = {"a": [1.0, 1.0, 0.0], "b": [0.0, 0.25, 1.0]}
    reports = []
    for step in range(3):
        rewards = {id_: values[step:] for id_, values in script.items()}
        rounds, report = run_script(driver, "ab", budget=2, rewards=rewards, step=step)
        assert [dict(sorted(counts.items())) for counts in rounds] == [{"a": 1, "b": 1}]
        reports.append(report.estimator)
    # a: (1/2, 1/2), then (7/16 + 1, 7/16) = (23/16, 7/16), then (7/8 * 23/16 + 1, 7/8 * 7/16) = (289/128, 49/128)
    assert [terms.baselines["a"] for terms in reports] == pytest.approx([1 / 2, 23 / 30, 289 / 338], rel=1e-12)
    # b: (7/16, 7/16 + 1), then (7/8 * 7/16 + 1/4, 7/8 * 23/16 + 3/4) = (81/128, 257/128): 0.25 counts as a quarter
    assert [terms.baselines["b"] for terms in reports] == pytest.approx([1 / 2, 7 / 30, 81 / 338], rel=1e-12)
    assert tracked(driver)["a"] == pytest.approx([7 / 8 * 289 / 128, 7 / 8 * 49 / 128 + 1], rel=1e-12)
    assert all(terms.scales == {} and terms.num_prompts == 2 for terms in reports)


def test_a_step_of_the_published_algorithm_by_hand() -> None:
    """Values 3/4 and 1/4, rewards 1 and 0, and 2 and 6 tokens: A = 1/4, -1/4, normalised."""
    driver = spo()
    driver.load_state_dict({"prompts": {}, "strategy": {"tracked": {"a": [3.0, 1.0], "b": [1.0, 3.0]}}})
    driver.plan(prompts("ab"), step=0, budget=2)
    outcomes = [outcome("a", [1.0], num_tokens=[2]), outcome("b", [0.0], num_tokens=[6])]
    driver.observe(outcomes, step=0)
    terms = driver.report(step=0).estimator

    def advantages(algorithm) -> list[float]:
        batch = create_algorithm(algorithm, accept_threshold=0.5).build_batch(outcomes, step=0, terms=terms)
        return [float(group.advantages[0]) for group in batch.groups]

    # SPO: mean 0, variance 2 (1/4)^2 / 1, so A / sigma = 1 / sqrt(2)
    root = 0.25 / (np.sqrt(1 / 8) + 1e-8)
    assert advantages(GRPOConfig(advantage_normalization="samples")) == pytest.approx([root, -root], rel=1e-12)
    # SPO++: mean (2/4 - 6/4) / 8 = -1/8; variance (2 (3/8)^2 + 6 (1/8)^2) / 7 = (24/64) / 7
    sigma = np.sqrt(3 / 56) + 1e-8
    expected = [0.375 / sigma, -0.125 / sigma]
    assert advantages(GRPOConfig(advantage_normalization="tokens")) == pytest.approx(expected, rel=1e-12)
    reinforce = ReinforcePlusPlusConfig(advantage_normalization="tokens", epsilon=1e-8)
    assert advantages(reinforce) == pytest.approx(expected, rel=1e-12)


def test_prompts_are_drawn_without_replacement_by_their_uncertainty() -> None:
    # weights sqrt(v (1 - v)) + 0.05 of v = 1/2, 1/10, 1 and 1.3 (as 1): 0.55, 0.35, 0.05 and 0.05, which sum to 1
    rng = np.random.default_rng(0)
    orders = np.array([draw_by_uncertainty([0.5, 0.1, 1.0, 1.3], floor=0.05, rng=rng) for _ in range(20_000)])
    assert (np.sort(orders, axis=1) == np.arange(4)).all()
    first = np.bincount(orders[:, 0], minlength=4) / len(orders)
    np.testing.assert_allclose(first, [0.55, 0.35, 0.05, 0.05], atol=0.015)
    # after the first prompt, the second in proportion to what is left
    second = np.bincount(orders[orders[:, 0] == 0, 1], minlength=4) / (orders[:, 0] == 0).sum()
    np.testing.assert_allclose(second, [0, 0.35 / 0.45, 0.05 / 0.45, 0.05 / 0.45], atol=0.02)
    assert set(draw_by_uncertainty([1.0, 0.5, 0.0], floor=0.0, rng=rng).tolist()) == {0, 1, 2}


def test_the_step_draws_by_the_tracked_values() -> None:
    driver = spo(exploration=0.0)
    known = {id_: [1e9, 1e-9] for id_ in "abcdefg"} | {"h": [1.0, 1.0], "i": [1.0, 2.0]}
    driver.load_state_dict({"prompts": {}, "strategy": {"tracked": known}})
    rounds, report = run_step(driver, "abcdefghi", budget=2, rewards=all_equal())
    assert [set(allocation.counts) for allocation in rounds] == [{"h", "i"}]
    assert report.estimator.baselines == pytest.approx({"h": 1 / 2, "i": 1 / 3})
    assert set(tracked(driver)) == set(known)


def test_new_prompts_are_measured_within_the_budget_and_not_trained_on() -> None:
    driver = spo(offline_samples=8)
    driver.load_state_dict({"prompts": {}, "strategy": {"tracked": {"c": [2.0, 2.0]}}})
    rounds, report = run_step(driver, "abc", budget=19, rewards=all_equal(solved="a"))
    assert [dict(sorted(allocation.counts.items())) for allocation in rounds] == [
        {"a": 8, "b": 8},
        {"a": 1, "b": 1, "c": 1},
    ]
    assert [allocation.trained_on for allocation in rounds] == [False, True]
    # a solved 8 of 8, b 4: (8 * 8.5 / 9, 8 * 0.5 / 9) and (8 * 4.5 / 9, 8 * 4.5 / 9)
    assert report.estimator.baselines == pytest.approx({"a": 8.5 / 9, "b": 1 / 2, "c": 1 / 2}, rel=1e-12)
    assert report.histograms["samples_per_prompt"].tolist() == [1, 1, 1]
    assert report.metrics["allocation/measured"] == 2
    assert tracked(driver)["a"] == pytest.approx([7 / 8 * 68 / 9 + 1, 7 / 8 * 4 / 9], rel=1e-12)
    again, _ = run_step(driver, "abc", budget=3, rewards=all_equal(), step=1)
    assert [sum(allocation.counts.values()) for allocation in again] == [3]


def test_what_is_too_little_for_another_measurement_goes_to_prompts_that_are_known() -> None:
    for step in range(20):
        driver = spo(offline_samples=4)
        driver.load_state_dict({"prompts": {}, "strategy": {"tracked": {"c": [9e9, 1.0], "d": [9e9, 1.0]}}})
        counts = [dict(a.counts) for a in run_step(driver, "abcd", budget=7, rewards=all_equal(), step=step)[0]]
        measured = counts[0] if len(counts) == 2 else {}
        assert sum(sum(each.values()) for each in counts) == 7
        assert len(measured) == 1  # a second one doesn't fit, and the two samples left go to c and d
        assert counts[-1] == dict.fromkeys(counts[-1], 1)
        assert set(counts[-1]) == {"c", "d", *measured}
    # nothing else to take: the rest of 3 goes to the measured prompt
    counts = [dict(a.counts) for a in run_step(spo(offline_samples=4), "ab", budget=8, rewards=all_equal())[0]]
    assert counts in [[{"a": 4}, {"a": 4}], [{"b": 4}, {"b": 4}]]


def test_more_samples_than_prompts_are_split_evenly_and_decay_a_value_once() -> None:
    driver = spo()
    rounds, _ = run_step(driver, "ab", budget=5, rewards=all_equal(solved="ab"))
    assert sorted(rounds[0].counts.values()) == [2, 3]
    assert sorted(tracked(driver).values()) == [[7 / 16 + 2, 7 / 16], [7 / 16 + 3, 7 / 16]]


def test_unscored_samples_leave_the_value_as_it_was() -> None:
    driver = spo(offline_samples=2)
    _, report = run_step(driver, "ab", budget=6, rewards=lambda _, n: [NAN] * n)
    assert report.estimator.baselines == {"a": 1 / 2, "b": 1 / 2}
    assert tracked(driver) == {}


def test_overlapping_steps_read_the_values_of_their_own_time() -> None:
    driver = spo()
    for step in (0, 1):
        driver.plan(prompts("a"), step=step, budget=1)
    for step, reward in ((1, 1.0), (0, 0.0)):
        driver.observe([outcome("a", [reward])], step=step)
    assert [driver.report(step=step).estimator.baselines["a"] for step in (0, 1)] == [1 / 2, 1 / 2]
    assert tracked(driver)["a"] == pytest.approx([7 / 8 * 23 / 16, 7 / 8 * 7 / 16 + 1], rel=1e-12)


def test_it_resumes_to_the_bit() -> None:
    driver, resumed = spo(offline_samples=2), spo(offline_samples=2)
    for step in range(3):
        run_step(driver, "abcdefgh", budget=10, rewards=all_equal(solved="ab", failed="c"), step=step)
    resumed.load_state_dict(json.loads(json.dumps(driver.state_dict())))
    both = [run_step(each, "abcdefgh", budget=10, rewards=all_equal(solved="ab"), step=3) for each in (driver, resumed)]
    assert [dict(a.counts) for a in both[0][0]] == [dict(a.counts) for a in both[1][0]]
    assert both[0][1].estimator == both[1][1].estimator
    assert driver.state_dict() == resumed.state_dict()


def test_settings_that_can_not_spend_the_budget_are_refused() -> None:
    shape = RunShape(prompts_per_step=4, samples_per_prompt=2, max_staleness=0, checkpoint_every_steps=1)
    with pytest.raises(ValueError, match=r"candidates_per_step=7 is below the step's budget of 8 .*; write 8 or more"):
        SPOAllocatorConfig(candidates_per_step=7).check_fits(shape)
    with pytest.raises(ValueError, match=r"offline_samples=8 leaves nothing of the step's budget of 8 .*; write 7 or"):
        SPOAllocatorConfig(offline_samples=8).check_fits(shape)
    SPOAllocatorConfig(candidates_per_step=8, offline_samples=7).check_fits(shape)


def test_the_whole_set_is_shown_and_single_samples_go_with_grpo() -> None:
    run: dict[str, Any] = {"name": "x", "model": {"type": "scratch"}, "prompts": {"train": {"type": "arithmetic"}}}
    config = parse_config({**run, "allocator": {"type": "spo"}, "algorithm": {"type": "grpo"}})
    assert config.candidates_per_step == 16_384
    assert config.needs.states is None
