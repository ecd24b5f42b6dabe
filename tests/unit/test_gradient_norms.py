"""Per-sample gradient norms against torch.autograd.grad, one sample at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from gvm_ray.maths.gradient_norms import (
    embedding_gradient_square_norms,
    head_gradients,
    tied_gradient_inner_products,
)
from gvm_ray.maths.logprobs import OutputHead

TEMPERATURE = 0.8
LENGTHS = ((3, 5), (1, 2), (4, 9))  # prompt and response tokens of each sample
VOCABULARY, WIDTH = 13, 6


class _TinyModel:
    """Embedding, a causal mean, a non-linear mixing layer, and a head that may be the embedding."""

    def __init__(self, *, tied: bool) -> None:
        generator = torch.Generator().manual_seed(1)
        self.embedding = torch.randn(VOCABULARY, WIDTH, generator=generator, requires_grad=True)
        self.mixing = torch.randn(WIDTH, WIDTH, generator=generator)
        untied = torch.randn(VOCABULARY, WIDTH, generator=generator, requires_grad=True)
        self.head = self.embedding if tied else untied

    def states(self, embedded: Tensor) -> Tensor:
        counts = torch.arange(1, embedded.shape[-2] + 1).unsqueeze(-1)
        return torch.tanh(embedded.cumsum(-2) / counts @ self.mixing) * 2

    def objective(self, embedded: Tensor, ids: Tensor, start: int) -> Tensor:
        logits = self.states(embedded)[start - 1 : -1] @ self.head.T / TEMPERATURE
        return logits.log_softmax(-1).gather(-1, ids[start:].unsqueeze(-1)).sum()


def _padded_batch(model: _TinyModel) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Token ids of each sample; then padded input ids, states, targets, mask and activation gradients."""
    generator = torch.Generator().manual_seed(2)
    sequences = [torch.randint(0, 4, (p + r,), generator=generator) for p, r in LENGTHS]  # few tokens: many repeats
    longest, longest_response = max(map(len, sequences)), max(r for _, r in LENGTHS)
    input_ids = torch.full((len(LENGTHS), longest), 9)
    states = torch.full((len(LENGTHS), longest_response, WIDTH), 50.0)  # padding must not count, whatever it holds
    targets = torch.full((len(LENGTHS), longest_response), 7)
    mask = torch.zeros(len(LENGTHS), longest_response, dtype=torch.bool)
    gradients = torch.zeros(len(LENGTHS), longest, WIDTH)
    for row, (ids, (prompt, response)) in enumerate(zip(sequences, LENGTHS, strict=True)):
        embedded = model.embedding[ids].detach().requires_grad_()
        input_ids[row, : len(ids)] = ids
        states[row, :response] = model.states(embedded)[prompt - 1 : -1].detach()
        targets[row, :response], mask[row, :response] = ids[prompt:], True
        (gradients[row, : len(ids)],) = torch.autograd.grad(model.objective(embedded, ids, prompt), embedded)
    return sequences, input_ids, states, targets, mask, gradients


def _reference(model: _TinyModel, sequences: list[Tensor], parameter: Tensor) -> list[float]:
    return [
        float(torch.autograd.grad(model.objective(model.embedding[ids], ids, prompt), parameter)[0].norm())
        for ids, (prompt, _) in zip(sequences, LENGTHS, strict=True)
    ]


@pytest.mark.parametrize("max_elements", [1, 100, 2**20])
def test_output_head(max_elements: int) -> None:
    model = _TinyModel(tied=False)
    sequences, _, states, targets, mask, _ = _padded_batch(model)
    head = head_gradients(
        states,
        OutputHead(weight=model.head.detach()),
        targets,
        mask,
        temperature=TEMPERATURE,
        max_elements=max_elements,
    )
    assert head.square_norms is not None
    np.testing.assert_allclose(head.square_norms.sqrt(), _reference(model, sequences, model.head), rtol=1e-5)


@pytest.mark.parametrize("max_elements", [1, 100, 2**20])
def test_gradients_at_the_states(max_elements: int) -> None:
    model = _TinyModel(tied=False)
    _, _, states, targets, mask, _ = _padded_batch(model)
    free = states.clone().requires_grad_()
    logprobs = (free @ model.head.detach().T / TEMPERATURE).log_softmax(-1)
    (expected,) = torch.autograd.grad(logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)[mask].sum(), free)
    head = head_gradients(
        states,
        OutputHead(weight=model.head.detach()),
        targets,
        mask,
        temperature=TEMPERATURE,
        square_norms=False,
        state_gradients=True,
        max_elements=max_elements,
    )
    assert head.square_norms is None
    torch.testing.assert_close(head.state_gradients, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        head.misses[mask], 1 - logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)[mask].exp()
    )


@pytest.mark.parametrize("max_elements", [1, 30, 2**20])
def test_output_head_is_the_same_by_gram_matrices_and_by_rows(max_elements: int) -> None:
    generator = torch.Generator().manual_seed(3)
    head, states = OutputHead(weight=torch.randn(11, 2, generator=generator)), torch.randn(2, 4, 2, generator=generator)
    targets, mask = torch.randint(0, 11, (2, 4), generator=generator), torch.ones(2, 4, dtype=torch.bool)
    by_gram = head_gradients(states, head, targets, mask)  # T = 2H
    padding = torch.zeros(2, 1)
    by_rows = head_gradients(  # T = 5 > 2H
        torch.cat([states, padding.unsqueeze(-1).expand(2, 1, 2)], 1),
        head,
        torch.cat([targets, padding.long()], 1),
        torch.cat([mask, padding.bool()], 1),
        max_elements=max_elements,
    )
    torch.testing.assert_close(by_gram.square_norms, by_rows.square_norms)


@pytest.mark.parametrize("length", [3, 12])
def test_nearly_certain_targets_keep_their_precision(length: int) -> None:
    """Probabilities around 1 - 1e-10: 1 - softmax would be 0 in float32."""
    generator = torch.Generator().manual_seed(5)
    targets = torch.randint(0, 4, (1, length), generator=generator)
    noise = 0.1 * torch.randn(1, length, 4, generator=generator)
    states = 24 * torch.nn.functional.one_hot(targets, 4) + noise
    weight = torch.eye(4)
    exact = (states.double() @ weight.double()).requires_grad_()
    errors = torch.autograd.grad(exact.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).sum(), exact)[0]
    expected = (errors.transpose(1, 2) @ states.double()).square().sum((1, 2))
    head = head_gradients(states, OutputHead(weight=weight), targets, torch.ones(1, length, dtype=torch.bool))
    assert head.square_norms is not None
    torch.testing.assert_close(head.square_norms.double(), expected, rtol=1e-4, atol=0.0)


def test_one_token_by_hand() -> None:
    """Two tokens of equal probability, h = (3, 4): d = (1/2, -1/2), so the squared norm is 1/2 * 25."""
    head = head_gradients(
        torch.tensor([[[3.0, 4.0]]]), OutputHead(weight=torch.ones(2, 2)), torch.tensor([[0]]), torch.tensor([[True]])
    )
    torch.testing.assert_close(head.square_norms, torch.tensor([12.5]))
    torch.testing.assert_close(head.misses, torch.tensor([[0.5]]))


def test_input_embedding() -> None:
    model = _TinyModel(tied=False)
    sequences, input_ids, _, _, _, gradients = _padded_batch(model)
    square_norms = embedding_gradient_square_norms(gradients, input_ids)
    np.testing.assert_allclose(square_norms.sqrt(), _reference(model, sequences, model.embedding), rtol=1e-5)


def test_repeated_tokens_add_before_the_square() -> None:
    gradients = torch.tensor([[[1.0], [2.0], [4.0]]])
    assert embedding_gradient_square_norms(gradients, torch.tensor([[5, 5, 0]])).tolist() == [9 + 16]


def test_tied_weights() -> None:
    model = _TinyModel(tied=True)
    sequences, input_ids, states, targets, mask, gradients = _padded_batch(model)
    operands = (states, OutputHead(weight=model.head.detach()), targets, mask)
    head = head_gradients(*operands, temperature=TEMPERATURE)
    inner = tied_gradient_inner_products(
        *operands, gradients=head, activation_gradients=gradients, input_ids=input_ids, temperature=TEMPERATURE
    )
    assert head.square_norms is not None
    square_norms = head.square_norms + embedding_gradient_square_norms(gradients, input_ids) + 2 * inner
    np.testing.assert_allclose(square_norms.sqrt(), _reference(model, sequences, model.embedding), rtol=1e-5)
    assert inner.abs().min() > 1e-3  # the cross term matters here


@pytest.mark.parametrize("max_elements", [1, 100, 2**20])
@pytest.mark.parametrize("lengths", [(4, 4), (9, 9)], ids=["gram", "rows"])  # T = 9 > 2H
@pytest.mark.parametrize(
    "extras", [{"bias": True}, {"scale": 0.4}, {"soft_cap": 1.5}, {"bias": True, "scale": 3.0, "soft_cap": 2.0}]
)
def test_heads_with_bias_scale_and_soft_cap(
    extras: dict[str, float], lengths: tuple[int, int], max_elements: int
) -> None:
    """Norms, gradients at the states and the tied matrix's inner product, against autograd."""
    generator = torch.Generator().manual_seed(6)
    num_samples, length, width = len(lengths), max(lengths), 4
    weight = torch.randn(VOCABULARY, width, generator=generator, requires_grad=True)
    bias = torch.randn(VOCABULARY, generator=generator) if extras.get("bias") else None
    factors = {name: value for name, value in extras.items() if name != "bias"}
    states = torch.randn(num_samples, length, width, generator=generator, requires_grad=True)
    targets = torch.randint(0, 4, (num_samples, length), generator=generator)
    mask = torch.ones(num_samples, length, dtype=torch.bool)
    mask[0, -1] = False
    logits = states @ weight.T + (0 if bias is None else bias)
    logits = logits * factors.get("scale", 1.0)
    if (cap := factors.get("soft_cap")) is not None:
        logits = cap * torch.tanh(logits / cap)
    logprobs = (logits / TEMPERATURE).log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1) * mask
    by_head = [torch.autograd.grad(row.sum(), weight, retain_graph=True)[0] for row in logprobs]
    (at_states,) = torch.autograd.grad(logprobs.sum(), states)

    head = OutputHead(weight=weight.detach(), bias=bias, **factors)
    found = head_gradients(
        states.detach(), head, targets, mask, temperature=TEMPERATURE, state_gradients=True, max_elements=max_elements
    )
    assert found.square_norms is not None
    np.testing.assert_allclose(found.square_norms.sqrt(), [float(g.norm()) for g in by_head], rtol=1e-4)
    torch.testing.assert_close(found.state_gradients, at_states, rtol=1e-4, atol=1e-5)

    input_ids = torch.randint(0, 6, (num_samples, 5), generator=generator)
    activations = torch.randn(num_samples, 5, width, generator=generator)
    inner = tied_gradient_inner_products(
        states.detach(),
        head,
        targets,
        mask,
        gradients=found,
        activation_gradients=activations,
        input_ids=input_ids,
        temperature=TEMPERATURE,
    )
    rows = [
        torch.zeros_like(weight).index_add(0, ids, values) for ids, values in zip(input_ids, activations, strict=True)
    ]
    expected = [float((a * b).sum()) for a, b in zip(by_head, rows, strict=True)]
    np.testing.assert_allclose(inner, expected, rtol=1e-3, atol=1e-5)
