"""Chunked log-probs and entropies against log_softmax, values and gradients."""

import pytest
import torch

from gvm_ray.maths.logprobs import OutputHead, token_logprobs


def _operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 7, 5, generator=generator, requires_grad=True)
    weight = torch.randn(11, 5, generator=generator, requires_grad=True)
    return hidden, weight, torch.randint(0, 11, (2, 7), generator=generator)


def test_uniform_logits_give_the_log_of_the_vocabulary_size() -> None:
    logprobs, entropies = token_logprobs(
        torch.zeros(3, 4), OutputHead(weight=torch.randn(8, 4)), torch.tensor([0, 3, 7]), with_entropy=True
    )
    expected = torch.full((3,), 2.0794415)  # ln 8
    torch.testing.assert_close(logprobs, -expected)
    torch.testing.assert_close(entropies, expected)


@pytest.mark.parametrize("chunk_tokens", [1, 3, 14, 100])
def test_equals_log_softmax_whatever_the_chunk(chunk_tokens: int) -> None:
    hidden, weight, targets = _operands()
    logprobs, entropies = token_logprobs(
        hidden, OutputHead(weight=weight), targets, temperature=0.7, chunk_tokens=chunk_tokens, with_entropy=True
    )
    expected = (hidden @ weight.T / 0.7).log_softmax(-1)
    torch.testing.assert_close(logprobs, expected.gather(-1, targets.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(entropies, -(expected.exp() * expected).sum(-1))


@pytest.mark.parametrize("chunk_tokens", [3, 100])
def test_gradients_equal_those_of_log_softmax(chunk_tokens: int) -> None:
    hidden, weight, targets = _operands()
    logprobs, entropies = token_logprobs(
        hidden, OutputHead(weight=weight), targets, temperature=0.7, chunk_tokens=chunk_tokens, with_entropy=True
    )
    assert entropies is not None
    gradients = torch.autograd.grad((logprobs + 0.3 * entropies).sum(), (hidden, weight))
    reference = (hidden @ weight.T / 0.7).log_softmax(-1)
    objective = reference.gather(-1, targets.unsqueeze(-1)).sum() - 0.3 * (reference.exp() * reference).sum()
    for gradient, expected in zip(gradients, torch.autograd.grad(objective, (hidden, weight)), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_entropies_without_gradient_leave_the_log_probs_gradient_alone() -> None:
    hidden, weight, targets = _operands()
    logprobs, entropies = token_logprobs(
        hidden, OutputHead(weight=weight), targets, chunk_tokens=4, with_entropy=True, entropy_gradient=False
    )
    assert entropies is not None
    assert not entropies.requires_grad
    (gradient,) = torch.autograd.grad(logprobs.sum(), weight)
    plain, _ = token_logprobs(hidden, OutputHead(weight=weight), targets)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain.sum(), weight)[0])


def test_no_token_at_all_keeps_the_graph() -> None:
    hidden, weight, _ = _operands()
    logprobs, _ = token_logprobs(hidden[:0, 0], OutputHead(weight=weight), torch.zeros(0, dtype=torch.long))
    assert logprobs.shape == (0,)
    (gradient,) = torch.autograd.grad(logprobs.sum(), weight)
    assert gradient.abs().sum() == 0


def test_bias_scale_and_soft_cap_by_hand() -> None:
    """h = 1 over the rows 1 and 3, plus biases 1 and -1, times 2: 4 and 4; capped at 5: 5 tanh(4/5) each."""
    head = OutputHead(weight=torch.tensor([[1.0], [3.0]]), bias=torch.tensor([1.0, -1.0]), scale=2.0, soft_cap=5.0)
    torch.testing.assert_close(head.logits(torch.ones(1, 1)), torch.full((1, 2), 3.3201838))
    logprobs, entropies = token_logprobs(torch.ones(1, 1), head, torch.tensor([0]), with_entropy=True)
    torch.testing.assert_close(logprobs, torch.tensor([-0.6931472]))
    torch.testing.assert_close(entropies, torch.tensor([0.6931472]))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gradients_pass_bias_scale_and_soft_cap(temperature: float) -> None:
    hidden, weight, targets = _operands()
    bias = torch.randn(11, generator=torch.Generator().manual_seed(4), requires_grad=True)
    head = OutputHead(weight=weight, bias=bias, scale=0.3, soft_cap=2.0)
    logprobs, _ = token_logprobs(hidden, head, targets, temperature=temperature, chunk_tokens=3)
    logits = 2 * torch.tanh((hidden @ weight.T + bias) * 0.3 / 2) / temperature
    expected = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(logprobs, expected)
    operands = (hidden, weight, bias)
    pairs = zip(
        torch.autograd.grad(logprobs.sum(), operands), torch.autograd.grad(expected.sum(), operands), strict=True
    )
    for gradient, reference in pairs:
        torch.testing.assert_close(gradient, reference)


def test_a_second_backward_pass_gives_the_same() -> None:
    hidden, weight, targets = _operands()
    logprobs, entropies = token_logprobs(hidden, OutputHead(weight=weight), targets, chunk_tokens=4, with_entropy=True)
    assert entropies is not None
    objective = (logprobs + 0.3 * entropies).sum()
    first = torch.autograd.grad(objective, (hidden, weight), retain_graph=True)
    for gradient, expected in zip(torch.autograd.grad(objective, (hidden, weight)), first, strict=True):
        torch.testing.assert_close(gradient, expected)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, targets = _operands()
    logprobs, _ = token_logprobs(hidden, OutputHead(weight=weight.detach()), targets, chunk_tokens=4)
    reference = (hidden @ weight.T).log_softmax(-1).gather(-1, targets.unsqueeze(-1)).sum()
    (expected,) = torch.autograd.grad(reference, hidden)
    torch.testing.assert_close(torch.autograd.grad(logprobs.sum(), hidden)[0], expected)


@pytest.mark.parametrize("entropy_gradient", [True, False])
def test_bfloat16_operands_are_reduced_in_float32(entropy_gradient: bool) -> None:
    hidden, weight, targets = _operands()
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        operands = [tensor.detach().bfloat16().to(dtype).requires_grad_() for tensor in (hidden, weight)]
        logprobs, entropies = token_logprobs(
            operands[0],
            OutputHead(weight=operands[1]),
            targets,
            chunk_tokens=3,
            with_entropy=True,
            entropy_gradient=entropy_gradient,
        )
        assert entropies is not None
        assert logprobs.dtype == entropies.dtype == torch.float32
        gradients = torch.autograd.grad(logprobs.sum() + (entropies.sum() if entropy_gradient else 0), operands)
        results.append([logprobs, entropies, *(gradient.float() for gradient in gradients)])
    torch.testing.assert_close(results[0], results[1], atol=0.05, rtol=0.02)
