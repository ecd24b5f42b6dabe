"""The last layer of a causal LM: logits soft_cap * tanh(scale * (W h + b) / soft_cap) of its final hidden states h."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputHead:
    """W, and what some families add: Phi a bias, Granite and Cohere a scale, Gemma 2 a soft cap."""

    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    soft_cap: float | None = None  # no logit is larger

    def logits(self, states: Tensor) -> Tensor:
        """Float32 logits [..., V] of states [..., H]; the product is computed in the operands' dtype."""
        logits = torch.nn.functional.linear(states, self.weight, self.bias).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap is not None:
            logits = (logits / self.soft_cap).tanh() * self.soft_cap
        return logits

    def finish_(self, products: Tensor, tokens: Tensor | slice) -> Tensor | None:
        """Make logits, in place, of the float32 products of states and rows of W.

        Returns:
            The derivative of each logit by its product, divided by `scale`; None where that is 1.

        Args:
            products: [..., N].
            tokens: whose rows they are, broadcast against the products.
        """
        if self.bias is not None:
            products.add_(self.bias[tokens])
        if self.scale != 1.0:
            products.mul_(self.scale)
        if self.soft_cap is None:
            return None
        products.div_(self.soft_cap).tanh_()
        slopes = 1 - products.square()
        products.mul_(self.soft_cap)
        return slopes
