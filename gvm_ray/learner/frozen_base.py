"""The base weights under a policy's adapters: they are the reference, and only a warm start trains or saves them."""

import torch
import torch.distributed as dist
from torch import Tensor

from gvm_ray.config.model import DType
from gvm_ray.learner.lora import adapters_disabled, base_parameters, train_adapters
from gvm_ray.learner.policy import PolicyModule, local_shards, reshard
from gvm_ray.learner.sequences import SequenceBatch


class FrozenBase:
    """The base of a policy with adapters; every method is a collective call.

    A checkpoint holds the base's checksums. It holds the weights themselves only after a warm start in this run: before
    that they are the model folder's.

    Args:
        policy: as loaded.
        dtype: in which the learner exports models.
    """

    def __init__(self, policy: PolicyModule, *, dtype: DType) -> None:
        self._policy = policy
        self._dtype = getattr(torch, dtype)
        self._loaded_checksums = self.checksums()

    def logprobs(self, batch: SequenceBatch) -> tuple[Tensor, None]:
        """Log-probs [B, T] of the response tokens without the adapters; call it before the policy's forward pass."""
        with adapters_disabled(self._policy):
            return self._policy(batch)[0], None

    def unfreeze(self) -> None:
        """Train the base instead of the adapters, which are still 0; call it before the first forward pass."""
        train_adapters(self._policy, adapters=False)

    @torch.no_grad()
    def freeze(self) -> None:
        """Train the adapters again. The base is rounded to the exported dtype, as a resumed run would load it."""
        reshard(self._policy)
        for shard in local_shards(self.weights.values()):
            shard.copy_(shard.to(self._dtype))
        train_adapters(self._policy, adapters=True)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The base's weights by name; they share memory with the policy's."""
        return {name: parameter.detach() for name, parameter in base_parameters(self._policy).items()}

    @property
    def changed(self) -> bool:
        """Whether the weights differ from those loaded from the model folder."""
        return not torch.equal(self.checksums(), self._loaded_checksums)

    def checksums(self) -> Tensor:
        """[number of weights] int64 on the CPU: the sum of each float32 tensor's bits, independent of its sharding."""
        shards = local_shards(self.weights.values())
        sums = torch.stack([shard.view(torch.int32).sum(dtype=torch.int64) for shard in shards])
        dist.all_reduce(sums)
        return sums.cpu()
