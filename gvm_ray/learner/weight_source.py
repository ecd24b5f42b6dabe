"""The policy's weights as vLLM's transfer asks for them: what will come, and then every tensor, gathered in turn."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gvm_ray.functional.checksum import TensorChecksum
from gvm_ray.learner.policy import PolicyModule, full_tensor_names, named_full_tensors


class TensorMeta(NamedTuple):
    """What is sent of one weight."""

    name: str  # Hugging Face
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class PolicyWeights:
    """A vLLM `WeightSource` by its members.

    Unlike vLLM's `ModuleSource` it sends what a generator samples with: adapters merged in, in the engine's dtype, and
    a tied output head by its own name as well, for engines that pack it apart from the embedding.

    Every rank iterates together with the others, as gathering is a collective call.

    Args:
        policy: gives the present one.
        dtype: of what is sent.
        device: where the gathered tensors are.
    """

    def __init__(self, policy: Callable[[], PolicyModule], *, dtype: torch.dtype, device: torch.device) -> None:
        self._policy = policy
        self._dtype = dtype
        self._device = device
        self._round: Iterator[tuple[str, Tensor]] | None = None
        self._checksum = TensorChecksum()

    def metadata(self) -> list[TensorMeta]:
        """What iteration gives, in order; gathers nothing."""
        policy = self._policy()
        return [
            TensorMeta(alias, self._dtype, shape)
            for name, shape in full_tensor_names(policy)
            for alias in _aliases(name, tied=policy.tied)
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._checksum = TensorChecksum()
        self._round = self._checksum.following(self._tensors())
        return self._round

    @property
    def checksum(self) -> str:
        """Of what the last iteration has given so far."""
        return self._checksum.hexdigest()

    def finish_round(self) -> None:
        """Take part in what is left of a round that was broken off, or never begun: the other ranks wait in it."""
        for _ in self if self._round is None else self._round:
            pass
        self._round = None

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        policy = self._policy()
        for name, tensor in named_full_tensors(policy, dtype=self._dtype, device=self._device):
            for alias in _aliases(name, tied=policy.tied):
                yield alias, tensor


def _aliases(name: str, *, tied: bool) -> tuple[str, ...]:
    return (name, "lm_head.weight") if tied and name.endswith("embed_tokens.weight") else (name,)
