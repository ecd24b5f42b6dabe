"""Simulated comparisons with a known truth: how often the tables' statistics err, and how often they see a difference.

The baseline's mean curve of each setting gets the noise of the recorded runs: its covariance over evaluations and
between the two runs of a seed. Then one arm is the baseline itself, or as many times as fast.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from gvm_ray.exceptions import DataError
from gvm_ray.lab.compare.comparison import CHARGED, rises
from gvm_ray.lab.compare.records import RunRecord
from gvm_ray.maths.curves import jackknife_log_stretch, on_grid
from gvm_ray.maths.student_t import MIN_SEEDS, half_width
from gvm_ray.types import Float64Array

_NUM_POINTS = 51
_STRETCHES = (1.0, 2.0)  # true ones of the other arm
_SEED = 0  # of the noise


@dataclass(frozen=True, kw_only=True)
class TruthResult:
    """Outcomes of simulated comparisons with one true stretch: of one setting at a time, and of all settings pooled."""

    stretch: float  # the truth; 1 = identical arms
    area_differs: tuple[float, float]  # shares of comparisons whose area interval excludes 0: one setting, pooled
    stretch_differs: tuple[float, float]  # whose stretch interval excludes 1
    covered: tuple[float, float]  # whose stretch interval holds the truth
    reported: tuple[float, float, float]  # stretch of one setting: 2.5 %, median, 97.5 %


@dataclass(frozen=True, kw_only=True)
class NullResult:
    """A simulation for the runs of one phase, training set and algorithm, on one test."""

    num_seeds: int
    num_settings: int
    num_comparisons: int  # of each setting
    truths: tuple[TruthResult, ...]


@dataclass(frozen=True, kw_only=True)
class _SettingModel:
    times: Float64Array  # [E] of the evaluations, as fractions of the budget
    curve: Float64Array  # parameters of `_accuracy`
    covariance: Float64Array  # [2 E, 2 E] of the noise of a seed's two runs


def simulate(
    records: Sequence[RunRecord],
    *,
    test: str,
    num_seeds: int,
    num_comparisons: int,
    baseline: str = "uniform",
) -> NullResult:
    """Simulate comparisons like those of one phase, training set and algorithm, over charged tokens.

    Args:
        records: its runs; settings without enough runs of the baseline, or whose baseline doesn't rise, are left out.
        test: the test whose curves are taken.
        num_seeds: paired seeds of each simulated comparison, at least MIN_SEEDS.
        num_comparisons: simulated comparisons of each setting.
        baseline: the arm whose mean curves are the truth.

    Raises:
        DataError: no setting is left, or there are too few seeds.
    """
    if num_seeds < MIN_SEEDS:
        raise DataError(f"{num_seeds} seed(s) have no interval whose errors could be counted; take {MIN_SEEDS} or more")
    models = list(_models(records, test=test, baseline=baseline))
    if not models:
        raise DataError(
            f"no setting has {MIN_SEEDS} finished runs of {baseline!r} that rise on test {test!r}, whose curves the "
            "simulation needs; make them first, or name another phase"
        )
    rng = np.random.default_rng(_SEED)
    noises = [_noise(model, rng, size=(num_comparisons, num_seeds)) for model in models]
    return NullResult(
        num_seeds=num_seeds,
        num_settings=len(models),
        num_comparisons=num_comparisons,
        truths=tuple(_truth(models, noises, stretch=stretch) for stretch in _STRETCHES),
    )


def _truth(models: Sequence[_SettingModel], noises: Sequence[Float64Array], *, stretch: float) -> TruthResult:
    areas, logs, pseudo_values = [], [], []
    for model, noise in zip(models, noises, strict=True):
        baselines = _curves(model, noise[..., : len(model.times)], stretch=1.0)
        arms = _curves(model, noise[..., len(model.times) :], stretch=stretch)
        areas.append(np.trapezoid(arms - baselines, axis=-1) / (_NUM_POINTS - 1))
        fits = jackknife_log_stretch(arms, baselines)
        logs.append(fits[:, 0])
        pseudo_values.append(fits[:, 1:])
    truth = np.log(stretch)

    def beside(value: float, centres: list[Float64Array], samples: list[Float64Array]) -> tuple[float, float]:
        single = [np.abs(c - value) > half_width([s]) for c, s in zip(centres, samples, strict=True)]
        pooled = np.abs(np.mean(centres, axis=0) - value) > half_width(samples)
        return float(np.mean(single)), float(np.mean(pooled))

    missed = beside(truth, logs, pseudo_values)
    low, median, high = np.exp(np.quantile(logs, [0.025, 0.5, 0.975])).tolist()
    return TruthResult(
        stretch=stretch,
        area_differs=beside(0.0, [area.mean(axis=-1) for area in areas], areas),
        stretch_differs=beside(0.0, logs, pseudo_values),
        covered=(1 - missed[0], 1 - missed[1]),
        reported=(low, median, high),
    )


def _models(records: Sequence[RunRecord], *, test: str, baseline: str) -> Iterator[_SettingModel]:
    by_setting: dict[str, dict[str, dict[int, RunRecord]]] = defaultdict(lambda: defaultdict(dict))
    for run in records:
        if run.status == "finished" and test in run.tests:
            by_setting[str(run.setting)][run.arm][run.seed] = run
    for arms in by_setting.values():
        runs = arms.get(baseline, {})
        if len(runs) >= MIN_SEEDS and rises([run.accuracy(test) for run in runs.values()]):
            yield _model(arms, test=test, baseline=baseline)


def _model(arms: dict[str, dict[int, RunRecord]], *, test: str, baseline: str) -> _SettingModel:
    runs = arms[baseline]
    num = min(len(run.evaluations) for run in runs.values())
    costs = np.mean([CHARGED.spent(run)[:num] for run in runs.values()], axis=0)
    at_costs = {
        arm: {seed: np.interp(costs, CHARGED.spent(run), run.accuracy(test)) for seed, run in members.items()}
        for arm, members in arms.items()
    }
    mean = np.mean(list(at_costs[baseline].values()), axis=0)
    times = costs / costs[-1]
    return _SettingModel(times=times, curve=_fit(times, mean), covariance=_covariance(at_costs, baseline))


def _covariance(at_costs: dict[str, dict[int, Float64Array]], baseline: str) -> Float64Array:
    """Covariance of the noise of a seed's two runs, from the arms' deviations from their means, either run first."""
    pairs: list[Float64Array] = []
    for arm, curves in at_costs.items():
        seeds = [seed for seed in curves if seed in at_costs[baseline]]
        if arm != baseline and len(seeds) >= MIN_SEEDS:
            one, other = (_deviations([at_costs[name][seed] for seed in seeds]) for name in (arm, baseline))
            pairs += [np.hstack([one, other]), np.hstack([other, one])]
    if not pairs:  # the baseline alone: its seeds are independent of each other
        own = _deviations(list(at_costs[baseline].values()))
        zeros = np.zeros_like(own)
        pairs = [np.hstack([own, zeros]), np.hstack([zeros, own])]
        return 2 * _moments(pairs)
    return _moments(pairs)


def _moments(rows: Sequence[Float64Array]) -> Float64Array:
    stacked = np.vstack(rows)
    return stacked.T @ stacked / len(stacked)


def _deviations(curves: Sequence[Float64Array]) -> Float64Array:
    """Deviations from the mean curve, scaled so that their mean square estimates the variance: [S, E]."""
    stacked = np.stack(curves)
    return (stacked - stacked.mean(axis=0)) * np.sqrt(len(stacked) / (len(stacked) - 1))


def _noise(model: _SettingModel, rng: np.random.Generator, *, size: tuple[int, int]) -> Float64Array:
    return rng.multivariate_normal(np.zeros(len(model.covariance)), model.covariance, size=size, method="eigh")


def _curves(model: _SettingModel, noise: Float64Array, *, stretch: float) -> Float64Array:
    """Noisy curves [R, S, K] from noise [R, S, E] at the evaluations."""
    accuracies = (_accuracy(stretch * model.times, *model.curve) + noise).reshape(-1, noise.shape[-1])
    grid = on_grid([model.times] * len(accuracies), list(accuracies), up_to=1.0, num_points=_NUM_POINTS)
    return grid.reshape(*noise.shape[:-1], _NUM_POINTS)


def _fit(times: Float64Array, accuracies: Float64Array) -> Float64Array:
    """Least-squares parameters of `_accuracy`, which goes on rising past the last evaluation."""
    gain = max(float(accuracies[-1] - accuracies[0]), 0.02)

    def residuals(parameters: Float64Array) -> Float64Array:
        return _accuracy(times, *parameters) - accuracies

    bounds = [0.0, 0.0, 0.02, 0.3], [1.0, 1.0, 10.0, 2.5]
    return least_squares(residuals, [np.clip(accuracies[0], 0.01, 0.99), min(gain, 0.99), 0.3, 0.8], bounds=bounds).x


def _accuracy(times: Float64Array, start: float, gain: float, scale: float, shape: float) -> Float64Array:
    return start + gain * (1 - np.exp(-((times / scale) ** shape)))
