"""What is remembered of a prompt over its visits."""

import numpy as np
import pytest
from scripted_outcomes import outcome

from gvm_ray.allocators.history import PromptHistory, sample_indices


def visit(history: PromptHistory, *rounds: dict[str, list[float]]) -> None:
    """One step with these rounds."""
    samples = history.start_step(list(rounds[0]))
    for rewards in rounds:
        samples.fold([outcome(prompt_id, values) for prompt_id, values in rewards.items()])


@pytest.mark.parametrize(("decay", "trials", "successes"), [(1.0, 6, 3), (0.5, 4, 2.5), (0.0, 2, 2)])
def test_a_visit_decays_the_counts_of_earlier_ones_once(decay: float, trials: float, successes: float) -> None:
    history = PromptHistory(accept_threshold=0.5, decay=decay)
    visit(history, {"a": [1, 0], "b": [1]}, {"a": [0, 0]})
    visit(history, {"a": [1]}, {"a": [1]})
    stats = history.all.get("a")
    assert stats is not None
    assert (stats.trials, stats.successes) == (trials, successes)
    other = history.all.get("b")
    assert other is not None
    assert other.trials == 1


def test_unscored_samples_are_no_visit() -> None:
    history = PromptHistory(accept_threshold=0.5, decay=0.5)
    visit(history, {"a": [1, 0]})
    visit(history, {"a": [float("nan")]})
    visit(history, {"a": []})
    assert history.accept_rates(["a"]).tolist() == [0.5]
    stats = history.all.get("a")
    assert stats is not None
    assert stats.trials == 2


def test_rates_of_the_run_are_posterior_means_and_nan_where_nothing_tells() -> None:
    history = PromptHistory(accept_threshold=0.5)
    visit(history, {"a": [1, 1, 1, 0], "b": [0]})
    np.testing.assert_array_equal(history.accept_rates(["x", "a", "b", "a"]), [np.nan, 0.75, 0, 0.75])
    rates = history.accept_rates(["x", "a", "b"], prior_successes=1, prior_failures=3)
    np.testing.assert_allclose(rates, [1 / 4, 4 / 8, 1 / 5])
    assert list(history.state_dict()["prompts"]) == ["a", "b"]  # asking adds no prompt


def test_one_round_is_sampled_and_folded() -> None:
    history = PromptHistory(accept_threshold=0.5)
    generator = history.sample_once({"a": 2, "b": 0})
    assert next(generator).counts == {"a": 2, "b": 0}
    with pytest.raises(StopIteration) as done:
        generator.send([outcome("a", [1, 0])])
    successes, trials = done.value.value.counts()
    assert (successes.tolist(), trials.tolist()) == ([1, 0], [2, 0])
    assert history.accept_rates(["a"]).tolist() == [0.5]


def test_a_step_knows_what_it_saw_itself() -> None:
    history = PromptHistory(accept_threshold=0.5)
    visit(history, {"c": [1, 1]})
    samples = history.start_step(["a", "b", "a", "c", "d"])
    samples.fold([outcome("a", [1, 0, float("nan")]), outcome("b", [0]), outcome("d", [float("nan")])])
    samples.fold([outcome("a", [1])])
    successes, trials = samples.counts()
    assert successes.tolist() == [2, 0, 2, 0, 0]
    assert trials.tolist() == [3, 1, 3, 0, 0]
    assert samples.accept_rates().tolist() == [2 / 3, 0, 2 / 3, 0, 0]  # c's is of an earlier step


def test_a_prior_makes_every_rate_of_a_step_positive() -> None:
    history = PromptHistory(accept_threshold=0.5, prior_successes=1, prior_failures=1)
    samples = history.start_step(["a", "b"])
    samples.fold([outcome("a", [0, 0])])
    assert samples.accept_rates().tolist() == [1 / 4, 1 / 2]


def test_sample_indices_of_a_prompt_are_joined() -> None:
    outcomes = [outcome("a", [1, 0]), outcome("b", [1]), outcome("a", [float("nan")], first_index=2)]
    assert sample_indices(outcomes) == {"a": (0, 1, 2), "b": (0,)}
