"""Per-sample gradient norms against torch.autograd.grad, one sample at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from gvm_ray.functional.gradient_norms import (
    embedding_gradient_square_norms,
    head_gradient_square_norms,
    tied_gradient_inner_products,
)

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
    square_norms = head_gradient_square_norms(
        states, model.head.detach(), targets, mask, temperature=TEMPERATURE, max_elements=max_elements
    )
    np.testing.assert_allclose(square_norms.sqrt(), _reference(model, sequences, model.head), rtol=1e-5)


def test_output_head_is_the_same_by_gram_matrices_and_by_rows() -> None:
    generator = torch.Generator().manual_seed(3)
    head, states = torch.randn(11, 4, generator=generator), torch.randn(2, 4, 4, generator=generator)
    targets, mask = torch.randint(0, 11, (2, 4), generator=generator), torch.ones(2, 4, dtype=torch.bool)
    by_gram = head_gradient_square_norms(states, head, targets, mask)  # T = H = 4
    padding = torch.zeros(2, 1)
    by_rows = head_gradient_square_norms(  # T = 5 > H
        torch.cat([states, padding.unsqueeze(-1).expand(2, 1, 4)], 1),
        head,
        torch.cat([targets, padding.long()], 1),
        torch.cat([mask, padding.bool()], 1),
    )
    torch.testing.assert_close(by_gram, by_rows)


def test_one_token_by_hand() -> None:
    """Two tokens of equal probability, h = (3, 4): d = (1/2, -1/2), so the squared norm is 1/2 * 25."""
    square_norm = head_gradient_square_norms(
        torch.tensor([[[3.0, 4.0]]]), torch.ones(2, 2), torch.tensor([[0]]), torch.tensor([[True]])
    )
    torch.testing.assert_close(square_norm, torch.tensor([12.5]))


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
    operands = (states, model.head.detach(), targets, mask)
    inner = tied_gradient_inner_products(
        *operands, activation_gradients=gradients, input_ids=input_ids, temperature=TEMPERATURE
    )
    square_norms = (
        head_gradient_square_norms(*operands, temperature=TEMPERATURE)
        + embedding_gradient_square_norms(gradients, input_ids)
        + 2 * inner
    )
    np.testing.assert_allclose(square_norms.sqrt(), _reference(model, sequences, model.embedding), rtol=1e-5)
    assert inner.abs().min() > 1e-3  # the cross term matters here
