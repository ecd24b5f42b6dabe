"""Predictions for any prompt, seen or unseen, before it is sampled: accept rate, gradient norms, rewards."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from gvm_ray.allocators.memory import Observations
from gvm_ray.maths.regression import LinearFit, fit_binomial, fit_ridge, leave_group_out
from gvm_ray.maths.statistics import beta_posterior_mean, beta_prior_strength, rank_correlation
from gvm_ray.types import BoolArray, Float64Array, FloatArray, GroupOutcome, Metrics, Prompt, TrainedNorms

if TYPE_CHECKING:
    from gvm_ray.allocators.predictive import PredictorConfig, RateSource

_SUREST = 1e-6  # accept rates predicted from features alone stay at least this far from 0 and 1
_TYPICAL_TRIALS = 4.0  # of a prompt's own samples: what its features are worth before any samples tell
_SPREAD_OF_TRIALS = 1.0  # of the logarithm, a priori
_FEWEST_ROWS = 8  # groups with a measured quantity that a regression on it needs
_MAX_CATEGORIES = 64  # of one source feature
_FEWEST_PROMPTS = 3  # that a rank correlation needs
_MOST_EXPECTED = 2**16  # prompts whose prediction is kept until training measures it, unless a step has more candidates
_BINARY = (1.0, 0.0)  # assumed rewards of an accepted and a rejected sample, until such a sample was seen
_SMALLEST_DEVIATION = 1e-6  # advantages are divided by the deviation, even if all rewards so far were equal


class PromptFeatures:
    """Feature rows [P, D] of prompts. D is fixed, whatever categories appear later.

    Hidden states wider than `max_state_features` are projected on random directions, which preserves distances up to a
    few percent (Johnson and Lindenstrauss 1984). Tokens are counted by id modulo `token_features`, so that several ids
    share a column. Each source feature is one-hot: one column for each of the first 63 values seen, and a last column
    for all later values.
    """

    def __init__(
        self, *, source_features: Sequence[str], max_state_features: int, seed: int, token_features: int = 0
    ) -> None:
        self._token_features = token_features
        self._source_features = tuple(source_features)
        self._max_state_features = max_state_features
        self._seed = seed
        self._categories: dict[str, dict[str, int]] = {name: {} for name in self._source_features}

    def rows(self, prompts: Sequence[Prompt], states: FloatArray | None) -> Float64Array:
        """[P, D] float64: states (projected), then token counts, then categories."""
        parts = [np.zeros((len(prompts), 0))] if states is None else [self._project(states)]
        if self._token_features:
            parts.append(np.stack([self._token_counts(prompt) for prompt in prompts]))
        for name in self._source_features:
            one_hot = np.zeros((len(prompts), _MAX_CATEGORIES))
            index = np.array([self._category(name, prompt.features.get(name)) for prompt in prompts], dtype=np.int64)
            one_hot[np.arange(len(prompts)), index] = 1.0
            parts.append(one_hot)
        return np.concatenate(parts, axis=1)

    def state_dict(self) -> dict[str, Any]:
        """The categories seen so far, as plain JSON values."""
        return {"categories": {name: list(values) for name, values in self._categories.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the columns that `state_dict` returned."""
        known = state["categories"]
        self._categories = {
            name: {value: index for index, value in enumerate(known.get(name, ()))} for name in self._source_features
        }

    def _category(self, name: str, value: Any) -> int:
        """The column of a category."""
        known, last = self._categories[name], _MAX_CATEGORIES - 1
        if len(known) < last:
            known.setdefault(repr(value), len(known))
        return known.get(repr(value), last)

    def _token_counts(self, prompt: Prompt) -> Float64Array:
        columns = np.asarray(prompt.token_ids, dtype=np.int64) % self._token_features
        return np.bincount(columns, minlength=self._token_features).astype(np.float64)

    def _project(self, states: FloatArray) -> Float64Array:
        width, num_kept = states.shape[1], self._max_state_features
        if width <= num_kept:
            return states.astype(np.float64)
        directions = np.random.default_rng(self._seed).normal(size=(width, num_kept))
        return states @ directions / np.sqrt(num_kept)


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptEstimates:
    """Predictions for P prompts."""

    accept_rates: Float64Array  # [P] p, from features and history
    feature_rates: Float64Array  # [P] p from the features alone
    history_rates: Float64Array  # [P] p from the prompt's own samples alone
    deviations: Float64Array  # [P] posterior standard deviation of p
    accepted_norms: Float64Array  # [P] G+, norm of the gradient of ln pi for an accepted sample
    # [P] G-, the same for rejected samples. A class without measurements takes the other's value; without either, 1.
    rejected_norms: Float64Array
    history_trials: float  # samples of a prompt itself that its features are worth
    learned: bool  # false before the first samples: all prompts have the same predictions

    def rates_from(self, source: "RateSource") -> Float64Array:
        """The accept rates [P] predicted from this source."""
        by_source = {"both": self.accept_rates, "features": self.feature_rates, "history": self.history_rates}
        return by_source[source]


class StatsPredictor:
    """Regressions on a prompt's features, combined with the prompt's own samples.

    A logistic regression on the counts of accepted samples predicts p; ridge regressions on logarithms predict gradient
    norms. They are refitted at every step on the run's own paid samples, with older samples weighted down. The p
    predicted from features is then the mean of a Beta prior worth `history_trials` samples, which the prompt's own
    (decayed) counts update. If fitted, the prior is worth what makes the counts of the prompts seen so far most likely,
    each predicted by a regression without it: much if prompts that look alike turn out alike.
    """

    def __init__(self, config: "PredictorConfig", *, accept_threshold: float, seed: int) -> None:
        self._config = config
        self._features = PromptFeatures(
            source_features=config.source_features,
            max_state_features=config.max_state_features,
            seed=seed,
            token_features=config.token_features,
        )
        self._seen = Observations(accept_threshold=accept_threshold, max_rows=config.window_rows)

    def rows(self, prompts: Sequence[Prompt], states: FloatArray | None) -> Float64Array:
        """Features [P, D] of prompts, for `predict` and `observe`."""
        return self._features.rows(prompts, states)

    def predict(self, prompts: Sequence[Prompt], rows: Float64Array, *, step: int) -> PromptEstimates:
        """Predict for these prompts at this step.

        Args:
            prompts: P prompts.
            rows: [P, D] their current features.
            step: the training step, to tell the age of the samples.
        """
        seen = self._seen.columns
        if len(seen) < _FEWEST_ROWS or self._seen.rows.shape[1] != rows.shape[1]:  # resumed with other features
            return _nothing_known(len(prompts), history_trials=self._typical_trials)
        known, new = _standardised(self._seen.rows, rows)
        weights = self._config.forgetting ** (step - seen["step"]).clip(min=0)
        fit = fit_binomial(known, seen["successes"], seen["trials"], weights=weights, ridge=self._ridge(known))
        features = _mean_rates(fit.mean(new), fit.variance(new))
        worth = self._history_trials(fit, known, weights=weights)
        successes, trials = self._seen.recent_counts(prompts, forgetting=self._config.forgetting, step=step)
        total = worth + trials
        rates = (worth * features + successes) / total
        accepted, rejected = (
            self._regress(seen[name], known, new, weights=weights) for name in ("accepted_square", "rejected_square")
        )
        return PromptEstimates(
            accept_rates=rates,
            feature_rates=features,
            history_rates=beta_posterior_mean(successes, trials, prior_successes=0.5, prior_failures=0.5),
            deviations=np.sqrt(rates * (1 - rates) / (total + 1)),
            accepted_norms=_first_known(accepted, rejected, num_prompts=len(prompts)) ** 0.5,
            rejected_norms=_first_known(rejected, accepted, num_prompts=len(prompts)) ** 0.5,
            history_trials=worth,
            learned=True,
        )

    def observe(
        self, prompts: Sequence[Prompt], rows: Float64Array, outcomes: Sequence[GroupOutcome], *, step: int
    ) -> None:
        """Learn from a round's samples of some of the P prompts, whose features were `rows` [P, D]."""
        index = {prompt.prompt_id: row for prompt, row in zip(prompts, rows, strict=True)}
        self._seen.add(outcomes, features=index, step=step)

    def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        """Learn the gradient norms that training measured of samples seen before."""
        self._seen.add_norms(norms)

    def state_dict(self) -> dict[str, Any]:
        """The memory as plain JSON values."""
        return {"features": self._features.state_dict(), "observations": self._seen.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the memory that `state_dict` returned."""
        self._features.load_state_dict(state["features"])
        self._seen.load_state_dict(state["observations"])

    def _history_trials(self, fit: LinearFit, known: Float64Array, *, weights: Float64Array) -> float:
        """The number of a prompt's own samples that the prediction from its features is worth."""
        if self._config.history_trials != "fitted":
            return self._config.history_trials
        seen, of_prompt = self._seen.columns, self._seen.prompts
        successes, trials = (
            np.bincount(of_prompt, weights * seen[name]).astype(np.float64) for name in ("successes", "trials")
        )
        logits, variances = leave_group_out(
            fit, known, seen["successes"], seen["trials"], weights=weights, groups=of_prompt
        )
        return beta_prior_strength(
            _mean_rates(logits, variances),
            successes,
            trials,
            typical=self._typical_trials,
            spread=_SPREAD_OF_TRIALS,
        )

    @property
    def _typical_trials(self) -> float:
        """The worth of features before any samples tell."""
        trials = self._config.history_trials
        return _TYPICAL_TRIALS if trials == "fitted" else trials

    def _ridge(self, features: Float64Array) -> float:
        return (features.shape[1] - 1) / self._config.prior_deviation**2 or 1.0

    def _regress(
        self, targets: Float64Array, known: Float64Array, new: Float64Array, *, weights: Float64Array
    ) -> Float64Array | None:
        """Predict positive values [P] by ridge regression on their logarithm, within the range seen; None if there are
        too few."""
        measured = np.isfinite(targets) & (targets > 0)
        if measured.sum() < _FEWEST_ROWS:
            return None
        logarithms = np.log(targets[measured])
        fit = fit_ridge(known[measured], logarithms, weights=weights[measured], ridge=self._ridge(known))
        return np.exp(fit.mean(new).clip(logarithms.min(), logarithms.max()))


def _mean_rates(logits: Float64Array, variances: Float64Array) -> Float64Array:
    """The mean [P] of a logistic of Gaussians (MacKay 1992, equation 10)."""
    return expit(logits / np.sqrt(1 + np.pi * variances / 8)).clip(_SUREST, 1 - _SUREST)


def _standardised(known: Float64Array, new: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Standardise both by the mean and spread of all rows, clip, and add a leading column of ones: [N, 1 + D].

    Columns that are constant over all rows are left out.
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
    """The first of the arrays [P] that isn't None; else ones."""
    return next((each for each in values if each is not None), np.ones(num_prompts))


def _nothing_known(num_prompts: int, *, history_trials: float) -> PromptEstimates:
    ones = np.ones(num_prompts)
    return PromptEstimates(
        accept_rates=ones / 2,
        feature_rates=ones / 2,
        history_rates=ones / 2,
        deviations=ones / np.sqrt(12),  # of a uniform belief
        accepted_norms=ones,
        rejected_norms=ones,
        history_trials=history_trials,
        learned=False,
    )


class NormAgreement:
    """Compares the latest predicted gradient norm of each prompt with the norms then measured in training."""

    def __init__(self) -> None:
        self._expected: dict[str, float] = {}  # prompt_id -> norm of an accepted sample's gradient
        self._correlation: float | None = None

    def expect(self, prompt_ids: Sequence[str], estimates: PromptEstimates) -> None:
        """Record the predictions for a step's prompts; nothing before norms were measured."""
        if np.ptp(estimates.accepted_norms) > 0:
            for prompt_id in prompt_ids:
                self._expected.pop(prompt_id, None)  # so that the oldest prediction stands first
            self._expected.update(zip(prompt_ids, estimates.accepted_norms.tolist(), strict=True))
            too_many = max(len(self._expected) - max(_MOST_EXPECTED, len(prompt_ids)), 0)
            for prompt_id in list(itertools.islice(self._expected, too_many)):
                del self._expected[prompt_id]

    def observe(self, norms: Sequence[TrainedNorms]) -> None:
        """Correlate the measured norms of a trained batch with the predictions."""
        measured: dict[str, list[float]] = {}
        for trained in norms:
            values = trained.norms[trained.positive & np.isfinite(trained.norms)]
            if trained.prompt_id in self._expected and values.size:
                measured.setdefault(trained.prompt_id, []).extend(values.tolist())
        if len(measured) >= _FEWEST_PROMPTS:
            expected = [self._expected[prompt_id] for prompt_id in measured]
            self._correlation = rank_correlation(expected, [np.mean(values) for values in measured.values()])

    def metrics(self) -> Metrics:
        """`allocation/norm_rank_correlation` of the last trained batch; empty before the first."""
        if self._correlation is None or not np.isfinite(self._correlation):
            return {}
        return {"allocation/norm_rank_correlation": self._correlation}


class RewardLevels:
    """Running mean and variance of the rewards of accepted samples and of rejected samples.

    With rewards of 0 and 1 the means are 1 and 0 and the variances 0: a reward is a Bernoulli draw. A format bonus or
    partial credit moves them.
    """

    def __init__(self, *, accept_threshold: float, forgetting: float) -> None:
        self._accept_threshold = accept_threshold
        self._forgetting = forgetting  # factor on the weight of earlier samples at each step
        self._sums = np.zeros((2, 3))  # accepted, rejected: weight, sum and sum of squares of the rewards

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None:
        """Learn from a step's samples; samples without a reward don't count."""
        self._sums *= self._forgetting
        for outcome in outcomes:
            rewards = outcome.rewards[outcome.scored]
            accepted = rewards >= self._accept_threshold
            for kind, values in enumerate((rewards[accepted], rewards[~accepted])):
                self._sums[kind] += len(values), values.sum(), (values**2).sum()

    def expected(self, accept_rates: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Mean [P] and standard deviation [P] of a sample's reward, a mixture of the two kinds by accept rates [P]."""
        seen = self._sums[:, 0] > 0
        weights = np.where(seen, self._sums[:, 0], 1.0)
        accepted, rejected = means = np.where(seen, self._sums[:, 1] / weights, _BINARY)
        variances = np.where(seen, self._sums[:, 2] / weights - means**2, 0.0).clip(min=0.0)
        p = accept_rates
        variance = p * variances[0] + (1 - p) * variances[1] + p * (1 - p) * (accepted - rejected) ** 2
        return p * accepted + (1 - p) * rejected, np.sqrt(variance).clip(min=_SMALLEST_DEVIATION)

    def state_dict(self) -> dict[str, Any]:
        """The sums, as plain JSON values."""
        return {"sums": self._sums.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sums that `state_dict` returned."""
        self._sums = np.array(state["sums"])
