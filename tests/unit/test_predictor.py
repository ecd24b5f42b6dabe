"""What is expected of prompts: recovered from features, following a drift, giving way to a prompt's own samples."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from gvm_ray.allocators.predictive import PredictorConfig
from gvm_ray.allocators.predictor import StatsPredictor
from gvm_ray.maths.statistics import brier_score
from gvm_ray.types import Float64Array, FloatArray, GroupOutcome, Prompt
from tests.builders import NAN, outcome, prompts, trained_norms


def predictor(**settings: Any) -> StatsPredictor:
    return StatsPredictor(PredictorConfig(**settings), accept_threshold=0.5, seed=0)


class Task:
    """A policy whose hidden states tell, on 4 of 64 axes, how likely it solves a prompt."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.axis = np.zeros(64)
        self.axis[:4] = 1.2

    def states(self, count: int) -> FloatArray:
        return self.rng.normal(size=(count, 64)).astype(np.float32)

    def rates(self, states: FloatArray, *, shift: float = 1.0) -> Float64Array:
        return expit(states @ self.axis + shift)

    def outcomes(self, group: Sequence[Prompt], rates: Float64Array, *, num_samples: int = 8) -> list[GroupOutcome]:
        solved = self.rng.random((len(group), num_samples)) < rates[:, None]
        return [outcome(prompt.prompt_id, each.astype(float)) for prompt, each in zip(group, solved, strict=True)]


def train(task: Task, learner: StatsPredictor, *, steps: range, shift: float = 1.0, size: int = 64) -> None:
    """Steps on prompts that are all new."""
    for step in steps:
        group = prompts(size, first=1000 * (step + 1))
        states = task.states(size)
        learner.observe(
            group, learner.rows(group, states), task.outcomes(group, task.rates(states, shift=shift)), step=step
        )


def test_accept_rates_of_unseen_prompts_are_recovered_from_their_states() -> None:
    task, learner = Task(), predictor()
    train(task, learner, steps=range(10))
    states = task.states(400)
    unseen = prompts(400)
    rates = task.rates(states)
    estimates = learner.predict(unseen, learner.rows(unseen, states), step=10)
    assert estimates.learned
    error = brier_score(estimates.accept_rates, rates)
    assert error < 0.1 * brier_score(np.full(400, rates.mean()), rates)
    assert np.abs(estimates.accept_rates.mean() - rates.mean()) < 0.03
    outcomes = task.rng.random(400) < rates
    assert brier_score(estimates.accept_rates, outcomes) < 0.75 * brier_score(np.full(400, outcomes.mean()), outcomes)


def test_states_that_are_noise_predict_the_mean() -> None:
    task, learner = Task(), predictor()
    task.axis[:] = 0
    train(task, learner, steps=range(10))
    unseen = prompts(400)
    rates = learner.predict(unseen, learner.rows(unseen, task.states(400)), step=10).accept_rates
    assert np.abs(rates - expit(1.0)).max() < 0.25
    assert np.abs(rates - expit(1.0)).mean() < 0.08


@pytest.mark.parametrize("forgetting", [0.5, 1.0])
def test_forgetting_follows_a_policy_that_got_better(forgetting: float) -> None:
    task, learner = Task(), predictor(forgetting=forgetting)
    train(task, learner, steps=range(8), shift=-2.0)
    train(task, learner, steps=range(8, 12), shift=2.0)
    states = task.states(400)
    unseen = prompts(400)
    mean = learner.predict(unseen, learner.rows(unseen, states), step=12).accept_rates.mean()
    now, before = (task.rates(states, shift=shift).mean() for shift in (2.0, -2.0))
    weights = forgetting ** (12 - np.arange(12))
    assert abs(mean - np.average([before] * 8 + [now] * 4, weights=weights)) < 0.05
    assert (abs(mean - now) < 0.1) == (forgetting < 1)


def test_a_prompts_own_samples_outweigh_its_features_once_there_are_many() -> None:
    task, learner = Task(), predictor(forgetting=1.0, history_trials=8.0)
    train(task, learner, steps=range(6), shift=3.0)  # nearly all solved
    (own,) = prompts(1)
    states = task.states(1)
    rows = learner.rows([own], states)
    means = [learner.predict([own], rows, step=6).accept_rates[0]]
    deviations = []
    for step in range(6, 10):
        learner.observe([own], rows, [outcome(own.prompt_id, [0.0] * 40)], step=step)
        estimates = learner.predict([own], rows, step=step + 1)
        means.append(estimates.accept_rates[0])
        deviations.append(estimates.deviations[0])
    assert means[0] > 0.8
    assert means == sorted(means, reverse=True)
    assert means[-1] < 8 / 168  # 160 failures against a prior worth 8 samples
    assert deviations == sorted(deviations, reverse=True)
    np.testing.assert_allclose(deviations[-1], np.sqrt(means[-1] * (1 - means[-1]) / 169))


def after_one_failure(informative: float, history_trials: Any) -> float:
    """Predicted accept rate of a prompt that features give 0.9 and that failed once, when features explain this share
    of what tells prompts apart."""
    task, learner = Task(), predictor(history_trials=history_trials, forgetting=1.0)
    hidden = task.rng.normal(size=4000) * 3.0 * (1 - informative)
    task.axis[:4] = 1.2 * informative
    for step in range(20):
        group = prompts(64, first=1000 * (step + 1))
        states = task.states(64)
        rates = expit(states @ task.axis + hidden[64 * step : 64 * step + 64])
        for visit in range(2):  # each prompt once more, in another step
            learner.observe(
                group, learner.rows(group, states), task.outcomes(group, rates, num_samples=1), step=2 * step + visit
            )
    (own,) = prompts(1)
    rows = learner.rows([own], (task.axis[None] * 2.2 / max(task.axis @ task.axis, 1e-9)).astype(np.float32))
    learner.observe([own], rows, [outcome(own.prompt_id, [0.0])], step=40)
    estimates = learner.predict([own], rows, step=41)
    return float(estimates.accept_rates[0] / estimates.feature_rates[0])


def test_the_worth_of_features_is_fitted_to_prompts_that_were_seen_more_than_once() -> None:
    assert after_one_failure(1.0, "fitted") > 0.9  # as alike as they look: one failure says little
    assert after_one_failure(0.2, "fitted") < 0.65  # nothing in the features tells them apart
    for informative in (1.0, 0.2):
        assert after_one_failure(informative, 8.0) == pytest.approx(8 / 9)


@pytest.mark.parametrize("accepted", [0.0, 1.0, NAN])
def test_predictions_are_finite_and_bounded_whatever_was_seen(accepted: float) -> None:
    task, learner = Task(), predictor()
    for step in range(5):
        group = prompts(16, first=100 * step)
        states = task.states(16)
        learner.observe(
            group, learner.rows(group, states), [outcome(p.prompt_id, [accepted] * 8) for p in group], step=step
        )
    far = 1e4 * task.states(50)
    unseen = prompts(50, first=10_000)
    estimates = learner.predict(unseen, learner.rows(unseen, far), step=5)
    assert ((estimates.accept_rates > 0) & (estimates.accept_rates < 1)).all()
    assert ((estimates.deviations > 0) & (estimates.deviations <= 0.5)).all()
    if np.isnan(accepted):
        assert not estimates.learned
        assert (estimates.accept_rates == 0.5).all()
    else:
        assert np.abs(estimates.accept_rates - accepted).mean() < 0.1
    for values in (estimates.accepted_norms, estimates.rejected_norms):
        assert (np.isfinite(values) & (values > 0)).all()


def test_one_prompt_is_predicted_from_its_features() -> None:
    task, learner = Task(), predictor()
    train(task, learner, steps=range(10))
    (one,) = prompts(1)
    high, low = (
        learner.predict([one], learner.rows([one], (sign * task.axis[None]).astype(np.float32)), step=10)
        for sign in (1, -1)
    )
    assert high.accept_rates[0] > 0.9
    assert low.accept_rates[0] < 0.3


def test_nothing_is_expected_of_few_groups_or_of_features_of_another_width() -> None:
    task, learner = Task(), predictor()
    train(task, learner, steps=range(1), size=7)
    group, states = prompts(4), task.states(4)
    assert not learner.predict(group, learner.rows(group, states), step=1).learned
    train(task, learner, steps=range(1, 2), size=7)
    assert learner.predict(group, learner.rows(group, states), step=2).learned
    wider = np.concatenate([states, states], axis=1)
    assert not learner.predict(group, learner.rows(group, wider), step=2).learned
    learner.observe(group, learner.rows(group, wider), task.outcomes(group, np.full(4, 0.5)), step=2)
    assert not learner.predict(group, learner.rows(group, wider), step=3).learned  # 4 groups of that width


def test_categories_that_never_occur_do_not_weaken_those_that_do() -> None:
    learner = predictor(source_features=("level",))
    levels = {level: prompts(8, first=100 * level, level=level) for level in range(4)}
    everyone = [prompt for group in levels.values() for prompt in group]
    rows = learner.rows(everyone, None)
    learner.observe(
        everyone,
        rows,
        [
            outcome(p.prompt_id, [1.0] * (2 * p.features["level"]) + [0.0] * (8 - 2 * p.features["level"]))
            for p in everyone
        ],
        step=0,
    )
    new = [prompt for level in range(4) for prompt in prompts(1, first=1000 + level, level=level)]
    rates = learner.predict(new, learner.rows(new, None), step=1).accept_rates
    np.testing.assert_allclose(rates, [0, 1 / 4, 2 / 4, 3 / 4], atol=0.12)


def test_norms_and_lengths_are_predicted_within_what_was_seen() -> None:
    task, learner = Task(), predictor()
    states = task.states(200)
    group = prompts(200)
    rows = learner.rows(group, states)
    accepted_norms, lengths = np.exp(0.5 * states[:, 0] + 2), np.exp(0.3 * states[:, 1] + 4)
    learner.observe(
        group,
        rows,
        [outcome(p.prompt_id, [1.0, 0.0], num_tokens=round(n)) for p, n in zip(group, lengths, strict=True)],
        step=0,
    )
    unseen, new_states = prompts(200, first=1000), task.states(200)
    before = learner.predict(unseen, learner.rows(unseen, new_states), step=1)
    assert (before.accepted_norms == 1).all()
    learner.observe_training(
        [
            trained_norms(p.prompt_id, [n, NAN], positive=[True, False])
            for p, n in zip(group, accepted_norms, strict=True)
        ]
    )
    estimates = learner.predict(unseen, learner.rows(unseen, new_states), step=1)
    for predicted, seen, true in ((estimates.accepted_norms, accepted_norms, np.exp(0.5 * new_states[:, 0] + 2)),):
        errors, spread = np.log(predicted) - np.log(true), np.log(true).std()
        assert errors.std() < 0.3 * spread
        assert predicted.min() >= seen.min() - 1
        assert predicted.max() <= seen.max() + 1
    np.testing.assert_array_equal(estimates.rejected_norms, estimates.accepted_norms)  # none was measured
    learner.observe_training([trained_norms(p.prompt_id, [3.0], positive=[False]) for p in group])
    estimates = learner.predict(unseen, learner.rows(unseen, new_states), step=1)
    np.testing.assert_allclose(estimates.rejected_norms, 3.0)
    assert estimates.accepted_norms.std() > 1


def test_its_memory_survives_json_to_the_bit() -> None:
    task = Task()
    learner, resumed = (predictor(source_features=("level",), max_state_features=16) for _ in range(2))
    train(task, learner, steps=range(3))
    learner.observe_training([trained_norms("1000", [1.5, NAN], positive=[True, False])])
    resumed.load_state_dict(json.loads(json.dumps(learner.state_dict(), allow_nan=False)))
    group, states = prompts(20, first=1000, level=2), task.states(20)
    answers = []
    for each in (learner, resumed):
        rows = each.rows(group, states)
        each.observe(group, rows, [outcome(p.prompt_id, [1.0, 0.0]) for p in group], step=3)
        answers.append(vars(each.predict(group, rows, step=4)))
    for name, values in answers[0].items():
        np.testing.assert_array_equal(values, answers[1][name])
    assert learner.state_dict() == resumed.state_dict()


def test_an_empty_memory_survives_json_too() -> None:
    learner = predictor()
    learner.load_state_dict(json.loads(json.dumps(predictor().state_dict())))
    train(Task(), learner, steps=range(1))
    assert len(learner.state_dict()["observations"]["prompt_ids"]) == 64
