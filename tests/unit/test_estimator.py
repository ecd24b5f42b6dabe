"""Arms on hand-made pools: what is measured agrees with closed forms and with exact expectations."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gvm_ray.algorithms import create_algorithm
from gvm_ray.config import RunConfig
from gvm_ray.exceptions import DataError
from gvm_ray.lab.estimator.measure import EstimatorRow, algorithm_rows, csv_text, markdown
from gvm_ray.lab.estimator.moments import SampleSizes, measured_error
from gvm_ray.lab.estimator.repeats import batch_coefficients, repeated_steps
from gvm_ray.lab.estimator.truth import baseline_moments, exact_moments, prompt_gradients, target_gradient
from gvm_ray.types import EstimatorTerms
from tests.estimator_pools import gaussian_pool, planned_arm, run_config, settings

RATES = [0.1, 0.4, 0.6, 0.9, 1.0, 0.0]
ALLOCATORS: list[dict[str, Any]] = [
    {"type": "uniform"},
    {"type": "gvm"},
    {"type": "gvm_online", "min_samples": 2},
    {"type": "neyman"},
    {"type": "gvm_pool", "group_size": 4, "score": "norm_neyman", "uniform_share": 0.1},
]


def rows_of(algorithm: dict[str, Any], *, repeats: int = 30, warm_up_steps: int = 2) -> list[EstimatorRow]:
    pool = gaussian_pool(RATES, num_warm_up=10)
    arms = [planned_arm(allocator, prompts=6, algorithm=algorithm) for allocator in ALLOCATORS]
    estimator = settings(prompts=6, num_repeats=repeats, warm_up_steps=warm_up_steps)
    return algorithm_rows("algorithm", arms, pool, estimator=estimator, say=lambda _: None)


def uniform_error_of(config: RunConfig, rates: list[float], *, repeats: int):
    pool = gaussian_pool(rates)
    steps = repeated_steps(
        config, pool, estimator=settings(prompts=len(rates), num_repeats=repeats, warm_up_steps=0), arm=0
    )
    return pool, measured_error(steps.estimates, target_gradient(config, pool))


def test_uniform_variance_of_solved_prompts_is_sigma_squared_over_n_m() -> None:
    config = run_config(prompts=5, samples=4)
    pool, error = uniform_error_of(config, [1.0] * 5, repeats=600)
    sigma_squared = prompt_gradients(config, pool).spreads[0]
    assert abs(error.variance - sigma_squared.mean() / (4 * 5)) < 4 * error.deviations[0] < 0.4 * error.variance
    assert abs(error.bias_squared) < 4 * error.deviations[1] < 0.1 * error.variance


def test_raft_target_is_the_mean_over_prompts_of_the_accepted_samples_mean() -> None:
    pool = gaussian_pool(RATES)
    means = [pool.gradients[own[pool.rewards[own] > 0]].mean(axis=0) for own in pool.samples if pool.rewards[own].any()]
    target = target_gradient(run_config(prompts=6), pool)
    np.testing.assert_allclose(target, np.sum(means, axis=0) / 6, rtol=1e-5)


@pytest.mark.parametrize("algorithm", ["raft", "grpo", "dr_grpo", "rloo"])
def test_measured_uniform_agrees_with_its_exact_expectation(algorithm: str) -> None:
    config = run_config(prompts=6, samples=4, algorithm={"type": algorithm})
    pool, error = uniform_error_of(config, RATES, repeats=600)
    moments = exact_moments(config, pool, target=target_gradient(config, pool), max_samples=4)
    assert moments is not None
    exact = moments.expected_error(SampleSizes(counts=np.full((1, 6), 4.0), factors=np.full((1, 6), 1 / 6)))
    of_variance, of_bias, of_error = error.deviations
    assert abs(error.variance - exact.variance) < 4 * of_variance < 0.5 * exact.variance
    assert abs(error.bias_squared - exact.bias_squared) < 4 * of_bias
    assert abs(error.mean_squared_error - exact.mean_squared_error) < 4 * of_error


@pytest.mark.parametrize("algorithm", [{"type": "raft++"}, {"type": "grpo"}])
def test_no_rule_with_the_truth_beats_the_oracle_in_expectation(algorithm: dict[str, Any]) -> None:
    rows = rows_of(algorithm)
    (oracle,) = [row for row in rows if row.arm == "oracle"]
    exact = [row for row in rows if row.variant in ("exact", "its n", "true p, G")]
    assert {row.arm for row in exact} == {"oracle", *(allocator["type"] for allocator in ALLOCATORS)}
    assert all(row.mean_squared_error >= oracle.mean_squared_error for row in exact)
    assert oracle.error_ratio < 1


def test_every_arm_spends_the_budget_and_ratios_are_to_the_baseline() -> None:
    rows = [row for row in rows_of({"type": "raft++"}) if row.variant == "measured"]
    assert [row.num_samples for row in rows] == [48.0] * len(ALLOCATORS)
    assert [row.num_tokens for row in rows] == [5 * 48.0] * len(ALLOCATORS)
    assert rows[0].arm == "uniform"
    assert (rows[0].variance_ratio, rows[0].error_ratio, rows[0].max_samples) == (1, 1, 8)
    for row in rows[1:]:
        assert row.error_ratio == pytest.approx(row.mean_squared_error / rows[0].mean_squared_error)
        assert row.error_ratio_interval is not None
        assert row.error_ratio_interval[0] < row.error_ratio < row.error_ratio_interval[1]
        assert row.max_samples is not None
        assert row.max_samples > 8


@pytest.mark.parametrize(
    "algorithm", [{"type": "raft", "weighting": "token_mean"}, {"type": "grpo", "weighting": "inverse"}]
)
def test_weightings_without_separate_groups_are_measured_and_have_no_exact_rows(algorithm: dict[str, Any]) -> None:
    assert {row.variant for row in rows_of(algorithm)} == {"measured"}


def test_only_allocators_that_settle_n_before_they_sample_have_an_expectation_for_it() -> None:
    rows = [row for row in rows_of({"type": "raft++"}, repeats=200) if row.variant in ("measured", "its n")]
    by_arm = {arm: [row for row in rows if row.arm == arm] for arm in dict.fromkeys(row.arm for row in rows)}
    assert [row.variant for row in by_arm.pop("gvm")] == ["measured"]
    for measured, exact in by_arm.values():
        assert measured.deviations is not None
        assert abs(measured.mean_squared_error - exact.mean_squared_error) < 4 * measured.deviations[2]
        assert abs(measured.bias_squared - exact.bias_squared) < 4 * measured.deviations[1]


def test_fewer_prompts_than_targets_add_the_variance_of_choosing_them() -> None:
    pool = gaussian_pool([0.9] * 8)
    whole, half = (
        algorithm_rows(
            "raft",
            [planned_arm({"type": "uniform"}, prompts=prompts, samples_per_prompt=32 // prompts)],
            pool,
            estimator=settings(prompts=8, prompts_per_step=prompts, num_repeats=300, warm_up_steps=0),
            say=lambda _: None,
        )
        for prompts in (8, 4)
    )
    for rows in (whole, half):
        measured, exact, _ = rows
        assert (measured.variant, exact.variant) == ("measured", "its n")
        assert measured.deviations is not None
        assert abs(measured.variance - exact.variance) < 4 * measured.deviations[0]
    assert half[1].variance > 1.5 * whole[1].variance


def test_a_warm_up_makes_learning_allocators_better_informed() -> None:
    pool = gaussian_pool([0.02] * 3 + [1.0] * 3, num_warm_up=30)
    arm = planned_arm({"type": "neyman"}, prompts=6)
    spread = [
        repeated_steps(
            arm.config, pool, estimator=settings(prompts=6, num_repeats=5, warm_up_steps=steps), arm=0
        ).max_samples
        for steps in (0, 5)
    ]
    assert spread[0] == 8  # nothing known: uniform
    assert spread[1] > 8


SINGLES = {"type": "gvm_pool", "score": "norm_neyman", "uniform_share": 0.1}


def test_an_arm_with_a_predicted_baseline_is_measured_beside_groups_and_single_samples() -> None:
    pool = gaussian_pool(RATES, num_warm_up=30)
    arms = [planned_arm(each, prompts=6, algorithm={"type": "grpo"}) for each in ({"type": "uniform"}, SINGLES)]
    estimator = settings(prompts=6, num_repeats=40, warm_up_steps=3)
    rows = algorithm_rows("grpo", arms, pool, estimator=estimator, say=lambda _: None)
    (single,) = [row for row in rows if row.arm == "gvm_pool"]  # what it draws depends on predictions: no exact row
    assert (single.variant, single.num_samples) == ("measured", 48.0)
    assert single.error_ratio == pytest.approx(single.mean_squared_error / rows[0].mean_squared_error)
    groups, right = (
        {row.variant: row for row in rows if row.arm == arm}
        for arm in ("groups of random prompts", "the same, true baseline")
    )
    assert set(groups) == {f"{size} a prompt" for size in (2, 4, 8)}  # a group of one teaches GRPO nothing
    assert set(right) == {f"{size} a prompt" for size in (1, 2, 4, 8)}
    assert min(right.values(), key=lambda row: row.variance).variant == "1 a prompt"
    assert right["1 a prompt"].mean_squared_error < groups["8 a prompt"].mean_squared_error
    assert "arXiv 2605.07579" in markdown(rows, baseline="uniform", facts={})


def test_raft_has_exact_rows_for_single_samples_whose_baselines_it_does_not_take() -> None:
    pool = gaussian_pool(RATES, num_warm_up=30)
    arms = [planned_arm(each, prompts=6, algorithm={"type": "raft"}) for each in ({"type": "uniform"}, SINGLES)]
    estimator = settings(prompts=6, num_repeats=20, warm_up_steps=3)
    rows = algorithm_rows("raft", arms, pool, estimator=estimator, say=lambda _: None)
    variants = {row.variant for row in rows if row.arm == "gvm_pool"}
    assert variants == {"measured", "its n", "true p, G", "true p, G, undone"}
    assert not [row for row in rows if "random prompts" in row.arm]


def test_single_samples_vary_as_proposition_1_of_poise_says() -> None:
    config, pool = run_config(prompts=6, algorithm={"type": "grpo"}), gaussian_pool(RATES)
    moments = baseline_moments(config, pool, target=target_gradient(config, pool), max_samples=4)
    assert moments is not None
    rates = np.clip([pool.rewards[own].mean() for own in pool.samples], 0.02, 0.98)
    terms = [  # of each prompt's samples: (r - p) / sqrt(p (1 - p)) times the gradient
        ((pool.rewards[own] - rate) / np.sqrt(rate * (1 - rate)))[:, None] * pool.gradients[own]
        for own, rate in zip(pool.samples, rates, strict=True)
    ]
    within = np.mean([each.var(axis=0).sum() for each in terms])
    between = np.stack([each.mean(axis=0) for each in terms]).var(axis=0).sum()
    for size in (1, 2, 4):
        error = moments.error_of_random_prompts(size, budget=48)
        assert error.variance == pytest.approx((within + size * between) / 48, rel=1e-5)
        assert error.bias_squared == pytest.approx(moments.error_of_random_prompts(1, budget=48).bias_squared)


def test_groups_of_random_prompts_vary_as_measured() -> None:
    config, pool = run_config(prompts=6, algorithm={"type": "grpo"}), gaussian_pool(RATES)
    target = target_gradient(config, pool)
    moments = exact_moments(config, pool, target=target, max_samples=4)
    assert moments is not None
    error = moments.error_of_random_prompts(4, budget=48)
    algorithm = create_algorithm(config.algorithm, accept_threshold=config.rewards.accept_threshold)
    rng = np.random.default_rng(0)
    estimates = []
    for _ in range(600):
        chosen = rng.integers(6, size=12)
        outcomes = [
            replace(pool.draw(int(prompt), num=4, first_index=0, rng=rng), prompt_id=str(place))
            for place, prompt in enumerate(chosen)
        ]
        batch = algorithm.build_batch(outcomes, step=0, terms=EstimatorTerms(num_prompts=12))
        estimates.append(batch_coefficients(batch, pool) @ pool.gradients)
    measured = measured_error(np.array(estimates), target)
    assert abs(measured.variance - error.variance) < 4 * measured.deviations[0] < 0.5 * error.variance
    assert abs(measured.bias_squared - error.bias_squared) < 4 * measured.deviations[1]


def test_no_true_baseline_where_the_algorithm_has_none() -> None:
    pool = gaussian_pool(RATES)
    for algorithm in ({"type": "raft++"}, {"type": "grpo", "weighting": "token_mean"}, {"type": "reinforce++"}):
        config = run_config(prompts=6, algorithm=algorithm)
        assert baseline_moments(config, pool, target=np.ones(16), max_samples=4) is None


def test_a_pool_without_accepted_samples_says_what_to_do() -> None:
    pool = gaussian_pool([0.0] * 3)
    with pytest.raises(DataError, match=r"accept_threshold=\S+ is reached by 0 of 120 samples of 3 prompts; measure"):
        target_gradient(run_config(prompts=3), pool)


def test_markdown_and_csv_hold_the_same_rows() -> None:
    rows = rows_of({"type": "raft++"}, repeats=3, warm_up_steps=0)
    text = markdown(rows, baseline="uniform", facts={"pool": "by hand"})
    assert text.count("\n| ") == len(rows) + 1
    assert "- pool: by hand" in text
    header, *lines = csv_text(rows).splitlines()
    assert len(lines) == len(rows)
    assert {"error_ratio_low", "variance_deviation"} <= set(header.split(","))
