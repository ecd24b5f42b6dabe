"""CurES (arXiv 2510.01037): prompts of medium difficulty, sampled by how much their policy gradient varies."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gvm_ray.allocators.counts import report_counts
from gvm_ray.allocators.history import PromptHistory
from gvm_ray.config.history_allocators import CurESAllocatorConfig
from gvm_ray.functional.allocation import apportion
from gvm_ray.functional.history_allocation import draw_by_learning_potential, policy_gradient_std
from gvm_ray.protocols import Rounds
from gvm_ray.types import EstimatorTerms, Float64Array, FloatArray, Prompt, TrainedNorms

_UNMEASURED = np.full((2, 2), np.nan)


class CurESAllocator:
    """Draws budget // group_size of the candidates without replacement, and gives them n_i ~ sigma_i, in one round."""

    def __init__(self, config: CurESAllocatorConfig, *, accept_threshold: float, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._history = PromptHistory(accept_threshold=accept_threshold, decay=config.decay)
        self._norms: dict[str, Float64Array] = {}  # prompt_id -> mean and variance [2] of correct and wrong [2] samples

    def rounds(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        budget: int,
        upcoming: Sequence[Prompt] = (),
        states: FloatArray | None = None,
    ) -> Rounds:
        """The whole budget at once."""
        config = self._config
        ids = list(dict.fromkeys(prompt.prompt_id for prompt in prompts))
        rates = self._history.accept_rates(
            ids, prior_successes=config.prior_successes, prior_failures=config.prior_failures
        )
        num_drawn = min(len(ids), max(1, budget // config.group_size))
        drawn = draw_by_learning_potential(
            rates,
            num_drawn=num_drawn,
            temperature=config.temperature,
            rng=np.random.default_rng((self._seed, step)),
        )
        norms = np.stack([self._norms.get(ids[row], _UNMEASURED) for row in drawn])
        sigma = policy_gradient_std(
            rates[drawn],
            norm_means=_fill_unmeasured(norms[:, :, 0], otherwise=1.0),
            norm_variances=_fill_unmeasured(norms[:, :, 1], otherwise=0.0),
        )
        samples_each = np.zeros(len(ids), dtype=np.int64)
        samples_each[drawn] = apportion(sigma, budget=budget, minimum=config.min_samples)
        counts = dict(zip(ids, samples_each.tolist(), strict=True))
        samples = yield from self._history.sample_once(counts)
        terms = EstimatorTerms(
            num_prompts=num_drawn, accept_rates={ids[row]: float(rates[row]) for row in drawn.tolist()}
        )
        return report_counts(
            counts,
            accept_rates=samples.accept_rates(),
            estimator=terms,
            estimates={
                "allocation/p_hat_mean": float(rates[drawn].mean()),
                "allocation/sigma_mean": float(sigma.mean()),
            },
        )

    def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        """The latest norms of each class replace those before."""
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
        """The decayed counts of every prompt seen, and the moments of its norms, None where not measured."""
        norms = {
            id_: [[value if np.isfinite(value) else None for value in of_class] for of_class in moments.tolist()]
            for id_, moments in self._norms.items()
        }
        return {**self._history.state_dict(), "norms": norms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self._history.load_state_dict(state)
        self._norms = {id_: np.array(moments, dtype=np.float64) for id_, moments in state["norms"].items()}


def _moments(norms: Float64Array) -> Float64Array:
    """[2] mean and variance of those that were measured; NaN if none was."""
    known = norms[np.isfinite(norms)]
    return np.array([known.mean(), known.var()]) if known.size else np.full(2, np.nan)


def _fill_unmeasured(values: Float64Array, *, otherwise: float) -> Float64Array:
    """[P, 2] with the mean of its class where a prompt has none; of the other class if no prompt has it in this one."""
    measured = np.isfinite(values)
    num_measured = measured.sum(axis=0)
    totals = np.where(measured, values, 0.0).sum(axis=0)
    means = np.divide(totals, num_measured, out=np.full(2, np.nan), where=num_measured > 0)
    means = np.where(np.isnan(means), means[::-1], means)
    return np.where(measured, values, np.nan_to_num(means, nan=otherwise))
