"""Importance weights by hand for every level and mode, and what they do to the loss and its gradient."""

import math

import pytest
import torch

from gvm_ray.maths.losses import ImportanceCorrection, importance_weights, policy_loss
from tests.loss_cases import CLIP, EVERY_CORRECTION, random_case, row


@pytest.mark.parametrize(
    ("level", "mode", "expected"),
    [
        ("token", "truncate", [[1.25, 2.0, 0.4], [0.5, 2.0, 1.0]]),
        ("token", "mask", [[1.25, 0.0, 0.0], [0.5, 2.0, 1.0]]),  # the bounds themselves are kept
        ("sequence", "truncate", [[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]]),
        ("sequence", "mask", [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),
    ],
)
def test_importance_weights_by_hand(level, mode, expected: list[list[float]]) -> None:
    ratios = torch.tensor([[1.25, 5.0, 0.4], [0.5, 2.0, 1.0]], dtype=torch.float64)  # products 2.5 and 1
    learner = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    correction = ImportanceCorrection(level=level, mode=mode, cap=2.0, floor=0.5)
    weights, diagnostics = importance_weights(
        learner, -ratios.log(), correction=correction, mask=torch.ones(2, 3, dtype=torch.bool)
    )
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(
        diagnostics["importance/mean"], ratios if level == "token" else row(2.5, 1.0).T.expand(2, 3)
    )
    assert not any(values.requires_grad for values in (weights, *diagnostics.values()))


def test_padding_counts_nothing_in_a_response() -> None:
    """Ragged rows of 1 and 3 tokens, and one without any; what stands at padding is no part of the product."""
    log_ratios = torch.tensor([[0.5, 9.0, math.nan], [0.1, 0.2, -0.4], [7.0, 7.0, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[True, False, False], [True, True, True], [False, False, False]])
    _, diagnostics = importance_weights(
        log_ratios, torch.zeros_like(log_ratios), correction=ImportanceCorrection(level="sequence"), mask=mask
    )
    torch.testing.assert_close(
        diagnostics["importance/mean"][:, 0].log(), torch.tensor([0.5, -0.1, 0.0], dtype=torch.float64)
    )


def test_by_default_the_loss_is_multiplied_by_the_token_ratio_up_to_2() -> None:
    case = {name: values.float() for name, values in random_case(5, samples=40).items()}
    arguments = {"old_logprobs": case["old_logprobs"], "advantages": case["advantages"], **CLIP}
    plain, _ = policy_loss(case["logprobs"], **arguments)
    corrected, _ = policy_loss(
        case["logprobs"], **arguments, engine_logprobs=case["engine_logprobs"], importance=ImportanceCorrection()
    )
    ratio = (case["old_logprobs"] - case["engine_logprobs"]).exp()
    assert (ratio > 2).any()
    assert torch.equal(corrected, plain * ratio.clamp(max=2))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_what_is_masked_out_has_exactly_no_gradient(level) -> None:
    case = random_case(6, samples=40)
    logprobs = case["logprobs"].requires_grad_()
    loss, diagnostics = policy_loss(
        logprobs,
        old_logprobs=logprobs.detach(),  # so that the clip takes no gradient
        advantages=case["advantages"],
        **CLIP,
        engine_logprobs=case["engine_logprobs"],
        importance=ImportanceCorrection(level=level, mode="mask", cap=1.2, floor=0.8),
        mask=torch.ones(40, 5, dtype=torch.bool),
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    masked = diagnostics["importance/clipped_fraction"] == 1
    assert 0 < masked.sum() < masked.numel()
    assert torch.equal(masked, gradient == 0)
    if level == "sequence":
        assert torch.equal(masked, masked[:, :1].expand(-1, 5))


@pytest.mark.parametrize("correction", EVERY_CORRECTION, ids=str)
def test_diagnostics_tell_the_ratio_from_the_weight(correction: ImportanceCorrection) -> None:
    case = random_case(7, samples=20)
    weights, diagnostics = importance_weights(
        case["old_logprobs"], case["engine_logprobs"], correction=correction, mask=torch.ones(20, 5, dtype=torch.bool)
    )
    ratios = diagnostics["importance/mean"]
    outside = (ratios > correction.cap) | ((ratios < 0.8) & (correction.mode == "mask"))
    assert 0 < outside.sum() < outside.numel()
    assert torch.equal(diagnostics["importance/clipped_fraction"], outside.double())
    assert torch.equal(diagnostics["importance/max"], ratios)
    assert torch.equal(diagnostics["importance/effective_sample_size"], weights)
    assert torch.equal(weights[~outside], ratios[~outside])


@pytest.mark.parametrize("correction", EVERY_CORRECTION, ids=str)
def test_with_the_engine_as_the_old_policy_the_bounded_weight_multiplies_the_policy_gradient(
    correction: ImportanceCorrection,
) -> None:
    case, mask = random_case(8, samples=40), torch.ones(40, 5, dtype=torch.bool)
    logprobs, engine, advantages = (case[name] for name in ("logprobs", "engine_logprobs", "advantages"))
    logprobs.requires_grad_()
    loss, diagnostics = policy_loss(
        logprobs,
        old_logprobs=logprobs.detach(),
        advantages=advantages,
        **CLIP,
        engine_logprobs=engine,
        importance=correction,
        old_is_engine=True,
        mask=mask,
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    weights, _ = importance_weights(logprobs.detach(), engine, correction=correction, mask=mask)
    ratio = (logprobs - engine).exp().detach()
    clipped = ((advantages > 0) & (ratio > 1.3)) | ((advantages < 0) & (ratio < 0.8))
    assert 0 < clipped.sum() < clipped.numel()
    torch.testing.assert_close(gradient, torch.where(clipped, 0.0, -advantages * weights))
    assert torch.equal(diagnostics["clip_fraction"], clipped.double())
    torch.testing.assert_close(diagnostics["ratio"], ratio)


def test_a_token_that_has_become_impossible_has_no_gradient_but_a_finite_one() -> None:
    logprobs = torch.tensor([[-500.0]], requires_grad=True)
    loss, _ = policy_loss(
        logprobs,
        old_logprobs=logprobs.detach(),
        advantages=torch.ones(1, 1),
        **CLIP,
        engine_logprobs=torch.zeros(1, 1),
        importance=ImportanceCorrection(),
        old_is_engine=True,
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert gradient.item() == 0
