"""Expected against measured gradient norms."""

import numpy as np
import pytest

from gvm_ray.allocators.predictor import NormAgreement, PromptEstimates
from gvm_ray.types import TrainedNorms


def estimates(accepted_norms: list[float]) -> PromptEstimates:
    ones = np.ones(len(accepted_norms))
    return PromptEstimates(
        accept_rates=ones / 2,
        feature_rates=ones / 2,
        history_rates=ones / 2,
        deviations=ones,
        accepted_norms=np.array(accepted_norms),
        rejected_norms=ones,
        history_trials=8.0,
        learned=True,
    )


def trained(prompt_id: str, positive: list[float], negative: float = 99.0) -> TrainedNorms:
    return TrainedNorms(
        prompt_id=prompt_id,
        positive=np.array([True] * len(positive) + [False]),
        norms=np.array([*positive, negative]),
    )


def test_ranks_of_accepted_samples_means_are_compared() -> None:
    agreement = NormAgreement()
    agreement.expect(["a", "b", "c", "d"], estimates([1.0, 2.0, 3.0, 4.0]))
    assert agreement.metrics() == {}
    agreement.observe([trained("a", [1.0, 3.0]), trained("b", [1.0]), trained("c", [8.0]), trained("x", [0.1])])
    assert agreement.metrics() == {"allocation/norm_rank_correlation": pytest.approx(0.5)}  # ranks 1 2 3 against 2 1 3
    agreement.observe([trained("a", [np.nan, 5.0]), trained("b", [6.0]), trained("d", [7.0])])
    assert agreement.metrics() == {"allocation/norm_rank_correlation": pytest.approx(1.0)}


def test_too_few_prompts_or_equal_expectations_say_nothing() -> None:
    agreement = NormAgreement()
    agreement.expect(["a", "b", "c"], estimates([1.0, 1.0, 1.0]))
    agreement.observe([trained(prompt_id, [1.0]) for prompt_id in "abc"])
    agreement.expect(["a", "b"], estimates([1.0, 2.0]))
    agreement.observe([trained("a", [1.0]), trained("b", [2.0])])
    assert agreement.metrics() == {}


def test_the_oldest_expectations_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gvm_ray.allocators.predictor._MOST_EXPECTED", 4)
    agreement = NormAgreement()
    agreement.expect(["a", "b", "c"], estimates([1.0, 2.0, 3.0]))
    agreement.expect(["a", "d", "e"], estimates([1.0, 2.0, 3.0]))  # b goes, a is new again
    agreement.observe([trained("b", [9.0]), trained("c", [1.0]), trained("a", [2.0])])
    assert agreement.metrics() == {}
    agreement.observe([trained("a", [1.0]), trained("d", [2.0]), trained("c", [3.0])])
    assert agreement.metrics() == {"allocation/norm_rank_correlation": pytest.approx(1.0)}
    agreement.expect(list("fghijk"), estimates([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))  # a step's own all stay
    agreement.observe([trained("f", [6.0]), trained("h", [5.0]), trained("k", [4.0])])
    assert agreement.metrics() == {"allocation/norm_rank_correlation": pytest.approx(-1.0)}
