"""Outcomes survive their way to the allocator: every number, and what is absent stays absent."""

import pickle

import numpy as np

from gvm_ray.actors.allocator import OutcomeColumns
from gvm_ray.types import GroupOutcome
from tests.builders import outcome


def make_outcome(prompt_id: str, n: int, *, measured: bool, terms: dict[str, float]) -> GroupOutcome:
    return outcome(
        prompt_id,
        np.arange(n) / 2.0,
        first_index=3,
        num_tokens=range(10, 10 + n),
        version=7,
        truncated=[i % 2 == 0 for i in range(n)],
        ref=object(),
        gradient_norms=np.arange(n) + 0.25 if measured else None,
        reward_terms={name: np.full(n, value) for name, value in terms.items()},
        entropies=np.arange(n) / 4.0 if measured else None,
    )


def test_ragged_outcomes_round_trip() -> None:
    outcomes = [
        make_outcome("a", 3, measured=True, terms={"exact": 1.0}),
        make_outcome("empty", 0, measured=True, terms={"exact": 1.0}),
        make_outcome("a", 1, measured=False, terms={"exact": 0.5}),  # a prompt may stand twice
        make_outcome("b", 5, measured=True, terms={"exact": 0.0}),
    ]
    result = pickle.loads(pickle.dumps(OutcomeColumns.of(outcomes))).outcomes()
    for before, after in zip(outcomes, result, strict=True):
        assert after.prompt_id == before.prompt_id
        assert after.sample_indices == before.sample_indices
        for name in ("rewards", "num_tokens", "policy_versions", "truncated"):
            assert getattr(after, name).dtype == getattr(before, name).dtype
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        assert (after.gradient_norms is None) == (before.gradient_norms is None)
        if before.gradient_norms is not None:
            np.testing.assert_array_equal(after.gradient_norms, before.gradient_norms)
        np.testing.assert_array_equal(after.reward_terms["exact"], before.reward_terms["exact"])
        unknown = np.full(len(before.rewards), np.nan)
        np.testing.assert_array_equal(after.entropies, unknown if before.entropies is None else before.entropies)
        assert after.ref.ref is None  # the allocator holds no sample alive


def test_a_term_that_an_outcome_lacks_is_unknown() -> None:
    outcomes = [
        make_outcome("a", 2, measured=False, terms={"exact": 1.0}),
        make_outcome("b", 1, measured=False, terms={}),
    ]
    _, second = OutcomeColumns.of(outcomes).outcomes()
    assert np.isnan(second.reward_terms["exact"]).tolist() == [True]


def test_no_outcomes() -> None:
    assert OutcomeColumns.of([]).outcomes() == []
