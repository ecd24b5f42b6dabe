"""Token losses against hand-computed numbers and finite differences."""

import math

import pytest
import torch
from torch import Tensor

from gvm_ray.maths.losses import ImportanceCorrection, clipped_surrogate, kl_estimate, policy_loss
from tests.loss_cases import CLIP, EVERY_CORRECTION, logs, random_case, row


def test_clipped_surrogate_takes_the_pessimistic_branch() -> None:
    ratios = logs(1.0, 1.5, 0.5, 1.5, 0.5)
    advantages = row(2.0, 2.0, 2.0, -2.0, -2.0)
    loss = clipped_surrogate(ratios, torch.zeros_like(ratios), advantages, **CLIP)
    # A > 0: -min(r, 1.3) A; A < 0: -max(r, 0.8) A
    torch.testing.assert_close(loss, row(-2.0, -2.6, -1.0, 3.0, 1.6))


def test_dual_clip_bounds_the_loss_of_negative_advantages_only() -> None:
    ratios = logs(10.0, 10.0, 2.0)
    loss = clipped_surrogate(ratios, torch.zeros_like(ratios), row(-2.0, 2.0, -2.0), **CLIP, dual_clip=3.0)
    torch.testing.assert_close(loss, row(6.0, -2.6, 4.0))


def test_one_advantage_per_sample_is_broadcast_over_its_tokens() -> None:
    case = random_case()
    narrow = clipped_surrogate(case["logprobs"], case["old_logprobs"], case["advantages"], **CLIP)
    wide = clipped_surrogate(case["logprobs"], case["old_logprobs"], case["advantages"].expand(-1, 5), **CLIP)
    assert narrow.shape == (3, 5)
    torch.testing.assert_close(narrow, wide)


@pytest.mark.parametrize("dual_clip", [None, 1.2])
def test_gradient_of_the_surrogate(dual_clip: float | None) -> None:
    case = random_case(1)
    logprobs = case["logprobs"].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: clipped_surrogate(x, case["old_logprobs"], case["advantages"], **CLIP, dual_clip=dual_clip),
        (logprobs,),
    )


def test_on_policy_gradient_is_that_of_the_policy_gradient() -> None:
    logprobs = logs(0.5, 0.1).requires_grad_()
    clipped_surrogate(logprobs, logprobs.detach(), row(2.0, -3.0), **CLIP).sum().backward()
    torch.testing.assert_close(logprobs.grad, row(-2.0, 3.0))


def test_kl_estimates_by_hand() -> None:
    policy, reference = logs(0.5, 0.2), logs(0.25, 0.4)
    d = math.log(2)
    torch.testing.assert_close(kl_estimate(policy, reference, kind="k1"), row(d, -d))
    torch.testing.assert_close(kl_estimate(policy, reference, kind="k2"), row(d * d / 2, d * d / 2))
    torch.testing.assert_close(kl_estimate(policy, reference, kind="k3"), row(0.5 - 1 + d, 2 - 1 - d))


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_kl_estimates_are_unbiased(kind) -> None:
    policy, reference = row(0.7, 0.2, 0.1), row(0.3, 0.3, 0.4)
    exact = (policy * (policy / reference).log()).sum()
    torch.testing.assert_close((policy * kl_estimate(policy.log(), reference.log(), kind=kind)).sum(), exact)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_gradient_of_the_kl_estimates(kind) -> None:
    case = random_case(2)
    logprobs = case["logprobs"].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kl_estimate(x, case["ref_logprobs"], kind=kind), (logprobs,))


def test_policy_loss_is_the_sum_of_its_terms() -> None:
    loss, diagnostics = policy_loss(
        logs(1.5, 0.9),
        old_logprobs=logs(1.0, 1.0),
        advantages=row(2.0),
        **CLIP,
        engine_logprobs=logs(0.5, 0.25),
        importance=ImportanceCorrection(cap=3.0),
        ref_logprobs=logs(1.5, 0.45),
        kl_coefficient=0.1,
        kl_kind="k1",
        entropy=row(1.0, 2.0),
        entropy_coefficient=0.5,
    )
    # weights 2 and min(4, 3); surrogates -1.3 * 2 and -0.9 * 2; KL 0 and ln 2
    torch.testing.assert_close(loss, row(2 * -2.6 - 0.5, 3 * -1.8 + 0.1 * math.log(2) - 1.0))
    torch.testing.assert_close(diagnostics["ratio"], row(1.5, 0.9))
    torch.testing.assert_close(diagnostics["clip_fraction"], row(1.0, 0.0))
    torch.testing.assert_close(diagnostics["kl"], row(0.0, math.log(2)))
    assert not any(value.requires_grad for value in diagnostics.values())


def test_clip_fraction_is_one_exactly_where_the_surrogate_has_no_gradient() -> None:
    case = random_case(3, samples=40)
    logprobs = case["logprobs"].requires_grad_()
    loss, diagnostics = policy_loss(
        logprobs, old_logprobs=case["old_logprobs"], advantages=case["advantages"], **CLIP, dual_clip=1.4
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    clipped = diagnostics["clip_fraction"] == 1
    assert 0 < clipped.sum() < clipped.numel()
    assert torch.equal(clipped, gradient == 0)


def test_without_ratio_the_loss_is_the_weighted_likelihood() -> None:
    loss, diagnostics = policy_loss(
        logs(0.5, 0.1), old_logprobs=logs(0.9, 0.9), advantages=row(1.0), ratio=False, **CLIP
    )
    torch.testing.assert_close(loss, -logs(0.5, 0.1))
    assert diagnostics["clip_fraction"].tolist() == [[0.0, 0.0]]
    assert "kl" not in diagnostics


@pytest.mark.parametrize("correction", EVERY_CORRECTION, ids=str)
@pytest.mark.parametrize("ratio", [True, False])
def test_gradient_of_the_whole_loss(ratio: bool, correction: ImportanceCorrection) -> None:
    case = random_case(4)
    logprobs, entropy = case["logprobs"].requires_grad_(), case["entropy"].requires_grad_()

    def loss(x: Tensor, h: Tensor) -> Tensor:
        return policy_loss(
            x,
            old_logprobs=case["old_logprobs"],
            advantages=case["advantages"],
            **CLIP,
            dual_clip=3.0,
            ratio=ratio,
            engine_logprobs=case["engine_logprobs"],
            importance=correction,
            mask=torch.ones(3, 5, dtype=torch.bool),
            ref_logprobs=case["ref_logprobs"],
            kl_coefficient=0.3,
            entropy=h,
            entropy_coefficient=0.2,
        )[0]

    assert torch.autograd.gradcheck(loss, (logprobs, entropy))


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_kl_never_pushes_a_token_away_from_the_reference(kind) -> None:
    for difference in (-30.0, -1.0, 1.0, 30.0):
        policy = torch.tensor(difference, requires_grad=True)
        kl_estimate(policy, torch.tensor(0.0), kind=kind).backward()
        assert policy.grad is not None
        assert policy.grad.item() * difference >= 0


def test_absurd_log_ratios_stay_finite() -> None:
    for logprobs, other in ((0.0, -1e4), (-1e4, 0.0)):
        policy = torch.tensor([[logprobs]], requires_grad=True)
        loss, _ = policy_loss(
            policy,
            old_logprobs=torch.tensor([[other]]),
            advantages=torch.tensor([[-1.0]]),
            **CLIP,
            engine_logprobs=torch.tensor([[other]]),
            importance=ImportanceCorrection(),
            ref_logprobs=torch.tensor([[other]]),
            kl_coefficient=1.0,
        )
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert policy.grad is not None
        assert torch.isfinite(policy.grad).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"importance": ImportanceCorrection()}, "importance level 'token' needs engine_logprobs"),
        (
            {"importance": ImportanceCorrection(level="sequence"), "engine_logprobs": logs(0.5)},
            "importance level 'sequence' needs mask",
        ),
        ({"kl_coefficient": 0.1}, "kl_coefficient=0.1 needs ref_logprobs"),
        ({"entropy_coefficient": 0.1}, "entropy_coefficient=0.1 needs entropy"),
    ],
)
def test_a_term_without_its_input_is_refused(setting, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy_loss(logs(0.5), old_logprobs=logs(0.5), advantages=row(1.0), **CLIP, **setting)
