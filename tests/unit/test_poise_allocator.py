"""POISE: baselines from the other sample, worked out by hand, and where their features come from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gvm_ray.algorithms import create_algorithm
from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.base import RunShape
from gvm_ray.allocators.rivals.poise import POISEAllocatorConfig
from gvm_ray.config import parse_config
from gvm_ray.learner.learner import Learner
from gvm_ray.types import AllocationReport, EstimatorTerms
from tests.builders import outcome, prompts
from tests.learner_cases import SurrogateLoss, build_tiny_model, learner_config, ragged_groups

NAN = float("nan")


def poise(**settings):
    config = POISEAllocatorConfig(**{"ridge": 8.0, **settings})
    return AllocationDriver.of(config, accept_threshold=0.5, seed=1)


def run(
    driver: AllocationDriver, samples: dict[str, list[tuple[float, float]]], *, step: int, states: bool = True
) -> AllocationReport:
    """A step whose prompts' samples have these (state, reward)."""
    allocation = driver.plan(prompts(samples), step=step, budget=sum(map(len, samples.values())))
    assert allocation.needs_response_states
    assert dict(allocation.counts) == {id_: len(pairs) for id_, pairs in samples.items()}
    outcomes = [
        outcome(
            id_,
            [reward for _, reward in pairs],
            response_states=np.array([[x] for x, _ in pairs], dtype=np.float32) if states else None,
        )
        for id_, pairs in samples.items()
    ]
    assert driver.observe(outcomes, step=step).total == 0
    return driver.report(step=step)


def learned(driver: AllocationDriver) -> AllocationReport:
    """Sixteen samples: states of 1 beside rewards of 1, states of -1 beside rewards of 0."""
    return run(driver, {f"k{i}": [(x, float(x > 0))] * 2 for i, x in enumerate([1.0, -1.0] * 4)}, step=0)


def test_baselines_come_from_the_other_sample_by_ridge_regression() -> None:
    driver = poise()
    assert learned(driver).estimator.sample_baselines == {}  # nothing was known before
    # The one component is the state itself, +-1. The constant is the mean 1/2, and the slope sum x y / (16 + ridge):
    # x (y - 1/2) = 1/2 for each of 16 samples, so 8 / (16 + 8) = 1/3. Predictions are 1/2 +- 1/3.
    report = run(driver, {"a": [(1.0, 0.0), (-1.0, 1.0)], "b": [(1.0, 1.0), (1.0, NAN)], "c": [(0.0, 1.0)] * 2}, step=1)
    baselines = report.estimator.sample_baselines
    assert {id_: list(of) for id_, of in baselines.items()} == {"a": [0, 1], "c": [0, 1]}  # b has one scored sample
    assert list(baselines["a"].values()) == pytest.approx([1 / 2 - 1 / 3, 1 / 2 + 1 / 3], abs=1e-6)
    assert list(baselines["c"].values()) == pytest.approx([1 / 2, 1 / 2], abs=1e-6)
    errors = [(0 - 1 / 6) ** 2, (1 - 5 / 6) ** 2, 1 / 4, 1 / 4]
    assert report.metrics["allocation/baseline_square_error"] == pytest.approx(np.mean(errors), abs=1e-6)


def test_of_more_than_two_the_predictions_from_the_others_are_averaged() -> None:
    driver = poise()
    learned(driver)
    report = run(driver, {"a": [(1.0, 0.0), (-1.0, 1.0), (-1.0, 1.0)]}, step=1)
    assert list(report.estimator.sample_baselines["a"].values()) == pytest.approx([1 / 6, 1 / 2, 1 / 2], abs=1e-6)


def test_a_samples_own_reward_has_no_part_in_its_baseline() -> None:
    reports = []
    for reward in (0.0, 1.0):
        driver = poise()
        learned(driver)
        reports.append(run(driver, {"a": [(0.5, reward), (-0.5, 1.0)]}, step=1))
    first, second = (report.estimator.sample_baselines["a"] for report in reports)
    assert first == second


def test_a_resumed_run_predicts_the_same_to_the_last_bit() -> None:
    driver, resumed = poise(components=2), poise(components=2)
    rng = np.random.default_rng(0)
    for step in range(3):
        run(driver, {id_: [(x, float(x > 0)) for x in rng.normal(size=4)] for id_ in "abcd"}, step=step)
    resumed.load_state_dict(json.loads(json.dumps(driver.state_dict())))
    assert resumed.state_dict() == driver.state_dict()
    asked = {id_: [(x, 1.0) for x in rng.normal(size=2)] for id_ in "xyz"}
    first, second = (run(each, asked, step=3).estimator.sample_baselines for each in (driver, resumed))
    assert first == second


def test_the_window_keeps_the_latest_samples() -> None:
    driver = poise(window_rows=20)
    for step in range(3):
        run(driver, {id_: [(0.0, float(step))] * 4 for id_ in "abc"}, step=step)
    assert driver.state_dict()["strategy"]["targets"] == [1.0] * 8 + [2.0] * 12


def test_without_states_of_responses_the_algorithms_own_baselines_stay() -> None:
    driver = poise()
    learned(driver)
    assert run(driver, {"a": [(1.0, 0.0)] * 2}, step=1, states=False).estimator.sample_baselines == {}


def test_advantages_take_the_baseline_of_their_sample() -> None:
    settings = {"name": "x", "model": {"type": "scratch"}, "prompts": {"train": {"type": "arithmetic"}}}
    config = parse_config({**settings, "num_steps": 1, "algorithm": {"type": "rloo"}, "allocator": {"type": "poise"}})
    algorithm = create_algorithm(config.algorithm, accept_threshold=0.5)
    terms = EstimatorTerms(
        num_prompts=2, sample_baselines={"a": {4: 0.25, 5: 0.5}, "b": {1: 0.1}}, baselines={"b": 0.2}, scales={"b": 0.5}
    )
    outcomes = [outcome("a", [1.0, 0.0], first_index=4), outcome("b", [1.0, 0.0]), outcome("c", [1.0, 0.0])]
    groups = algorithm.build_batch(outcomes, step=0, terms=terms).groups
    assert [group.advantages.tolist() for group in groups] == [
        [0.75, -0.5],
        [0.8 / 0.5, -0.1 / 0.5],
        [1.0, -1.0],  # of RLOO
    ]


def test_response_states_equal_a_forward_pass_of_each_sample_alone(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path)
    groups = ragged_groups()
    learner = Learner(learner_config(), base_path=base, token_loss=SurrogateLoss())
    model = AutoModelForCausalLM.from_pretrained(base).model
    for group, states in zip(groups, learner.response_states(groups), strict=True):
        assert states.shape[0] == len(group)
        for each, row in zip(group.completions, states, strict=True):
            ids = torch.from_numpy(np.concatenate([group.prompt.token_ids, each.token_ids])).long()
            with torch.no_grad():
                hidden = model(ids.unsqueeze(0)).last_hidden_state[0]
            np.testing.assert_allclose(row, torch.cat([hidden.mean(0), hidden[-1]]).numpy(), atol=1e-5)


def test_a_group_of_one_is_refused() -> None:
    shape = RunShape(prompts_per_step=4, samples_per_prompt=1, max_staleness=0, checkpoint_every_steps=1)
    with pytest.raises(ValueError, match="write samples_per_prompt=2"):
        POISEAllocatorConfig().check_fits(shape)
