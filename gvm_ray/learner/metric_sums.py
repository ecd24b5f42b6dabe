"""Metrics of one update, summed over micro-batches where they arise and over ranks once at the end."""

import torch
import torch.distributed as dist
from torch import Tensor

from gvm_ray.types import Metrics


class MetricSums:
    """Plain sums, means over response tokens, and maxima. Values stay on the device until `reduce`.

    Every rank must add the same names in the same order.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {"loss": self._zero()}
        self._token_sums: dict[str, Tensor] = {}
        self._token_counts: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, name: str, value: Tensor) -> None:
        """Add a number to a sum."""
        self._sums[name] = self._sums.get(name, self._zero()) + value.detach()

    @torch.no_grad()
    def add_tokens(self, name: str, values: Tensor, *, mask: Tensor) -> None:
        """Add the values [B, T] where `mask` is true to a mean over tokens."""
        total = torch.where(mask, values.detach(), 0.0).double().sum()
        self._token_sums[name] = self._token_sums.get(name, self._zero()) + total
        self._token_counts[name] = self._token_counts.get(name, self._zero()) + mask.sum()

    @torch.no_grad()
    def maximum(self, name: str, values: Tensor) -> None:
        """Raise a maximum, which starts at 0."""
        self._maxima[name] = torch.maximum(self._maxima.get(name, self._zero()), values.detach().double().max())

    def reduce(self) -> Metrics:
        """The metrics over all ranks; a collective call."""
        sums = torch.stack([*self._sums.values(), *self._token_sums.values(), *self._token_counts.values()])
        dist.all_reduce(sums)
        values = sums.tolist()
        metrics = dict(zip(self._sums, values, strict=False))
        totals = values[len(self._sums) :]
        num_means = len(self._token_sums)
        for name, total, count in zip(self._token_sums, totals[:num_means], totals[num_means:], strict=True):
            metrics[name] = total / max(count, 1.0)
        if self._maxima:
            maxima = torch.stack([*self._maxima.values()])
            dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
            metrics |= dict(zip(self._maxima, maxima.tolist(), strict=True))
        return metrics

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self._device)
