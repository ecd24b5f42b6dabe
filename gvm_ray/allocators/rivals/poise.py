"""POISE (arXiv 2605.07579): each sample's baseline is predicted from what another sample of its prompt looked like."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gvm_ray.allocators.base import (
    Allocator,
    AllocatorConfig,
    Needs,
    OptionalPromptStates,
    Report,
    Rounds,
    RunShape,
    SmallestGroup,
    Step,
)
from gvm_ray.allocators.selection import even_counts
from gvm_ray.settings import Count, Positive
from gvm_ray.types import Allocation, Float64Array, GroupOutcome, IndexArray

_FEWEST_ROWS = 16  # samples that a regression needs


class POISEAllocatorConfig(AllocatorConfig):
    """POISE (arXiv 2605.07579): equal groups, best of two samples, each with a baseline of its own.

    A sample's baseline is predicted by ridge regression on principal components of the features of the *other* sample
    of its prompt: the policy's final hidden states over prompt and response (their mean and the last one), the mean
    entropy of the response's tokens, and the prompt's own `states`. The regression is fitted to the samples of earlier
    steps, whose target is the mean reward of the other samples of their prompt. So a sample's reward has no part in its
    own baseline. In larger groups the predictions from all others are averaged.

    The hidden states take one more forward pass of the learner over the step's samples. It isn't charged, as the
    learner's other passes aren't; the paper takes them from a pass that its training makes anyway. Mean and last state
    of prompt and response together stand for the paper's separate ones, and -ln pi of the sampled tokens, averaged,
    for their entropy. `components` and `ridge` are this package's choice. Until enough samples are known, the
    algorithm's own baseline is used.
    """

    type: Literal["poise"] = "poise"
    states: OptionalPromptStates = "embedding"
    components: Count = 32  # principal components of the standardised features
    ridge: Positive = 10.0  # penalty on the coefficients of components, which are scaled to variance 1
    window_rows: Count = 2048  # number of latest samples to learn from

    def needs(self, run: RunShape) -> Needs:
        """The step's prompts, with embeddings or hidden states to predict from, and hidden states of responses."""
        return Needs(candidates=run.prompts_per_step, states=self.states, response_states=True)

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The value of samples_per_prompt: all groups are alike."""
        return SmallestGroup(setting="samples_per_prompt", value=run.samples_per_prompt)

    def check_fits(self, run: RunShape) -> None:
        """Check that a sample has another one to be predicted from."""
        if run.samples_per_prompt < 2:
            raise ValueError(
                "allocator.type='poise' predicts a sample's baseline from another sample of its prompt, and "
                "samples_per_prompt=1 leaves none; write samples_per_prompt=2"
            )

    def build(self, *, accept_threshold: float, seed: int) -> "POISEAllocator":
        """Create the strategy."""
        return POISEAllocator(self)


class POISEAllocator(Allocator):
    """Draw equal groups, and predict each sample's baseline from the others of its group."""

    def __init__(self, settings: POISEAllocatorConfig) -> None:
        self._settings = settings
        self._rows = np.zeros((0, 0), dtype=np.float32)  # [N, D] features of the latest samples
        self._targets = np.zeros(0)  # [N] mean reward of the others of each one's prompt

    def rounds(self, step: Step) -> Rounds:
        """Spend the whole budget in one round."""
        fit = self._fit()  # now, so that it doesn't depend on which overlapping step is observed first
        outcomes = yield Allocation(counts=even_counts(step.ids, step.budget), needs_response_states=True)
        samples = _samples(outcomes, step)
        if samples is None:
            return Report()
        self._learn(samples.rows, _mean_of_others(samples.rewards, samples.groups))
        if fit is None or len(fit.mean) != samples.rows.shape[1]:  # resumed with other features
            return Report()
        baselines = _mean_of_others(fit.values(samples.rows), samples.groups)
        by_prompt: dict[str, dict[int, float]] = {}
        for (prompt_id, index), baseline in zip(samples.keys, baselines.tolist(), strict=True):
            by_prompt.setdefault(prompt_id, {})[index] = baseline
        return Report(
            sample_baselines=by_prompt,
            metrics={"allocation/baseline_square_error": float(np.mean((samples.rewards - baselines) ** 2))},
        )

    def state_dict(self) -> dict[str, Any]:
        """The latest samples; features as base64 of little-endian floats."""
        return {
            "num_features": self._rows.shape[1],
            "features": base64.b64encode(self._rows.astype("<f4").tobytes()).decode("ascii"),
            "targets": self._targets.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the memory that `state_dict` returned."""
        self._targets = np.array(state["targets"], dtype=np.float64)
        values = np.frombuffer(base64.b64decode(state["features"]), dtype="<f4").astype(np.float32)
        self._rows = values.reshape(len(self._targets), state["num_features"])

    def _fit(self) -> "_ValueFit | None":
        """The regression on the samples known so far; None before there are enough."""
        if len(self._rows) < _FEWEST_ROWS:
            return None
        # Imported here, because reading settings imports this module, and scipy loads slower than the rest of the CLI.
        from gvm_ray.maths.regression import fit_ridge
        from gvm_ray.maths.statistics import principal_components

        known = self._rows.astype(np.float64)
        mean, spread = known.mean(axis=0), known.std(axis=0)
        known, scale = known - mean, np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)
        _, directions, variances = principal_components(known * scale, most=self._settings.components)
        lengths = np.sqrt(np.where(variances > 0, variances, np.inf))
        components = scale[:, None] * directions / lengths
        fit = fit_ridge(
            _with_constant(known @ components),
            self._targets,
            weights=np.ones(len(known)),
            ridge=self._settings.ridge,
        )
        lowest, highest = self._targets.min(), self._targets.max()
        return _ValueFit(
            mean=mean, components=components, coefficients=fit.coefficients, bounds=(float(lowest), float(highest))
        )

    def _learn(self, rows: Float64Array, targets: Float64Array) -> None:
        if self._rows.shape[1] != rows.shape[1]:
            self._rows, self._targets = np.zeros((0, rows.shape[1]), dtype=np.float32), np.zeros(0)
        window = self._settings.window_rows
        self._rows = np.concatenate([self._rows, rows.astype(np.float32)])[-window:]
        self._targets = np.concatenate([self._targets, targets])[-window:]


@dataclass(frozen=True, kw_only=True, eq=False)
class _ValueFit:
    """A prediction of the reward of another sample of the same prompt."""

    mean: Float64Array  # [D] of the features
    components: Float64Array  # [D, K] directions; projections on them have variance 1
    coefficients: Float64Array  # [1 + K], of the constant first
    bounds: tuple[float, float]  # lowest and highest target seen

    def values(self, rows: Float64Array) -> Float64Array:
        """Predictions [M] from features [M, D]."""
        return (_with_constant((rows - self.mean) @ self.components) @ self.coefficients).clip(*self.bounds)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Samples:
    """M scored samples with features, each of which has another one of its prompt."""

    rows: Float64Array  # [M, D] features
    rewards: Float64Array  # [M]
    groups: IndexArray  # [M] the same number for samples of one prompt
    keys: Sequence[tuple[str, int]]  # [M] prompt_id, sample index


def _samples(outcomes: Sequence[GroupOutcome], step: Step) -> _Samples | None:
    """The samples to learn from and to predict for; None without any."""
    known = [outcome for outcome in outcomes if outcome.response_states is not None]
    if not known:
        return None
    row_of = {prompt_id: row for row, prompt_id in enumerate(step.ids)}
    prompts = np.repeat([row_of[o.prompt_id] for o in known], [len(o.rewards) for o in known])
    entropies = [np.zeros(len(o.rewards)) if o.entropies is None else np.nan_to_num(o.entropies) for o in known]
    features = [
        np.concatenate([o.response_states for o in known if o.response_states is not None]),
        np.concatenate(entropies)[:, None],
        np.zeros((len(prompts), 0)) if step.states is None else step.states[prompts],
    ]
    rewards = np.concatenate([o.rewards for o in known])
    scored = np.isfinite(rewards)
    chosen = np.flatnonzero(scored & (np.bincount(prompts[scored], minlength=len(step.ids))[prompts] > 1))
    if not chosen.size:
        return None
    keys = [(o.prompt_id, index) for o in known for index in o.sample_indices]
    return _Samples(
        rows=np.concatenate(features, axis=1, dtype=np.float64)[chosen],
        rewards=rewards[chosen],
        groups=prompts[chosen],
        keys=[keys[row] for row in chosen],
    )


def _mean_of_others(values: Float64Array, groups: IndexArray) -> Float64Array:
    """For each of M values the mean of the others of its group, of which there is at least one."""
    sums, sizes = np.bincount(groups, weights=values), np.bincount(groups)
    return (sums[groups] - values) / (sizes[groups] - 1)


def _with_constant(rows: Float64Array) -> Float64Array:
    return np.concatenate([np.ones((len(rows), 1)), rows], axis=1)
