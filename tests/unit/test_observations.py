"""A run's latest groups and the rows of numbers of their prompts: what is kept, weighted and restored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gvm_ray.allocators.memory import Observations
from gvm_ray.allocators.predictor import PromptFeatures
from gvm_ray.types import Float64Array, GroupOutcome
from tests.builders import NAN, outcome, prompts, trained_norms


def seen(**settings: Any) -> Observations:
    return Observations(accept_threshold=0.5, **{"max_rows": 100, **settings})


def add(observations: Observations, outcomes: Sequence[GroupOutcome], *, step: int) -> None:
    features: Mapping[str, Float64Array] = {each.prompt_id: np.array([float(step)]) for each in outcomes}
    observations.add(outcomes, features=features, step=step)


def test_rounds_of_a_step_are_one_group_and_steps_are_apart() -> None:
    observations = seen()
    add(observations, [outcome("a", [1, 0, NAN], num_tokens=4), outcome("b", [NAN, NAN])], step=0)
    add(observations, [outcome("a", [1, 1], num_tokens=10), outcome("a", [0, 0], num_tokens=10)], step=0)
    add(observations, [outcome("c", [1], num_tokens=1), outcome("c", [0, 0], num_tokens=7)], step=1)
    add(observations, [outcome("a", [1])], step=1)
    groups = observations.columns
    assert groups["step"].tolist() == [0, 1, 1]
    assert groups["trials"].tolist() == [6, 3, 1]
    assert groups["successes"].tolist() == [3, 1, 1]
    assert observations.rows[:, 0].tolist() == [0, 1, 1]


def test_own_counts_are_weighted_by_their_age() -> None:
    observations = seen()
    add(observations, [outcome("a", [1, 1, 0, 0]), outcome("b", [1])], step=0)
    add(observations, [outcome("a", [1, 0])], step=2)
    successes, trials = observations.recent_counts(prompts(1) + prompts("ab"), forgetting=0.5, step=2)
    np.testing.assert_allclose(successes, [0, 2 / 4 + 1, 1 / 4])
    np.testing.assert_allclose(trials, [0, 4 / 4 + 2, 1 / 4])


def test_only_the_latest_groups_are_kept_also_of_a_step_above_the_window() -> None:
    observations = seen(max_rows=3)
    for step, ids in enumerate(("ab", "cd", "efghi")):
        add(observations, [outcome(id_, [1]) for id_ in ids], step=step)
        assert observations.state_dict()["prompt_ids"] == list(("ab", "bcd", "ghi")[step])
        assert len(observations.rows) == len(observations.columns) == min(2 * (step + 1), 3)
    assert observations.columns["step"].tolist() == [2, 2, 2]


@pytest.mark.parametrize(("size", "kept"), [(200, 2048), (300, 8 * 300)])
def test_without_a_window_2048_groups_are_kept_or_those_of_the_latest_eight_steps(size: int, kept: int) -> None:
    observations = seen(max_rows=None)
    for step in range(11):
        add(observations, [outcome(f"{step}-{number}", [1]) for number in range(size)], step=step)
    assert len(observations.rows) == len(observations.columns) == kept
    assert observations.state_dict()["prompt_ids"][-1] == f"10-{size - 1}"


def test_norms_go_to_the_latest_group_as_mean_squares_by_sign() -> None:
    observations = seen()
    for step in (0, 1):
        add(observations, [outcome("a", [1, 0]), outcome("b", [1, 0])], step=step)
    observations.add_norms(
        [
            trained_norms("a", [3.0, 2.0, NAN], positive=[True, False, True]),
            trained_norms("a", [4.0], positive=[True]),  # another round's group of the same prompt
            trained_norms("b", [NAN], positive=[True]),
            trained_norms("unknown", [1.0], positive=[True]),
        ]
    )
    np.testing.assert_array_equal(observations.columns["accepted_square"], [NAN, NAN, (9 + 16) / 2, NAN])
    np.testing.assert_array_equal(observations.columns["rejected_square"], [NAN, NAN, 4, NAN])


def test_wide_states_are_projected_with_distances_kept() -> None:
    states = np.random.default_rng(0).normal(size=(20, 2000)).astype(np.float32)
    features = PromptFeatures(source_features=(), max_state_features=400, seed=1)
    rows = features.rows(prompts(20), states)
    assert rows.shape == (20, 400)
    distances, projected = (np.linalg.norm(each[1:] - each[:-1], axis=1) for each in (states, rows))
    np.testing.assert_allclose(projected, distances, rtol=0.2)
    np.testing.assert_array_equal(features.rows(prompts(20), states), rows)
    np.testing.assert_array_equal(features.rows(prompts(20), states[:, :400]), states[:, :400])


def test_token_counts_share_columns_by_the_ids_remainder() -> None:
    features = PromptFeatures(source_features=("level",), max_state_features=4, seed=0, token_features=3)
    ids = np.array([0, 4, 4, 5, 152_063], dtype=np.int32)  # modulo 3: 0, 1, 1, 2, 2
    rows = features.rows([replace(each, token_ids=ids) for each in prompts(2, level=1)], np.ones((2, 2), np.float32))
    assert rows.shape == (2, 2 + 3 + 64)
    np.testing.assert_array_equal(rows[:, 2:5], [[1, 2, 2]] * 2)


def test_categories_keep_their_columns_and_late_ones_share_the_last() -> None:
    features = PromptFeatures(source_features=("level",), max_state_features=4, seed=0)
    group = [prompt for value in range(70) for prompt in prompts(1, level=value)]
    columns = features.rows(group, None).argmax(axis=1)
    assert columns.tolist() == [*range(63), *[63] * 7]
    resumed = PromptFeatures(source_features=("level", "subject"), max_state_features=4, seed=0)
    resumed.load_state_dict(json.loads(json.dumps(features.state_dict())))
    rows = resumed.rows(group, np.ones((70, 2), dtype=np.float32))
    assert rows.shape == (70, 2 + 64 + 64)
    assert (rows[:, :2] == 1).all()
    assert rows[:, 2:66].argmax(axis=1).tolist() == columns.tolist()
    assert (rows[:, 66:].sum(axis=1) == rows[:, 66]).all()
