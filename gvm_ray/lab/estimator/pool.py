"""The sample pool that stands for the policy: rewards and gradients of each prompt's responses.

The responses come from the run's own engine, and their rewards from its reward processes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gvm_ray.allocators.base import states_kind
from gvm_ray.config import EstimatorConfig, RunConfig
from gvm_ray.exceptions import DataError
from gvm_ray.lab.responses import (
    Responses,
    Say,
    draw_responses,
    load_whole_policy,
    score_responses,
    warm_started_path,
)
from gvm_ray.learner.policy import (
    PolicyModule,
    embedding_row_gradients,
    sample_gradient_norms,
)
from gvm_ray.learner.sequences import SequenceBatch, TrainSample, pad_samples, prompt_samples
from gvm_ray.maths.gradient_norms import embedding_gradient_square_norms
from gvm_ray.prepare import check_date, prepare
from gvm_ray.prompt_states import EmbeddingStates
from gvm_ray.system import embeddings_of
from gvm_ray.types import (
    BoolArray,
    Float64Array,
    FloatArray,
    GradientParameters,
    GroupOutcome,
    GroupRef,
    IndexArray,
    IntArray,
    Pooling,
    Prompt,
    StatesKind,
)

_ROWS = 64  # samples or prompts in a pass without parameter gradients


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplePool:
    """K scored samples of each of P prompts, as indices into their U distinct responses.

    Within a measurement the pool is the policy. A draw is one of a prompt's K samples, with replacement. So draws are
    independent, no allocation can exhaust a prompt, and the pool's means are the exact expectations.

    The mean gradient of the first `num_targets` prompts is estimated; their responses are the first V of the U.
    Allocators warm up on the other prompts, whose gradients aren't needed.
    """

    prompts: tuple[Prompt, ...]  # P
    num_targets: int
    samples: tuple[IndexArray, ...]  # for each prompt: [K] indices into the responses
    rewards: Float64Array  # [U]
    num_tokens: IntArray  # [U]
    truncated: BoolArray  # [U]
    gradients: FloatArray  # [V, D] of ln pi(response), projected
    pilot_norms: Mapping[GradientParameters, Float64Array]  # [U] norms, by the parameters in which they are measured
    training_norms: Float64Array  # [U]
    states: Mapping[StatesKind, FloatArray]  # [P, F]

    def draw(self, prompt: int, *, num: int, first_index: int, rng: np.random.Generator) -> GroupOutcome:
        """Draw `num` samples of a prompt. The outcome's ref holds their indices into the responses."""
        samples = self.samples[prompt]
        return self.outcome(prompt, samples[rng.integers(len(samples), size=num)], first_index=first_index)

    def outcome(self, prompt: int, responses: IndexArray, *, first_index: int = 0) -> GroupOutcome:
        """Return these responses as one group."""
        return GroupOutcome(
            prompt_id=self.prompts[prompt].prompt_id,
            sample_indices=tuple(range(first_index, first_index + len(responses))),
            rewards=self.rewards[responses],
            num_tokens=self.num_tokens[responses],
            policy_versions=np.zeros(len(responses), dtype=np.int32),
            truncated=self.truncated[responses],
            ref=GroupRef(ref=responses, index=0),
        )

    def mean_by_target(self, values: Float64Array, chosen: BoolArray) -> Float64Array:
        """Mean [num_targets] of `values` [U] over each target's samples in `chosen` [U]; 0 for targets without any."""
        means = np.zeros(self.num_targets)
        for prompt, samples in enumerate(self.samples[: self.num_targets]):
            kept = samples[chosen[samples]]
            means[prompt] = values[kept].mean() if kept.size else 0.0
        return means

    def index_of(self) -> dict[str, int]:
        """prompt_id -> index of the prompt."""
        return {prompt.prompt_id: index for index, prompt in enumerate(self.prompts)}


def draw_pool(
    estimator: EstimatorConfig, base: RunConfig, arms: Sequence[RunConfig], *, run_dir: Path, say: Say
) -> SamplePool:
    """Draw the pool of a measurement's policy, with all norms and states that its arms need.

    Raises:
        UserError: the run's settings, model or data are wrong, the training set is too small, or a prompt has no
            scored sample.
    """
    prepared = prepare(base, run_dir=run_dir)
    check_date(base, prepared.tokenizer)
    prompts = _chosen_prompts(estimator, prepared.prompts.train)
    path = warm_started_path(base, prepared, say=say)
    say(f"sampling {len(prompts)} prompts x {estimator.num_samples}")
    responses = draw_responses(
        base, prepared, path=path, prompts=prompts, num_samples=estimator.num_samples, seed=estimator.seed
    )
    say(f"{len(prompts)} prompts with {estimator.num_samples} samples each, {len(responses.prompts)} different ones")
    rewards = score_responses(base, responses)
    samples = _with_rewards(responses, prompts, rewards)
    num_targets = estimator.num_prompts
    device = torch.device("cuda" if base.learner.gpus_per_worker else "cpu")
    policy = load_whole_policy(base, prepared, path).to(device)
    measure = ScoreGradients(policy, size=estimator.projection_size, seed=estimator.seed)
    train_samples = [
        TrainSample(prompt_ids=prompt.token_ids, response_ids=completion.token_ids, engine_logprobs=completion.logprobs)
        for prompt, completion in zip(responses.prompts, responses.completions, strict=True)
    ]
    say(f"measuring the gradients of {len(train_samples)} responses")
    num_target_rows = 1 + max(int(own.max()) for own in responses.samples[:num_targets])
    parameters: set[GradientParameters] = {"embed_tokens"}
    parameters |= {arm.needs.pilot_norms for arm in arms if arm.needs.pilot_norms is not None}
    embeddings = EmbeddingStates(prompts=prepared.prompts.train, read=embeddings_of(prepared.base))
    return SamplePool(
        prompts=prompts,
        num_targets=num_targets,
        samples=samples,
        rewards=rewards,
        num_tokens=np.array([len(c.token_ids) for c in responses.completions], dtype=np.int32),
        truncated=np.array([c.finish_reason == "length" for c in responses.completions]),
        gradients=measure.projected(train_samples[:num_target_rows]),
        pilot_norms={name: measure.pilot_norms(train_samples, parameters=name) for name in parameters},
        training_norms=measure.training_norms(train_samples),
        states=states_of(arms, prompts, measure, embeddings),
    )


def states_of(
    arms: Sequence[RunConfig], prompts: Sequence[Prompt], measure: "ScoreGradients", embeddings: EmbeddingStates
) -> dict[StatesKind, FloatArray]:
    """The states [P, F] of the prompts, of each kind that an arm asks for."""
    states: dict[StatesKind, FloatArray] = {}
    kinds: set[StatesKind | None] = {states_kind(arm.prompt_states) for arm in arms}
    for kind in kinds:
        if kind == "embedding":
            states[kind] = embeddings.means(prompts)
        elif kind is not None:
            states[kind] = measure.prompt_states([prompt.token_ids for prompt in prompts], pooling=kind)
    return states


def _chosen_prompts(estimator: EstimatorConfig, prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """Choose random prompts: first the targets, then the warm-up's."""
    needed = estimator.num_prompts + (estimator.num_warm_up_prompts if estimator.warm_up_steps else 0)
    if needed > len(prompts):
        raise DataError(
            f"num_prompts={estimator.num_prompts} and num_warm_up_prompts={estimator.num_warm_up_prompts} need "
            f"{needed} training prompts, but there are only {len(prompts)}; write fewer, or warm_up_steps=0"
        )
    order = np.random.default_rng(estimator.seed).permutation(len(prompts))
    return tuple(prompts[index] for index in order[:needed])


def _with_rewards(responses: Responses, prompts: Sequence[Prompt], rewards: Float64Array) -> tuple[IndexArray, ...]:
    """Keep each prompt's scored samples.

    Raises:
        DataError: a prompt has no scored sample.
    """
    scored = tuple(own[np.isfinite(rewards[own])] for own in responses.samples)
    for prompt, own in zip(prompts, scored, strict=True):
        if not own.size:
            raise DataError(
                f"none of the samples of prompt {prompt.prompt_id!r} could be scored; give the reward more time with "
                "rewards.timeout_s, or more memory with rewards.memory_mb, in the run's file"
            )
    return scored


class CountSketch:
    """A fixed linear map from P to D dimensions, which adds each entry, with a random sign, to one of D sums at random.

    Inner products are preserved in expectation over the map, with a variance of at most
    (|x|^2 |y|^2 + (x . y)^2) / D (Charikar, Chen, Farach-Colton 2002; Weinberger et al. 2009, arXiv 0902.2206, Lemma
    2). The map needs only P numbers; a Gaussian matrix needs P x D.
    """

    def __init__(self, num_entries: int, *, size: int, seed: int, device: torch.device | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.size = size
        self._sums = torch.randint(size, (num_entries,), generator=generator, dtype=torch.int32).to(device)
        self._signs = (torch.randint(2, (num_entries,), generator=generator, dtype=torch.int8) * 2 - 1).to(device)

    def __call__(self, vector: Tensor) -> Tensor:
        """Map `vector` [P] to [D], in the same dtype."""
        return vector.new_zeros(self.size).index_add_(0, self._sums, vector * self._signs)


class ScoreGradients:
    """Gradients of sum_t ln pi(y_t | x) with respect to all parameters, at the sampling temperature.

    Args:
        policy: the whole policy, unsharded.
        size: number of dimensions to project on; None keeps the whole gradient.
        seed: seed of the projection.
    """

    def __init__(self, policy: PolicyModule, *, size: int | None, seed: int) -> None:
        self._policy = policy
        self._parameters = list(policy.parameters())  # a tied matrix appears once
        self._device = self._parameters[0].device
        num_entries = sum(parameter.numel() for parameter in self._parameters)
        self._size = size or num_entries
        self._sketch = None if size is None else CountSketch(num_entries, size=size, seed=seed, device=self._device)

    def projected(self, samples: Sequence[TrainSample]) -> FloatArray:
        """Compute projected gradients [N, D] in float32, with one backward pass per sample."""
        gradients = np.empty((len(samples), self._size), dtype=np.float32)
        for row, sample in enumerate(samples):
            logprobs, _ = self._policy(pad_samples([sample], device=self._device))
            parts = torch.autograd.grad(logprobs.sum(), self._parameters)
            gradient = torch.cat([part.reshape(-1) for part in parts]).float()
            gradients[row] = (gradient if self._sketch is None else self._sketch(gradient)).cpu().numpy()
        return gradients

    def pilot_norms(self, samples: Sequence[TrainSample], *, parameters: GradientParameters) -> Float64Array:
        """Compute the norms [N] that an allocator gets for pilots; see `Learner.gradient_norms`."""
        return self._by_batch(samples, lambda batch: sample_gradient_norms(self._policy, batch, parameters=parameters))

    def training_norms(self, samples: Sequence[TrainSample]) -> Float64Array:
        """Compute the norms [N] at the input embedding, as training measures them; see `TrainedNorms`."""
        return self._by_batch(samples, self._input_embedding_norms)

    @torch.no_grad()
    def prompt_states(self, token_ids: Sequence[IntArray], *, pooling: Pooling) -> FloatArray:
        """Compute hidden states [P, F] as an allocator gets them; see `PolicyModule.prompt_states`."""
        batches = self._batches(prompt_samples(token_ids, shared=False)[0])
        parts = [self._policy.prompt_states(batch, pooling=pooling) for batch in batches]
        return torch.cat(parts).cpu().numpy()

    def _input_embedding_norms(self, batch: SequenceBatch) -> Tensor:
        _, _, gradients = embedding_row_gradients(self._policy, batch, square_norms=False)
        return embedding_gradient_square_norms(gradients, batch.input_ids).sqrt()

    def _by_batch(self, samples: Sequence[TrainSample], measure: Callable[[SequenceBatch], Tensor]) -> Float64Array:
        """Compute one number per sample [N]."""
        return torch.cat([measure(batch) for batch in self._batches(samples)]).double().cpu().numpy()

    def _batches(self, samples: Sequence[TrainSample]) -> Iterator[SequenceBatch]:
        for start in range(0, len(samples), _ROWS):
            yield pad_samples(samples[start : start + _ROWS], device=self._device)
