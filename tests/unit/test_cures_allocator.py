"""CurES: which prompts are drawn, and how the norms of training steer their samples."""

import json

import numpy as np
import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.base import RunShape
from gvm_ray.allocators.rivals.cures import CurESAllocatorConfig
from gvm_ray.types import TrainedNorms
from tests.allocator_cases import run_script
from tests.builders import NAN


def cures(*, seed: int = 0, **settings):
    return AllocationDriver.of(CurESAllocatorConfig(**settings), accept_threshold=0.5, seed=seed)


def norms(prompt_id: str, positive: list[float], negative: list[float]) -> TrainedNorms:
    return TrainedNorms(
        prompt_id=prompt_id,
        positive=np.array([True] * len(positive) + [False] * len(negative), dtype=np.bool_),
        norms=np.array(positive + negative, dtype=np.float64),
    )


def test_prompts_of_medium_difficulty_are_drawn() -> None:
    allocator = cures(group_size=8, temperature=0.01)
    rewards = {"a": [1], "b": [1, 0], "c": [0], "d": [0, 1]}
    rounds, _ = run_script(allocator, "abcd", budget=32, rewards=rewards)
    assert rounds == [{"a": 8, "b": 8, "c": 8, "d": 8}]
    rounds, report = run_script(allocator, "abcd", budget=16, rewards=rewards, step=1)
    assert rounds == [{"a": 0, "b": 8, "c": 0, "d": 8}]
    assert report.estimator.num_prompts == 2
    assert report.estimator.accept_rates == {"b": 0.5, "d": 0.5}  # (4 + 1) / (8 + 2), of the first visit
    _, report = run_script(allocator, "abcd", budget=16, rewards={id_: [1] for id_ in "abcd"}, step=2)
    assert report.estimator.accept_rates == pytest.approx({"b": 9 / 18, "d": 9 / 18})
    assert report.metrics["allocation/zero"] == 2


def test_draws_follow_seed_and_step_and_the_probabilities() -> None:
    ids, rewards = "abcdefgh", {id_: [1, 0] for id_ in "abcdefgh"}

    def drawn(seed: int, step: int) -> set[str]:
        rounds, _ = run_script(cures(seed=seed, group_size=4), ids, budget=8, rewards=rewards, step=step)
        return {prompt_id for prompt_id, n in rounds[0].items() if n}

    draws = [drawn(seed, step) for seed in range(4) for step in range(8)]
    assert draws == [drawn(seed, step) for seed in range(4) for step in range(8)]
    assert all(len(draw) == 2 for draw in draws)
    assert len({frozenset(draw) for draw in draws}) > 4
    assert set().union(*draws) == set(ids)


def test_samples_follow_the_norms_of_training() -> None:
    allocator = cures(min_samples=0)
    allocator.observe_training(
        [norms("a", [3, 3], [3]), norms("b", [1], [NAN]), norms("b", [], [1.0]), norms("z", [], [])]
    )
    rounds, _ = run_script(allocator, "ab", budget=16, rewards={"a": [1], "b": [0]})
    assert rounds == [{"a": 12, "b": 4}]  # sigma = sqrt(1/4) times the norms 3 and 1
    # Beta(1, 1) and 12 of 12, 0 of 4: p = 13/14 and 1/6; sigma = 3 sqrt(13)/14 and sqrt(5)/6: .7726, .3727
    rounds, _ = run_script(allocator, "ab", budget=16, rewards={"a": [1], "b": [0]}, step=1)
    assert rounds == [{"a": 11, "b": 5}]


def test_later_norms_replace_those_of_their_class_alone() -> None:
    allocator = cures(min_samples=0)
    allocator.observe_training([norms("a", [4], [2])])
    allocator.observe_training([norms("a", [8, 8], [])])
    assert allocator.state_dict()["strategy"]["norms"] == {"a": [[8, 0], [2, 0]]}
    allocator.observe_training([norms("a", [], [1, 3])])
    assert allocator.state_dict()["strategy"]["norms"] == {"a": [[8, 0], [2, 1]]}


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        # at p = 1/2 sigma is in proportion to the mean of the two norms: 4, 3 and (3 + 4) / 2
        ([norms("a", [2], [6]), norms("b", [4], [2])], {"a": 12, "b": 9, "x": 11}),
        ([norms("a", [3], []), norms("b", [5], [])], {"a": 11, "b": 14, "x": 12}),  # (3 + 4) / 2, (5 + 4) / 2, 4
        ([], {"a": 13, "b": 12, "x": 12}),
    ],
)
def test_a_prompt_without_norms_has_the_mean_of_its_class_or_of_the_other(measured, expected) -> None:
    allocator = cures(min_samples=0)
    allocator.observe_training(measured)
    budget = sum(expected.values())
    rounds, _ = run_script(allocator, "abx", budget=budget, rewards={"a": [1], "b": [1], "x": [1]})
    assert rounds == [expected]


def test_the_minimum_and_a_budget_below_a_group() -> None:
    allocator = cures(min_samples=3)
    allocator.observe_training([norms("a", [1], [1]), norms("b", [99], [99])])
    rounds, _ = run_script(allocator, "ab", budget=16, rewards={"a": [1], "b": [1]})
    assert rounds == [{"a": 3, "b": 13}]
    rounds, _ = run_script(cures(group_size=8), "ab", budget=5, rewards={"a": [1], "b": [1]})
    assert sorted(rounds[0].values()) == [0, 5]


def test_norms_survive_json() -> None:
    allocator = cures()
    allocator.observe_training([norms("a", [1, 2], []), norms("b", [0.1], [5, 7])])
    run_script(allocator, "ab", budget=16, rewards={"a": [1], "b": [1, 0]})
    state = json.loads(json.dumps(allocator.state_dict(), allow_nan=False))
    resumed = cures()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    rewards = {"a": [1], "b": [1], "c": [0]}
    steps = [run_script(each, "abc", budget=24, rewards=rewards, step=1)[0] for each in (allocator, resumed)]
    assert steps[0] == steps[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 4}, "group_size=4 makes 8 groups of a budget of 32, but there are 4 candidates; write "),
        ({"group_size": 33}, "group_size=33 makes 0 groups"),
        ({"min_samples": 9}, "min_samples=9 is above group_size=8; write 8 or less"),
    ],
)
def test_groups_that_can_t_be_formed_are_refused(settings, message: str) -> None:
    shape = RunShape(prompts_per_step=4, samples_per_prompt=8, max_staleness=0, checkpoint_every_steps=1)
    with pytest.raises(ValueError, match=message):
        CurESAllocatorConfig(**settings).check_fits(shape)
    CurESAllocatorConfig(group_size=4, candidates_per_step=8).check_fits(shape)
