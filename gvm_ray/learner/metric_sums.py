"""Metrics of one update, summed over micro-batches where they arise and over ranks once at the end."""

import torch
import torch.distributed as dist
from torch import Tensor

from gvm_ray.types import Metrics


class MetricSums:
    """Plain sums, and means, maxima and effective sample sizes over response tokens.

    Values stay on the device until `reduce`. Every rank must add the same names in the same order.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {"loss": self._zeros()}
        self._moments: dict[str, Tensor] = {}  # [3]: number of tokens, sum of their values, sum of the squares
        self._maxima: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, name: str, value: Tensor) -> None:
        """Add a number to a sum."""
        self._sums[name] = self._sums.get(name, self._zeros()) + value.detach()

    @torch.no_grad()
    def add_tokens(self, name: str, values: Tensor, *, mask: Tensor) -> None:
        """Add the values [B, T] where `mask` is true; the last part of the name says what becomes of them.

        "max" is their maximum (at least 0), "effective_sample_size" (sum w)^2 / (n sum w^2) of weights w, in (0, 1],
        or 0 where all are 0; any other name is a mean.
        """
        values = torch.where(mask, values.detach(), 0.0).double()
        if name.endswith("/max"):
            self._maxima[name] = torch.maximum(self._maxima.get(name, self._zeros()), values.max())
        else:
            moments = torch.stack([mask.sum().double(), values.sum(), values.square().sum()])
            self._moments[name] = self._moments.get(name, self._zeros(3)) + moments

    def reduce(self) -> Metrics:
        """The metrics over all ranks; a collective call."""
        sums = torch.cat([torch.stack([*self._sums.values()]), *self._moments.values()])
        dist.all_reduce(sums)
        values = sums.tolist()
        metrics = dict(zip(self._sums, values, strict=False))
        for index, name in enumerate(self._moments):
            start = len(self._sums) + 3 * index
            count, total, square_total = values[start : start + 3]
            if name.endswith("/effective_sample_size"):
                metrics[name] = total**2 / (count * square_total) if square_total > 0 else 0.0
            else:
                metrics[name] = total / max(count, 1.0)
        if self._maxima:
            maxima = torch.stack([*self._maxima.values()])
            dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
            metrics |= dict(zip(self._maxima, maxima.tolist(), strict=True))
        return metrics

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self._device)
