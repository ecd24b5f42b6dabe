"""Builders for the learner tests: a tiny model, hand-made groups, and a loss that shows what it was given."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gvm_ray.allocators.base import Needs, RunShape
from gvm_ray.allocators.gvm import GVMAllocatorConfig
from gvm_ray.config import RunConfig, parse_config
from gvm_ray.config.model import ScratchModelConfig
from gvm_ray.learner.learner import Learner
from gvm_ray.learner.policy import PolicyModule, load_causal_lm
from gvm_ray.learner.scratch_model import build_scratch_model
from gvm_ray.learner.sequences import SequenceBatch
from gvm_ray.types import Completion, Demonstration, GroupRef, RolloutGroup, TrainBatch, TrainGroup
from tests.builders import prompt

TINY_MODEL = ScratchModelConfig(
    hidden_size=32, num_heads=2, num_key_value_heads=1, intermediate_size=48, max_position_embeddings=64, seed=3
)


# Adam divides by the gradient's size: with a small epsilon, rounding in a gradient near 0 would move weights visibly.
OPTIMIZER = {"learning_rate": 1e-2, "epsilon": 1e-3}


def build_tiny_model(folder: Path, *, tied: bool = True) -> str:
    """The folder of a randomly initialised model of 35 thousand parameters."""
    build_scratch_model(TINY_MODEL.model_copy(update={"tie_word_embeddings": tied}), folder)
    return str(folder)


def learner_config(**tables: Any) -> RunConfig:
    """A configuration with a fast optimizer; `tables` replace or add tables."""
    values: dict[str, Any] = {
        "name": "learner",
        "model": {"type": "scratch", "hidden_size": 32, "num_heads": 2, "num_key_value_heads": 1},
        "prompts": {"train": {"type": "arithmetic"}},
        "sampling": {"temperature": 0.7},
        "allocator": {"type": "uniform"},
        "learner": {"optimizer": OPTIMIZER},
        "warm_start": {"num_updates": 30, "batch_size": 4, "optimizer": {"learning_rate": 1e-2}},
    }
    return parse_config(values | tables)


class TrainingNormsConfig(GVMAllocatorConfig):
    """An allocator that asks for the gradient norms of the samples that are trained on."""

    def needs(self, run: RunShape) -> Needs:
        return replace(super().needs(run), training_norms=True)


def with_training_norms(config: RunConfig) -> RunConfig:
    """The same with such an allocator."""
    return config.model_copy(update={"allocator": TrainingNormsConfig()})


class SurrogateLoss:
    """-advantage x ratio + coefficient x (logprob - reference), a loss with a simple gradient."""

    def __init__(self, *, kl_coefficient: float = 0.0, needs_entropy: bool = False) -> None:
        self.kl_coefficient = kl_coefficient
        self.needs_entropy = needs_entropy

    @property
    def needs_reference(self) -> bool:
        return self.kl_coefficient > 0

    def __call__(
        self,
        *,
        logprobs: Tensor,
        old_logprobs: Tensor,
        engine_logprobs: Tensor,
        ref_logprobs: Tensor | None,
        entropy: Tensor | None,
        advantages: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert engine_logprobs.shape == mask.shape == logprobs.shape
        ratio = (logprobs - old_logprobs).exp()
        weight = (old_logprobs - engine_logprobs).exp().detach()
        loss = -advantages * ratio
        diagnostics = {"ratio": ratio.detach(), "weight/effective_sample_size": weight}
        if ref_logprobs is not None:
            loss = loss + self.kl_coefficient * (logprobs - ref_logprobs)
            diagnostics["kl"] = (logprobs - ref_logprobs).detach()
        if entropy is not None:
            loss = loss - 0.1 * entropy
        return loss, diagnostics


class DeadlyLoss(SurrogateLoss):
    """Ends the process that computes it."""

    def __call__(self, **_: object) -> tuple[Tensor, dict[str, Tensor]]:
        os._exit(1)


def ragged_groups(*, seed: int = 0) -> list[RolloutGroup]:
    """Groups of 3, 1, 0 and 5 samples with prompts and responses of many lengths; every second reward is 1."""
    rng = np.random.default_rng(seed)
    groups = []
    for index, num_samples in enumerate((3, 1, 0, 5)):
        prompt_ids = rng.integers(3, 90, size=4 + 3 * index).astype(np.int32)
        completions = tuple(
            Completion(
                token_ids=(ids := rng.integers(3, 12, size=rng.integers(1, 20)).astype(np.int32)),
                logprobs=np.full(len(ids), -4.0, dtype=np.float32),
                policy_versions=np.zeros(len(ids), dtype=np.int32),
                finish_reason="stop",
                text="",
            )
            for _ in range(num_samples)
        )
        asked = prompt(f"p{index}", token_ids=prompt_ids)
        rewards = np.arange(num_samples, dtype=np.float64) % 2
        groups.append(RolloutGroup.of(asked, completions, rewards=rewards))
    return groups


def batch_of(groups: Sequence[RolloutGroup], *, refs: Sequence[GroupRef] | None = None, step: int = 0) -> TrainBatch:
    """All samples of the groups; advantages and weights differ from sample to sample."""
    places = refs if refs is not None else [GroupRef(ref=None, index=i) for i in range(len(groups))]
    return TrainBatch(
        step=step,
        groups=tuple(
            TrainGroup(
                prompt_id=group.prompt.prompt_id,
                ref=ref,
                sample_indices=np.arange(len(group.completions), dtype=np.int32),
                advantages=np.linspace(1.0, -0.5, len(group.completions)),
                weights=np.linspace(0.02, 0.05, len(group.completions)),
                num_tokens=group.num_tokens,
            )
            for ref, group in zip(places, groups, strict=True)
        ),
    )


def copy_demonstrations(*, num: int = 16) -> list[Demonstration]:
    """Demonstrations that a model can learn: the response repeats the prompt's one token."""
    return [
        Demonstration(
            prompt_token_ids=np.array([20 + i % 4], dtype=np.int32),
            response_token_ids=np.array([20 + i % 4] * (1 + i % 3) + [1], dtype=np.int32),
        )
        for i in range(num)
    ]


def reference_logprobs(folder: str | Path, group: RolloutGroup, index: int, *, temperature: float) -> Tensor:
    """[T] of a completion under the transformers model in a folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    response = torch.from_numpy(group.completions[index].token_ids.astype(np.int64))
    ids = torch.cat([torch.from_numpy(group.prompt.token_ids.astype(np.int64)), response])
    with torch.no_grad():
        logits = model(ids.unsqueeze(0)).logits[0, len(group.prompt.token_ids) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(-1, response.unsqueeze(-1)).squeeze(-1)


def cpu_policy(base: str, *, attention: Any = "sdpa") -> PolicyModule:
    """The whole model of a folder as a policy at temperature 0.7, with few rows of logits at a time."""
    causal_lm = load_causal_lm(base, revision=None, trust_remote_code=False, attention=attention)
    return PolicyModule(causal_lm, temperature=0.7, chunk_tokens=16).eval()


def learner_with(base: str, *, settings: dict[str, Any], norms: bool = False, **tables: Any) -> Learner:
    """A learner with a loss of all kinds of terms; `settings` are those of [learner]."""
    config = learner_config(learner={"optimizer": OPTIMIZER} | settings, **tables)
    loss = SurrogateLoss(kl_coefficient=0.1, needs_entropy=True)
    return Learner(with_training_norms(config) if norms else config, base_path=base, token_loss=loss)


def values_and_gradients(policy: PolicyModule, batch: SequenceBatch) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs and entropies of a batch, and every parameter's gradient of a weighted sum of them."""
    logprobs, entropies = policy(batch, with_entropy=True)
    assert entropies is not None
    weights = torch.linspace(-1, 1, logprobs.numel()).view(logprobs.shape)
    policy.zero_grad()
    (weights * (logprobs + 0.1 * entropies)).sum().backward()
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in policy.parameters()]
    return [logprobs.detach(), entropies.detach()], [gradient.clone() for gradient in gradients]


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    key_ends: Tensor,
    longest: int,
    longest_key: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What the kernel of this name does on a GPU: queries are the last of their keys, as in FlashAttention 2.1 on."""
    assert ends.dtype == key_ends.dtype == torch.int32
    assert (longest, longest_key) == (int(ends.diff().max()), int(key_ends.diff().max()))
    assert window_size == (-1, 0)
    parts = []
    for i in range(len(ends) - 1):
        queries, keys = slice(int(ends[i]), int(ends[i + 1])), slice(int(key_ends[i]), int(key_ends[i + 1]))
        rows, columns = queries.stop - queries.start, keys.stop - keys.start
        mask = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
        operands = (x[part].transpose(0, 1).unsqueeze(0) for x, part in ((query, queries), (key, keys), (value, keys)))
        attended = scaled_dot_product_attention(*operands, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
        parts.append(attended.squeeze(0).transpose(0, 1))
    return torch.cat(parts)
