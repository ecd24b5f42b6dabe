"""The ledger of a step's rollouts: seeds, costs, what is kept for whom, and when too little was scored."""

from dataclasses import replace

import numpy as np
import pytest

from gvm_ray.exceptions import SystemFailure
from gvm_ray.ledger import RolloutLedger, staleness_metrics, trained_norms
from gvm_ray.types import (
    Allocation,
    GroupOutcome,
    GroupRef,
    TrainBatch,
    UpdateResult,
    WeightsRef,
)
from tests.builders import completion, group, outcome, prompt, train_group

TRAINED, PILOT = Allocation(counts={}), Allocation(counts={}, trained_on=False)


def ledger(*, max_unscored_fraction: float = 0.5) -> RolloutLedger:
    return RolloutLedger(run_seed=1, max_unscored_fraction=max_unscored_fraction)


def test_one_request_for_each_prompt_with_samples() -> None:
    requests = ledger().requests(Allocation(counts={"a": 2, "b": 0, "c": 3}), prompts=[*map(prompt, "abc")], step=0)
    assert [(request.prompt.prompt_id, request.sample_indices) for request in requests] == [
        ("a", (0, 1)),
        ("c", (0, 1, 2)),
    ]


def test_a_second_round_goes_on_counting_so_that_no_seed_comes_twice() -> None:
    book = ledger()
    (first,) = book.requests(Allocation(counts={"a": 2}), prompts=[prompt("a")], step=3)
    (second,) = book.requests(Allocation(counts={"a": 2}), prompts=[prompt("a")], step=3)
    assert second.sample_indices == (2, 3)
    assert len({*first.seeds, *second.seeds}) == 4


def test_a_step_starts_counting_anew_with_other_seeds() -> None:
    book = ledger()
    (first,) = book.requests(Allocation(counts={"a": 2}), prompts=[prompt("a")], step=3)
    book.take([prompt("a")])
    (later,) = book.requests(Allocation(counts={"a": 2}), prompts=[prompt("a")], step=4)
    assert later.sample_indices == (0, 1)
    assert not {*first.seeds} & {*later.seeds}


def test_seeds_depend_on_the_run_and_not_on_the_round_that_asks() -> None:
    together = ledger().requests(Allocation(counts={"a": 4}), prompts=[prompt("a")], step=0)[0]
    book = ledger()
    apart = [book.requests(Allocation(counts={"a": 2}), prompts=[prompt("a")], step=0)[0] for _ in range(2)]
    assert apart[0].seeds + apart[1].seeds == together.seeds


def test_costs_are_those_since_they_were_taken_last() -> None:
    book = ledger()
    book.record([outcome("a", [1.0, 0.0]), outcome("b", [1.0], num_tokens=7)], TRAINED)
    book.record([outcome("c", [0.0])], PILOT)
    assert book.take_costs() == {"cost/generated_samples": 4, "cost/generated_tokens": 22, "cost/pilot_tokens": 5}
    assert book.take_costs() == {}
    book.record([outcome("a", [1.0])], TRAINED)
    assert book.take_costs() == {"cost/generated_samples": 1, "cost/generated_tokens": 5}


def test_outcomes_wait_for_their_prompt_and_leave_with_it() -> None:
    book = ledger()
    pilot, rest, other = outcome("a", [1.0]), outcome("a", [0.0, 1.0]), outcome("b", [0.0])
    book.record([pilot, other], TRAINED)
    book.record([rest], TRAINED)
    assert book.take([prompt("a")]) == [pilot, rest]
    assert book.take([prompt("a")]) == []
    assert book.take([prompt("b"), prompt("c")]) == [other]


def test_samples_that_only_inform_are_charged_but_not_kept() -> None:
    book = ledger()
    book.record([outcome("a", [1.0, 0.0])], PILOT)
    assert book.take_costs()["cost/generated_samples"] == 2
    assert book.take([prompt("a")]) == []


def test_dropped_samples_are_asked_for_again_under_other_seeds() -> None:
    book = ledger()
    requests = book.requests(Allocation(counts={"a": 3, "b": 2}), prompts=[prompt("a"), prompt("b")], step=3)
    nan = float("nan")
    (again,) = book.refill([outcome("a", [nan, 1.0]), outcome("b", [1.0, 0.0]), outcome("a", [nan])], requests, step=3)
    assert again.prompt.prompt_id == "a"
    assert again.sample_indices == (3, 4)
    assert not {*again.seeds} & {*requests[0].seeds}
    assert book.take_costs()["cost/refilled_samples"] == 2
    assert book.refill([outcome("a", [0.0, 1.0])], requests, step=3) == []


def test_more_unscored_samples_than_allowed_stop_the_run() -> None:
    nan = float("nan")
    requests = ledger().requests(Allocation(counts={"a": 2, "b": 2}), prompts=[prompt("a"), prompt("b")], step=0)
    half = [outcome("a", [nan, 1.0]), outcome("b", [nan, 1.0])]
    assert len(ledger().refill(half, requests, step=0)) == 2  # still allowed
    with pytest.raises(SystemFailure, match=r"3 of 4 samples.*max_unscored_fraction=0\.5"):
        ledger().refill([outcome("a", [nan, nan]), outcome("b", [nan, 1.0])], requests, step=0)
    assert ledger(max_unscored_fraction=1.0).refill([outcome("a", [nan, nan])], requests, step=0)


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ({"error": 2, "timeout": 1}, r": the reward raised an error, or returned no finite number.*\(3 of them\)"),
        ({"timeout": 1}, r": the reward took too long; .*--set rewards\.timeout_s=\.\.\. \(2 of them\)"),
        ({"memory": 1}, r": the reward needed too much memory; .*--set rewards\.memory_mb"),
        ({"crash": 1}, r": the reward's process died"),
        ({}, r": the reward fails; "),
    ],
)
def test_the_most_frequent_reason_is_named(reasons: dict[str, int], expected: str) -> None:
    nan = float("nan")
    last = dict.fromkeys(reasons, 1)
    outcomes = [replace(outcome("a", [nan, nan]), unscored=reasons), replace(outcome("b", [nan, nan]), unscored=last)]
    with pytest.raises(SystemFailure, match=expected):
        ledger().refill(outcomes, [], step=0)


def test_staleness_is_counted_by_sample() -> None:
    outcomes = [outcome("a", [0.0, 0.0, 0.0], version=3), outcome("b", [1.0], version=5)]
    assert staleness_metrics(outcomes, step=5, max_staleness=2) == {"staleness/mean": 1.5, "staleness/max": 2.0}
    assert staleness_metrics([], step=5, max_staleness=0) == {"staleness/mean": 0.0, "staleness/max": 0.0}


@pytest.mark.parametrize("version", [2, 6])
def test_samples_of_versions_out_of_bounds_stop_the_run(version: int) -> None:
    with pytest.raises(SystemFailure, match=f"policy versions {version} to {version}"):
        staleness_metrics([outcome("a", [1.0], version=version)], step=5, max_staleness=2)


def test_trained_norms_are_those_without_the_advantage() -> None:
    batch = TrainBatch(step=0, groups=(train_group("a", [2.0, -0.5, 0.0]), train_group("b", [1.0])))
    nothing = UpdateResult(weights=WeightsRef(policy_version=1, location=()), metrics={})
    assert trained_norms(batch, nothing) == []
    measured = (np.array([3.0, 3.0, 0.0]), np.array([float("nan")]))
    first, second = trained_norms(batch, replace(nothing, gradient_norms=measured))
    assert (first.prompt_id, second.prompt_id) == ("a", "b")
    np.testing.assert_array_equal(first.norms, [1.5, 6.0, np.nan])
    assert first.positive.tolist() == [True, False, False]
    np.testing.assert_array_equal(second.norms, [np.nan])
    assert second.positive.tolist() == [True]


def test_a_requests_samples_share_its_prompt_and_the_learner_gets_what_is_kept() -> None:
    book = ledger()
    asked = replace(prompt("a"), token_ids=np.zeros(6, dtype=np.int32))
    for allocation in (TRAINED, replace(TRAINED, trained_on=False)):
        for _ in book.requests(replace(allocation, counts={"a": 2}), prompts=[asked], step=0):
            book.record([outcome("a", [1.0, 0.0])], allocation)
    book.take([asked])
    costs = book.take_costs()
    assert costs["cost/prompt_tokens"] == 12
    assert costs["cost/trained_tokens"] == costs["cost/generated_tokens"] / 2


def test_prefilled_tokens_are_a_cost_of_their_own() -> None:
    book = ledger()
    book.charge_prefill(0)
    assert book.take_costs() == {}
    book.charge_prefill(7)
    book.charge_prefill(5)
    book.record([outcome("a", [1.0])], TRAINED)
    assert book.take_costs() == {
        "cost/prefill_tokens": 12,
        "cost/generated_samples": 1,
        "cost/generated_tokens": 5,
    }


def test_entropies_are_estimated_from_the_tokens_that_the_policy_sampled() -> None:
    answered = replace(
        completion(num_tokens=4),
        logprobs=np.array([-1.0, 0.0, 0.0, -2.0], dtype=np.float32),
        sampled=np.array([True, False, False, True]),  # two of the environment
    )
    sure, empty = completion(num_tokens=3), completion(num_tokens=0)
    plain = replace(completion(num_tokens=2), logprobs=np.array([-0.5, -0.25], dtype=np.float32))
    together = group("a", [plain, answered, empty, sure])
    np.testing.assert_array_equal(together.entropies, [0.375, 1.5, np.nan, 0.0])
    known = GroupOutcome.of(together, ref=GroupRef(ref=None, index=0)).entropies
    np.testing.assert_array_equal(known, together.entropies)
