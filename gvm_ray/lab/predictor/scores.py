"""Scores of the package's own predictor, cross-validated over prompts, from all other prompts or a few paid samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gvm_ray.allocators.predictive import PredictorConfig
from gvm_ray.allocators.predictor import StatsPredictor
from gvm_ray.config import PredictionConfig
from gvm_ray.lab.predictor.features import Cost, Feature, feature_rows, features
from gvm_ray.lab.predictor.pool import PredictionPool
from gvm_ray.maths.binomial_noise import NoiseCeiling, PredictionScores, noise_ceiling, prediction_scores
from gvm_ray.types import Float64Array, GroupOutcome, GroupRef, IndexArray

_RESAMPLES = 200  # of the prompts, for standard errors
_NO_REF = GroupRef(ref=None, index=0)


@dataclass(frozen=True, kw_only=True)
class FeatureScore:
    """Scores of one set of features for one policy."""

    policy: str
    features: str
    cost: Cost
    paid: int | None  # other prompts with one sample each; None = all prompts of the other folds, half of their samples
    scores: PredictionScores
    ceiling: NoiseCeiling
    deviation: float  # bootstrap standard error of the corrected correlation, over prompts; NaN if that is


@dataclass(frozen=True, kw_only=True)
class _Half:
    """The samples that are predicted, and those that play the prompts' earlier ones: indices into K."""

    earlier: IndexArray
    judged: IndexArray


def policy_scores(
    settings: PredictionConfig, pool: PredictionPool, past: Sequence[PredictionPool] = ()
) -> Iterator[FeatureScore]:
    """Yield the scores of all sets of features for a policy.

    Args:
        settings: the measurement.
        pool: the policy's.
        past: pools of earlier policies, whose samples a prompt's history may consist of.
    """
    for feature in features(settings.layers, most=settings.num_samples // 2):
        for paid in (None, *settings.paid_prompts):
            yield _score(settings, pool, feature, paid=paid)
    for before in past:
        for forgetting in settings.forgetting:
            yield _score(settings, pool, _history_of(before, forgetting), past=before, forgetting=forgetting)


def _history_of(before: PredictionPool, forgetting: float) -> Feature:
    num = before.rewards.shape[1] // 2
    name = f"embedding mean, history of {num} from {before.name}, forgetting {forgetting:g}"
    return Feature(name=name, cost="earlier samples", blocks=("embedding mean",), earlier=num, history=True)


def _score(
    settings: PredictionConfig,
    pool: PredictionPool,
    feature: Feature,
    *,
    paid: int | None = None,
    past: PredictionPool | None = None,
    forgetting: float | None = None,
) -> FeatureScore:
    """Predict both halves of every prompt's samples, fold by fold, and compare."""
    config = settings.predictor
    if forgetting is not None:
        config = config.model_copy(update={"forgetting": forgetting})
    predicted, successes, trials = [], [], []
    for half in _halves(settings.num_samples):
        rows = feature_rows(feature, pool, earlier=half.earlier, config=config, seed=settings.seed)
        rng = np.random.default_rng((settings.seed, paid or 0))  # the same folds and paid samples for all features
        estimates = np.empty(len(pool.prompts))
        for fold in np.array_split(rng.permutation(len(pool.prompts)), settings.num_folds):
            others = np.setdiff1d(np.arange(len(pool.prompts)), fold)
            outcomes = _paid_outcomes(pool, others, half, paid=paid, rng=rng)
            estimates[fold] = _predicted(
                feature, pool, rows, fold, outcomes, half=half, past=past or pool, config=config, seed=settings.seed
            )
        judged = pool.accepted[:, half.judged]
        predicted.append(estimates)
        successes.append(np.nansum(judged, axis=1))
        trials.append(np.isfinite(judged).sum(axis=1).astype(np.float64))
    return _compared(
        np.stack(predicted), np.stack(successes), np.stack(trials), pool=pool, feature=feature, paid=paid,
        seed=settings.seed,
    )  # fmt: skip


def _halves(num_samples: int) -> tuple[_Half, _Half]:
    first, second = np.split(np.arange(num_samples), 2)
    return _Half(earlier=first, judged=second), _Half(earlier=second, judged=first)


def _paid_outcomes(
    pool: PredictionPool, others: IndexArray, half: _Half, *, paid: int | None, rng: np.random.Generator
) -> list[GroupOutcome]:
    """Outcomes to learn from: the judged half of every other prompt, or one of these samples of so many of them."""
    if paid is None:
        return [_outcome(pool, prompt, half.judged) for prompt in others]
    chosen = rng.choice(others, size=paid, replace=False)
    return [_outcome(pool, prompt, rng.choice(half.judged, size=1)) for prompt in chosen]


def _predicted(
    feature: Feature,
    pool: PredictionPool,
    rows: Float64Array,
    fold: IndexArray,
    outcomes: Sequence[GroupOutcome],
    *,
    half: _Half,
    past: PredictionPool,
    config: PredictorConfig,
    seed: int,
) -> Float64Array:
    """Predict the accept rates of a fold's prompts by a predictor that has observed these outcomes of others, and, if
    the features say so, the fold's own earlier samples."""
    predictor = StatsPredictor(config, accept_threshold=pool.accept_threshold, seed=seed)
    of_fold = [pool.prompts[index] for index in fold]
    if feature.history:
        own = [_outcome(past, index, half.earlier[: feature.earlier]) for index in fold]
        predictor.observe(of_fold, rows[fold], own, step=past.step)
    step = pool.step + (past is not pool and past.step == pool.step)  # two groups of one step would become one
    predictor.observe(pool.prompts, rows, outcomes, step=step)
    return predictor.predict(of_fold, rows[fold], step=step).accept_rates


def _outcome(pool: PredictionPool, prompt: int, samples: IndexArray) -> GroupOutcome:
    count = len(samples)
    return GroupOutcome(
        prompt_id=pool.prompts[prompt].prompt_id,
        sample_indices=tuple(samples.tolist()),
        rewards=pool.rewards[prompt, samples],
        num_tokens=pool.num_tokens[prompt, samples].astype(np.int32),
        policy_versions=np.zeros(count, dtype=np.int32),
        truncated=np.zeros(count, dtype=np.bool_),
        ref=_NO_REF,
    )


def _compared(
    predicted: Float64Array,
    successes: Float64Array,
    trials: Float64Array,
    *,
    pool: PredictionPool,
    feature: Feature,
    paid: int | None,
    seed: int,
) -> FeatureScore:
    """Compare predictions [2, P] with counts [2, P]; prompts with fewer than two scored samples in a half are left
    out."""
    known = (trials >= 2).all(axis=0)
    arrays = [values[:, known] for values in (predicted, successes, trials)]
    rng = np.random.default_rng(seed)
    size = int(known.sum())
    resampled = [rng.integers(size, size=size) for _ in range(_RESAMPLES)]
    drawn = [prediction_scores(*(values[:, rows].ravel() for values in arrays)) for rows in resampled]
    found = [r for each in drawn if np.isfinite(r := each.true_correlation)]
    scores = prediction_scores(*(values.ravel() for values in arrays))
    return FeatureScore(
        policy=pool.name,
        features=feature.name,
        cost=feature.cost,
        paid=paid,
        scores=scores,
        ceiling=noise_ceiling(*(values.ravel() for values in arrays[1:])),
        deviation=float(np.std(found)) if found and np.isfinite(scores.true_correlation) else float("nan"),
    )
