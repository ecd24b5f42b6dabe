"""What to expect of any prompt, seen or not, before it is sampled: accept rate, gradient norms and response length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from gvm_ray.allocators.observations import Observations
from gvm_ray.allocators.prompt_features import PromptFeatures
from gvm_ray.config.allocator_base import PredictorConfig
from gvm_ray.functional.regression import fit_binomial, fit_ridge
from gvm_ray.types import BoolArray, Float64Array, FloatArray, GroupOutcome, Prompt, TrainedNorms

_SUREST = 1e-6  # no accept rate is predicted nearer to 0 or 1 from features alone
_FEWEST_ROWS = 8  # groups with the quantity measured, before a regression on it is worth anything


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptEstimates:
    """What is expected of P prompts."""

    accept_rates: Float64Array  # [P] p
    deviations: Float64Array  # [P] standard deviation of the belief in p
    accepted_norms: Float64Array  # [P] G+, norm of an accepted sample's gradient of ln pi
    rejected_norms: Float64Array  # [P] G-, of a rejected sample's; one takes the other's place, 1 that of both
    num_tokens: Float64Array  # [P] response tokens; 1 where nothing is known
    learned: bool  # false before the first samples: the same is expected of every prompt


class StatsPredictor:
    """Regressions on a prompt's features, joined with what the prompt's own samples said.

    A logistic regression on the counts of accepted samples gives p for any prompt, ridge regressions on logarithms give
    gradient norms and length. They are refitted at every step on the run's own paid samples, older ones weighted down.
    For p the features' answer is then the mean of a Beta prior worth `history_trials` samples, which the prompt's own
    (forgotten) counts update.
    """

    def __init__(self, config: PredictorConfig, *, accept_threshold: float, seed: int) -> None:
        self._config = config
        self._features = PromptFeatures(
            source_features=config.source_features,
            max_state_features=config.max_state_features,
            seed=seed,
            token_features=config.token_features,
        )
        self._seen = Observations(accept_threshold=accept_threshold, max_rows=config.window_rows)

    def rows(self, prompts: Sequence[Prompt], states: FloatArray | None) -> Float64Array:
        """[P, D] features of prompts, which `predict` and `observe` take."""
        return self._features.rows(prompts, states)

    def predict(self, prompts: Sequence[Prompt], rows: Float64Array, *, step: int) -> PromptEstimates:
        """What is expected of these prompts at this step.

        Args:
            prompts: P prompts.
            rows: [P, D] their features now.
            step: the training step, which says how old the samples are.
        """
        seen = self._seen.columns
        if len(seen) < _FEWEST_ROWS or self._seen.rows.shape[1] != rows.shape[1]:  # other features: a resumed run's
            return _nothing_known(len(prompts))
        known, new = _standardised(self._seen.rows, rows)
        weights = self._config.forgetting ** (step - seen["step"]).clip(min=0)
        rates, deviations = self._accept_rates(prompts, known, new, weights=weights, step=step)
        accepted, rejected, num_tokens = (
            self._regress(seen[name], known, new, weights=weights)
            for name in ("accepted_square", "rejected_square", "num_tokens")
        )
        return PromptEstimates(
            accept_rates=rates,
            deviations=deviations,
            accepted_norms=_first_known(accepted, rejected, num_prompts=len(prompts)) ** 0.5,
            rejected_norms=_first_known(rejected, accepted, num_prompts=len(prompts)) ** 0.5,
            num_tokens=_first_known(num_tokens, num_prompts=len(prompts)),
            learned=True,
        )

    def observe(
        self, prompts: Sequence[Prompt], rows: Float64Array, outcomes: Sequence[GroupOutcome], *, step: int
    ) -> None:
        """Learn from a round's samples of some of the prompts [P], whose features were `rows` [P, D]."""
        index = {prompt.prompt_id: row for prompt, row in zip(prompts, rows, strict=True)}
        self._seen.add(outcomes, features=index, step=step)

    def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        """Learn the gradient norms that training measured of samples seen before."""
        self._seen.add_norms(norms)

    def state_dict(self) -> dict[str, Any]:
        """Memory as plain JSON values."""
        return {"features": self._features.state_dict(), "observations": self._seen.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self._features.load_state_dict(state["features"])
        self._seen.load_state_dict(state["observations"])

    def _accept_rates(
        self, prompts: Sequence[Prompt], known: Float64Array, new: Float64Array, *, weights: Float64Array, step: int
    ) -> tuple[Float64Array, Float64Array]:
        """Means and standard deviations [P] of the belief in p."""
        seen, config = self._seen.columns, self._config
        fit = fit_binomial(known, seen["successes"], seen["trials"], weights=weights, ridge=self._ridge(known))
        logits = fit.mean(new)
        # The mean of a logistic of a Gaussian (MacKay 1992, equation 10).
        shrunk = expit(logits / np.sqrt(1 + np.pi * fit.variance(new) / 8)).clip(_SUREST, 1 - _SUREST)
        successes, trials = self._seen.recent_counts(prompts, forgetting=config.forgetting, step=step)
        total = config.history_trials + trials
        rates = (config.history_trials * shrunk + successes) / total
        return rates, np.sqrt(rates * (1 - rates) / (total + 1))

    def _ridge(self, features: Float64Array) -> float:
        return (features.shape[1] - 1) / self._config.prior_deviation**2 or 1.0

    def _regress(
        self, targets: Float64Array, known: Float64Array, new: Float64Array, *, weights: Float64Array
    ) -> Float64Array | None:
        """Positive values [P] by ridge regression of their logarithm, never beyond what was seen; None from too few."""
        measured = np.isfinite(targets) & (targets > 0)
        if measured.sum() < _FEWEST_ROWS:
            return None
        logarithms = np.log(targets[measured])
        fit = fit_ridge(known[measured], logarithms, weights=weights[measured], ridge=self._ridge(known))
        return np.exp(fit.mean(new).clip(logarithms.min(), logarithms.max()))


def _standardised(known: Float64Array, new: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Both [N, 1 + D] with a leading constant, each column scaled by the mean and spread of all rows, and clipped.

    Columns that are the same in every row are left out.
    """
    count = len(known) + len(new)
    centre = (known.sum(axis=0) + new.sum(axis=0)) / count
    squares = sum(np.einsum("nd,nd->d", rows - centre, rows - centre) for rows in (known, new))
    scale = np.sqrt(squares / count)
    varies = scale > 1e-6 * (1 + np.abs(centre))
    return _scaled(known, varies, centre, scale), _scaled(new, varies, centre, scale)


def _scaled(rows: Float64Array, varies: BoolArray, centre: Float64Array, scale: Float64Array) -> Float64Array:
    scaled = np.ones((len(rows), 1 + np.count_nonzero(varies)))
    values = rows if varies.all() else rows[:, varies]
    np.subtract(values, centre[varies], out=scaled[:, 1:])
    scaled[:, 1:] /= scale[varies]
    np.clip(scaled[:, 1:], -5, 5, out=scaled[:, 1:])
    return scaled


def _first_known(*values: Float64Array | None, num_prompts: int) -> Float64Array:
    """[P] the first that is known; else 1."""
    return next((each for each in values if each is not None), np.ones(num_prompts))


def _nothing_known(num_prompts: int) -> PromptEstimates:
    ones = np.ones(num_prompts)
    return PromptEstimates(
        accept_rates=ones / 2,
        deviations=ones / np.sqrt(12),  # of a uniform belief
        accepted_norms=ones,
        rejected_norms=ones,
        num_tokens=ones,
        learned=False,
    )
