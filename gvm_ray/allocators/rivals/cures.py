"""CurES (arXiv 2510.01037): prompts of medium difficulty, sampled by the deviation of their policy gradient."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from gvm_ray.allocators.base import (
    Allocator,
    AllocatorConfig,
    Needs,
    Report,
    Rounds,
    RunShape,
    SmallestGroup,
    Step,
)
from gvm_ray.maths.allocation import apportion
from gvm_ray.maths.rival_rules import draw_by_learning_potential, policy_gradient_std
from gvm_ray.settings import Count, NonNegativeCount, Positive, Probability
from gvm_ray.types import Float64Array, TrainedNorms

_UNMEASURED = np.full((2, 2), np.nan)


class CurESAllocatorConfig(AllocatorConfig):
    """CurES (arXiv 2510.01037): draws prompts with probability ~ exp(sqrt(p (1 - p)) / temperature), then n ~ sigma.

    sigma is the standard deviation of a sample's policy gradient, from the gradient norms of the prompt's correct and
    wrong samples when it was last trained on; a class without norms gets the mean over the step's prompts.
    In the paper, each prompt's p and norms come from samples drawn before training and not trained on. Here both come
    from training itself, and a prompt begins with the prior. The temperature is the default of the released sampler,
    which instead divides by 100 (1 + successes), and so draws almost uniformly.
    """

    type: Literal["cures"] = "cures"
    group_size: Count = 8  # mean n: budget // group_size prompts are drawn
    candidates_per_step: Count | None = None  # prompts to draw from; none = prompts_per_step
    min_samples: NonNegativeCount = 2  # for each drawn prompt
    temperature: Positive = 0.1  # lower: more of the draws go to prompts with p near 1/2
    decay: Probability = 1.0  # factor on a prompt's earlier counts at each visit; 1 forgets nothing, as in the paper
    # Beta prior of the accept rate.
    prior_successes: Positive = 1.0
    prior_failures: Positive = 1.0  # as prior_successes, of rejected samples
    training_gradient_norms: bool = True  # false: all norms count as equal, n ~ sqrt(p (1 - p))

    @property
    def knows_accept_rates(self) -> bool:
        """True: they are estimated from earlier visits."""
        return True

    def needs(self, run: RunShape) -> Needs:
        """Candidates to draw from, and gradient norms from training."""
        return Needs(
            candidates=self.candidates_per_step or run.prompts_per_step, training_norms=self.training_gradient_norms
        )

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The lower bound `min_samples`."""
        return SmallestGroup(setting="allocator.min_samples", value=self.min_samples)

    def check_fits(self, run: RunShape) -> None:
        """Check that there are enough candidates for the groups, and that a group holds its minimum."""
        budget = run.prompts_per_step * run.samples_per_prompt
        candidates = self.candidates_per_step or run.prompts_per_step
        if not 1 <= budget // self.group_size <= candidates:
            raise ValueError(
                f"allocator.group_size={self.group_size} makes {budget // self.group_size} groups of a budget of "
                f"{budget}, but there are {candidates} candidates; write group_size={run.samples_per_prompt}, or a "
                "larger candidates_per_step"
            )
        if self.min_samples > self.group_size:
            raise ValueError(
                f"allocator.min_samples={self.min_samples} is above group_size={self.group_size}; "
                f"write {self.group_size} or less"
            )

    def build(self, *, accept_threshold: float, seed: int) -> "CurESAllocator":
        """Create the strategy."""
        return CurESAllocator(self)


class CurESAllocator(Allocator):
    """Draw budget // group_size of the candidates without replacement, and give them n_i ~ sigma_i, in one round."""

    def __init__(self, settings: CurESAllocatorConfig) -> None:
        self._settings = settings
        self.memory_decay = settings.decay
        self._norms: dict[str, Float64Array] = {}  # prompt_id -> [2, 2]: correct and wrong samples; mean and variance

    def rounds(self, step: Step) -> Rounds:
        """Spend the whole budget in one round."""
        ids, settings = step.ids, self._settings
        rates = step.memory.accept_rates(
            ids, prior_successes=settings.prior_successes, prior_failures=settings.prior_failures
        )
        num_drawn = min(len(ids), max(1, step.budget // settings.group_size))
        drawn = draw_by_learning_potential(rates, num_drawn=num_drawn, temperature=settings.temperature, rng=step.rng)
        norms = np.stack([self._norms.get(ids[row], _UNMEASURED) for row in drawn])
        sigma = policy_gradient_std(
            rates[drawn],
            norm_means=_fill_unmeasured(norms[:, :, 0], otherwise=1.0),
            norm_variances=_fill_unmeasured(norms[:, :, 1], otherwise=0.0),
        )
        sizes = np.zeros(len(ids), dtype=np.int64)
        sizes[drawn] = apportion(sigma, budget=step.budget, minimum=settings.min_samples)
        yield step.counts(sizes)
        return Report(
            num_prompts=num_drawn,
            accept_rates={ids[row]: float(rates[row]) for row in drawn.tolist()},
            metrics={
                "allocation/p_hat_mean": float(rates[drawn].mean()),
                "allocation/sigma_mean": float(sigma.mean()),
            },
        )

    def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        """Replace each class's norm moments by the latest."""
        by_prompt: defaultdict[str, list[TrainedNorms]] = defaultdict(list)
        for each in norms:
            by_prompt[each.prompt_id].append(each)
        for prompt_id, groups in by_prompt.items():
            values = np.concatenate([group.norms for group in groups])
            positive = np.concatenate([group.positive for group in groups])
            measured = np.stack([_moments(values[positive]), _moments(values[~positive])])
            before = self._norms.get(prompt_id, _UNMEASURED)
            self._norms[prompt_id] = np.where(np.isnan(measured), before, measured)

    def state_dict(self) -> dict[str, Any]:
        """The moments of every prompt's norms; None if not measured."""
        norms = {
            id_: [[value if np.isfinite(value) else None for value in of_class] for of_class in moments.tolist()]
            for id_, moments in self._norms.items()
        }
        return {"norms": norms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the memory that `state_dict` returned."""
        self._norms = {id_: np.array(moments, dtype=np.float64) for id_, moments in state["norms"].items()}


def _moments(norms: Float64Array) -> Float64Array:
    """Mean and variance [2] of the measured norms; NaN if none was measured."""
    known = norms[np.isfinite(norms)]
    return np.array([known.mean(), known.var()]) if known.size else np.full(2, np.nan)


def _fill_unmeasured(values: Float64Array, *, otherwise: float) -> Float64Array:
    """Fill missing values [P, 2] with the mean of their class, or of the other class if no prompt has any in theirs."""
    measured = np.isfinite(values)
    num_measured = measured.sum(axis=0)
    totals = np.where(measured, values, 0.0).sum(axis=0)
    means = np.divide(totals, num_measured, out=np.full(2, np.nan), where=num_measured > 0)
    means = np.where(np.isnan(means), means[::-1], means)
    return np.where(measured, values, np.nan_to_num(means, nan=otherwise))
