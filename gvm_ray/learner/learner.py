"""One learner rank: optimizer updates, gradient norms, and the policy's state. Knows torch.distributed, not Ray.

Every method is a collective call: all ranks call it with the same arguments, and get the same answer. Without a process
group one rank stands alone, so a notebook or a test drives a Learner directly.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from gvm_ray.config import RunConfig
from gvm_ray.config.model import PretrainedModelConfig
from gvm_ray.learner.checkpoint import load_shards, save_shards
from gvm_ray.learner.frozen_base import FrozenBase
from gvm_ray.learner.kernels import (
    AttentionKernels,
    Sharing,
    process_group_backend,
    resolve_attention,
    resolve_sharing,
)
from gvm_ray.learner.lora import named_adapter_tensors
from gvm_ray.learner.losses import CrossEntropy, MetricSums, MicroBatchLoss, PolicyLoss, TokenLoss
from gvm_ray.learner.model_folder import write_model_folder
from gvm_ray.learner.norms import PolicyMeasurements, TrainingGradientNorms, measured_samples
from gvm_ray.learner.optimizer import PolicyOptimizer
from gvm_ray.learner.policy import PolicyModule, copy_weights, load_policy, named_full_tensors, reshard
from gvm_ray.learner.sequences import (
    BatchLayout,
    TrainSample,
    samples_of_batch,
    samples_of_demonstrations,
    sharing_pays,
    train_sample,
)
from gvm_ray.maths.packing import split_updates
from gvm_ray.pretrained import load_tokenizer
from gvm_ray.types import (
    BoolArray,
    Demonstration,
    Float64Array,
    FloatArray,
    GradientParameters,
    IntArray,
    Metrics,
    Pooling,
    RolloutGroup,
    TrainBatch,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchUpdate:
    """The result of one batch's updates, on every rank."""

    metrics: Metrics
    gradient_norms: tuple[Float64Array, ...] = ()  # as in `UpdateResult`


class Learner:
    """One rank's share of the policy and its optimizer."""

    def __init__(
        self, config: RunConfig, *, base_path: str, token_loss: TokenLoss, device: torch.device | None = None
    ) -> None:
        self._config = config
        self._device = device or torch.device("cpu")
        if not dist.is_initialized():
            store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group(process_group_backend(self._device.type), store=store, rank=0, world_size=1)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # FSDP2 places the shards on the current device
        self._base_path = base_path
        self._world_size, self._rank = dist.get_world_size(), dist.get_rank()
        self._mesh = init_device_mesh(self._device.type, (self._world_size,))
        model = config.model if isinstance(config.model, PretrainedModelConfig) else None
        self._revision = model.revision if model is not None and model.path == base_path else None
        self._trust_remote_code = model is not None and model.trust_remote_code
        self._tokenizer = load_tokenizer(base_path, revision=self._revision, trust_remote_code=self._trust_remote_code)
        self._attention: AttentionKernels
        self._attention, packed = resolve_attention(config.learner, device_type=self._device.type)
        self._layout = BatchLayout(max_tokens=config.learner.micro_batch_tokens, packed=packed, device=self._device)
        self._policy = self._load(trainable=True, sharing=resolve_sharing(config.learner, self._attention))
        self._layout = replace(self._layout, shared=self._policy.shares_prompts)
        self._base = FrozenBase(self._policy, dtype=config.learner.dtype) if config.learner.lora else None
        needed = token_loss.needs_reference
        alike: Sharing = "on" if self._layout.shared else "off"
        self._reference = self._load(trainable=False, sharing=alike) if needed and self._base is None else None
        reference = self._base.logprobs if needed and self._base is not None else self._reference
        self._policy_loss = PolicyLoss(self._policy, reference=reference, token_loss=token_loss)
        self._optimizer = self._build_optimizer()
        self._warm_start_optimizer: PolicyOptimizer | None = None
        self._measure = PolicyMeasurements(self._policy, layout=self._layout)

    # --- training -----------------------------------------------------------------------------------------------------
    def update(self, batch: TrainBatch, groups: Sequence[RolloutGroup]) -> BatchUpdate:
        """Make the batch's optimizer updates; `groups` are the groups behind batch.groups, in order.

        Each of the `updates_per_batch` updates takes a random part of the samples and scales its loss by the number of
        parts, so that the parts' gradients average to the whole batch's. An update without samples, or with a gradient
        norm that isn't finite, is skipped and counted. How samples are split over micro-batches and ranks changes
        nothing but rounding.

        Where the run asks for `training_gradient_norms`, each sample's norm is that of the gradient of
        sum_t token_loss_t, without its weight, at the input embedding and under the weights of its own update. That is
        |advantage| x |gradient of sum_t ratio_t|, plus what importance weights, KL and entropy make of it; a token that
        is clipped adds nothing. Where prompts are shared, only `norm_samples` of each prompt and class are measured.

        Raises:
            TrainingDiverged: `max_skipped_updates` in a row had a gradient that isn't finite.
        """
        samples = samples_of_batch(batch, groups)
        num_parts = self._config.algorithm.updates_per_batch
        if num_parts > 1 and self._config.algorithm.old_logprobs == "learner":
            # With one update the policy is the old policy: the training pass itself gives its log-probs.
            old = self._measure.logprobs(samples)
            samples = [replace(sample, old_logprobs=values) for sample, values in zip(samples, old, strict=True)]
        rng = np.random.default_rng((self._config.seed, batch.step))
        parts = split_updates([len(s.response_ids) for s in samples], num_updates=num_parts, rng=rng)
        sums = MetricSums(self._device)
        first_update = self._optimizer.num_updates
        grad_norms: list[float] = []
        sample_norms = np.full(len(samples), np.nan)
        shares = self._layout.shared and sharing_pays(samples)
        measured = measured_samples(batch, per_class=self._config.needs.norm_samples if shares else None)
        for part in parts:
            if part.size:
                grad_norm, sample_norms[part] = self._policy_update(
                    [samples[i] for i in part], measured=measured[part], sums=sums, scale=num_parts, step=batch.step
                )
                grad_norms.append(grad_norm)
        applied = self._optimizer.num_updates - first_update
        finite = [value for value in grad_norms if np.isfinite(value)]
        metrics = sums.reduce() | {
            "grad_norm": float(np.mean(finite)) if finite else 0.0,
            "learning_rate": self._optimizer.last_learning_rate,
            "num_updates": float(applied),
            "num_skipped_updates": float(num_parts - applied),
        }
        measured = self._config.training_gradient_norms
        return BatchUpdate(metrics=metrics, gradient_norms=_by_group(sample_norms, batch) if measured else ())

    def _policy_update(
        self, samples: Sequence[TrainSample], *, measured: BoolArray, sums: MetricSums, scale: float, step: int
    ) -> tuple[float, Float64Array]:
        """One optimizer update: the norm of its gradient, and [N] of each sample's own, NaN where it isn't known."""
        norms = None
        if self._config.training_gradient_norms:
            norms = TrainingGradientNorms(self._policy, measured=measured, device=self._device)
        self._accumulate_gradients(samples, self._policy_loss, sums=sums, scale=scale, norms=norms)
        grad_norm = self._optimizer.apply(where=f"step {step + 1}")
        if norms is None or not np.isfinite(grad_norm):
            return grad_norm, np.full(len(samples), np.nan)
        return grad_norm, norms.reduce(np.array([s.weight for s in samples]) * (scale * self._world_size))

    def supervised_update(self, demonstrations: Sequence[Demonstration]) -> Metrics:
        """One warm-start update: cross entropy, averaged over all response tokens, at temperature 1.

        Returns:
            loss (nats per token), grad_norm, learning_rate.
        """
        warm_start = self._config.warm_start
        assert warm_start is not None, "supervised updates need [warm_start]"
        if self._warm_start_optimizer is None:
            if self._base is not None:
                assert not self._optimizer.num_updates, "with adapters a warm start comes first"
                self._base.unfreeze()
            self._warm_start_optimizer = PolicyOptimizer(
                self._policy,
                warm_start.optimizer,
                total_updates=warm_start.num_updates,
                max_skipped_updates=self._config.max_skipped_updates,
            )
        sums = MetricSums(self._device)
        self._accumulate_gradients(samples_of_demonstrations(demonstrations), CrossEntropy(self._policy), sums=sums)
        grad_norm = self._warm_start_optimizer.apply(where="an update of the warm start")
        return sums.reduce() | {"grad_norm": grad_norm, "learning_rate": self._warm_start_optimizer.last_learning_rate}

    def finish_warm_start(self) -> None:
        """Start reinforcement learning from here: a fresh optimizer, and the present weights as the reference."""
        self._warm_start_optimizer = None
        if self._base is not None:
            self._base.freeze()
        self._optimizer = self._build_optimizer()
        if self._reference is not None:
            reshard(self._reference)
            copy_weights(self._policy, to=self._reference)

    def _accumulate_gradients(
        self,
        samples: Sequence[TrainSample],
        loss: MicroBatchLoss,
        *,
        sums: MetricSums,
        scale: float = 1.0,
        norms: TrainingGradientNorms | None = None,
    ) -> None:
        """Add the gradient of scale x the samples' summed loss, over all ranks, to the parameters.

        Gradients are reduced after every micro-batch: keeping them whole until the last would save calls, but hold a
        full float32 copy of the model on every rank.
        """
        separate = np.zeros(len(samples), dtype=np.bool_) if norms is None else norms.measured
        for apart in (True, False):  # of a prompt that several samples read, none has a gradient of its own
            chosen = np.flatnonzero(separate == apart)
            for places, micro_batch in self._layout.micro_batches([samples[i] for i in chosen], separate=apart):
                indices = chosen[places]
                members = [samples[i] for i in indices]
                with norms.collected(indices, micro_batch) if norms is not None and apart else nullcontext():
                    value = loss(micro_batch, members, sums)
                    sums.add("loss", value)
                    (value * (scale * self._world_size)).backward()  # FSDP averages over ranks; the batch loss is a sum

    # --- measuring ----------------------------------------------------------------------------------------------------
    def gradient_norms(self, groups: Sequence[RolloutGroup]) -> list[Float64Array]:
        """[n] for each group: the norm of the gradient of ln pi(response) for accepted samples, NaN for the others.

        The gradient is that of the token sum, at the sampling temperature, in the matrix that the allocator names
        (with tied embeddings: in the shared one).
        """
        parameters = self._config.needs.pilot_norms or "embed_tokens"
        threshold = self._config.rewards.accept_threshold
        norms = [np.full(len(group), np.nan) for group in groups]
        accepted = [
            (g, i)
            for g, group in enumerate(groups)
            for i in range(len(group))
            if group.rewards is not None and group.rewards[i] >= threshold and group.num_tokens[i]
        ]
        samples = [train_sample(groups[g], i) for g, i in accepted]
        for (g, i), norm in zip(accepted, self._measure.gradient_norms(samples, parameters=parameters), strict=True):
            norms[g][i] = norm
        return norms

    def prompt_states(self, token_ids: Sequence[IntArray], *, pooling: Pooling) -> tuple[FloatArray, int]:
        """[P, F] float32: what the policy makes of each prompt, before any response; and the tokens read for it.

        These are its final hidden states at the prompt's tokens, after the final norm: their mean, the last one, or
        both end to end, mean first (F is the hidden size H, or 2H for both). Or it is the mean entropy, in nats, of the
        distributions that they predict (F = 1). Tokens that all prompts begin with are read once in each micro-batch,
        if the model's attention can share them (`learner.packing`).
        """
        return self._measure.prompt_states(token_ids, pooling=pooling)

    def response_states(self, groups: Sequence[RolloutGroup]) -> list[FloatArray]:
        """[n, 2H] float32 for each group: the final hidden states at the tokens of prompt and response, their mean and
        the last one."""
        sequences = [np.concatenate([g.prompt.token_ids, each.token_ids]) for g in groups for each in g.completions]
        states, _ = self._measure.prompt_states(sequences, pooling="both")
        return np.split(states, np.cumsum([len(group) for group in groups])[:-1])

    # --- state --------------------------------------------------------------------------------------------------------
    @property
    def policy(self) -> PolicyModule:
        """The trained one; from `reset` of its rank on, another."""
        return self._policy

    def named_full_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, whole CPU tensor in the engine's dtype) of every weight, gathered one at a time."""
        return named_full_tensors(self._policy, dtype=getattr(torch, self._config.engine.dtype))

    def named_adapter_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(Name in an `AdapterSpec`, whole CPU tensor in the engine's dtype) of every A and B, one at a time."""
        dtype = getattr(torch, self._config.engine.dtype)
        for name, tensor in named_adapter_tensors(self._policy.causal_lm):
            yield name, tensor.to(dtype=dtype, device="cpu")

    def save(self, folder: str) -> None:
        """Write this rank's shards of weights and optimizer (and of the reference, if there is one) under `folder`."""
        save_shards(folder, policy=self._policy, optimizer=self._optimizer, reference=self._reference, base=self._base)

    def load(self, folder: str) -> None:
        """Restore what `save` wrote, with this or another number of ranks.

        Raises:
            CheckpointError: it is missing, damaged or of another model.
        """
        for module in (self._policy, self._reference):
            if module is not None:
                reshard(module)
        load_shards(folder, policy=self._policy, optimizer=self._optimizer, reference=self._reference, base=self._base)

    def export(self, folder: str) -> None:
        """Write a Hugging Face model folder in the learner's dtype: safetensors, configuration, tokenizer."""
        tensors = named_full_tensors(self._policy, dtype=getattr(torch, self._config.learner.dtype))
        if self._rank == 0:
            causal_lm = self._policy.causal_lm
            write_model_folder(
                folder,
                model_config=causal_lm.config,
                generation_config=causal_lm.generation_config,
                tensors=tensors,
                tokenizer=self._tokenizer,
                causal_lm=causal_lm,
            )
        else:
            for _ in tensors:  # gathering is a collective call
                pass
        dist.barrier()

    def _load(self, *, trainable: bool, sharing: Sharing) -> PolicyModule:
        return load_policy(
            self._base_path,
            mesh=self._mesh,
            settings=self._config.learner,
            attention=self._attention,
            temperature=self._config.sampling.temperature,
            packed=self._layout.packed,
            sharing=sharing,
            gradient_parameters=measured_parameters(self._config),
            trainable=trainable,
            seed=self._config.seed,
            revision=self._revision,
            trust_remote_code=self._trust_remote_code,
        )

    def _build_optimizer(self) -> PolicyOptimizer:
        total_updates = self._config.num_steps * self._config.algorithm.updates_per_batch
        return PolicyOptimizer(
            self._policy,
            self._config.learner.optimizer,
            total_updates=total_updates,
            max_skipped_updates=self._config.max_skipped_updates,
        )


def measured_parameters(config: RunConfig) -> frozenset[GradientParameters]:
    """The matrices that the run's allocator has gradient norms measured in."""
    needs = config.needs
    names: tuple[GradientParameters | None, ...] = (needs.pilot_norms, "embed_tokens" if needs.training_norms else None)
    return frozenset(name for name in names if name is not None)


def _by_group(values: Float64Array, batch: TrainBatch) -> tuple[Float64Array, ...]:
    """The values of a batch's samples, one array for each of its groups."""
    stops = np.cumsum([0, *(len(group.sample_indices) for group in batch.groups)])
    return tuple(values[start:stop] for start, stop in pairwise(stops))
