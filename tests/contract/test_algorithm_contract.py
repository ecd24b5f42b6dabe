"""What every algorithm must do, whatever the groups turn out to be."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from gvm_ray.algorithms import create_algorithm, token_loss
from gvm_ray.config.strategy import AlgorithmSettings, CustomAlgorithmConfig
from gvm_ray.protocols import Algorithm
from gvm_ray.types import EstimatorTerms, GroupOutcome
from tests.builders import NAN, outcome
from tests.contract.union_cases import every_variant

CONFIGS = every_variant(
    AlgorithmSettings, {"the example": CustomAlgorithmConfig(path="examples.custom_algorithm:MeanNormalised")}
)


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> Any:
    return CONFIGS[request.param]


def ragged() -> list[GroupOutcome]:
    """Groups of 0, 1, 2 and 37 samples, as read-only as from an object store."""
    rng = np.random.default_rng(0)
    outcomes = [outcome(n, rng.integers(0, 2, n)) for n in (0, 1, 2, 37)]
    for each in outcomes:
        each.rewards.setflags(write=False)
    return outcomes


@pytest.mark.parametrize("outcomes", [[], [outcome("a", [])], [outcome("a", [NAN, NAN])], [outcome("a", [0.0])]])
def test_no_signal_gives_an_empty_batch(config: Any, outcomes: list[GroupOutcome]) -> None:
    algorithm = create_algorithm(config, accept_threshold=0.5)
    batch = algorithm.build_batch(outcomes, step=3, terms=EstimatorTerms(num_prompts=1))
    assert batch.step == 3
    assert batch.groups == ()
    assert batch.metrics["groups/no_signal"] == 1
    assert batch.metrics["samples/kept"] == 0


@pytest.mark.parametrize("weighting", ["prompt_mean", "inverse", "token_mean"])
def test_ragged_groups_are_trained_on_with_positive_weights(config: Any, weighting: str) -> None:
    outcomes = ragged()
    algorithm = create_algorithm(config.model_copy(update={"weighting": weighting}), accept_threshold=0.5)
    assert isinstance(algorithm, Algorithm)
    terms = EstimatorTerms(num_prompts=4, accept_rates={each.prompt_id: 0.5 for each in outcomes})
    batch = algorithm.build_batch(outcomes, step=0, terms=terms)
    assert 0 < batch.num_samples <= 40
    assert batch.metrics["groups/alone"] == 1
    assert np.isfinite(list(batch.metrics.values())).all()
    for group in batch.groups:
        assert len(group.sample_indices) == len(group.advantages) == len(group.weights) == len(group.num_tokens)
        assert group.sample_indices.dtype == np.int32
        assert np.isfinite(group.advantages).all()
        assert (group.weights > 0).all()


def test_the_batch_is_a_function_of_the_outcomes(config: Any) -> None:
    terms = EstimatorTerms(num_prompts=4)
    batches = [
        create_algorithm(config, accept_threshold=0.5).build_batch(ragged(), step=0, terms=terms) for _ in range(2)
    ]
    assert batches[0].metrics == batches[1].metrics
    for first, second in zip(*(batch.groups for batch in batches), strict=True):
        for name in ("sample_indices", "advantages", "weights"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_an_unscored_sample_is_never_trained_on(config: Any) -> None:
    outcomes = [outcome("a", [1.0, NAN, 0.0, 1.0]), outcome("b", [0.0, 1.0, NAN])]
    batch = create_algorithm(config, accept_threshold=0.5).build_batch(
        outcomes, step=0, terms=EstimatorTerms(num_prompts=2)
    )
    trained = {group.prompt_id: set(group.sample_indices.tolist()) for group in batch.groups}
    assert trained
    assert 1 not in trained.get("a", set())
    assert 2 not in trained.get("b", set())


def test_token_loss_has_the_gradient_of_its_algorithm(config: Any) -> None:
    """On policy, every loss has the gradient -A of the log-likelihood, with or without the ratio."""
    loss_function = pickle.loads(pickle.dumps(token_loss(config)))
    assert not loss_function.needs_reference
    assert not loss_function.needs_entropy
    logprobs = torch.tensor([[-0.5, -1.0], [-2.0, -0.1]], requires_grad=True)
    frozen = logprobs.detach()
    loss, diagnostics = loss_function(
        logprobs=logprobs,
        old_logprobs=frozen,
        engine_logprobs=frozen,
        ref_logprobs=None,
        entropy=None,
        advantages=torch.tensor([[1.0], [-2.0]]),
        mask=torch.ones(2, 2, dtype=torch.bool),
    )
    loss.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-1.0, -1.0], [2.0, 2.0]]))
    assert all(value.shape == (2, 2) for value in diagnostics.values())


def test_a_clip_removes_the_gradient_of_a_ratio(config: Any) -> None:
    if config.loss is not None:
        pytest.skip("a loss of its own clips as it likes")
    _, diagnostics = token_loss(config)(
        logprobs=torch.zeros(1, 1),
        old_logprobs=torch.full((1, 1), -1.0),
        engine_logprobs=torch.full((1, 1), -1.0),
        ref_logprobs=None,
        entropy=None,
        advantages=torch.ones(1, 1),
        mask=torch.ones(1, 1, dtype=torch.bool),
    )
    assert diagnostics["clip_fraction"].item() == (1.0 if config.has_ratio else 0.0)
