"""`gvm-ray estimator`: draws the pool, repeats every arm's step on it, and measures the error of its estimates."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from gvm_ray.config import EstimatorConfig, RunConfig
from gvm_ray.lab.estimator.moments import (
    ErrorSplit,
    GroupMoments,
    MeasuredError,
    SampleSizes,
    measured_error,
    oracle_counts,
    ratio_interval,
)
from gvm_ray.lab.estimator.plan import PlannedArm, base_config, planned_arms
from gvm_ray.lab.estimator.pool import SamplePool
from gvm_ray.lab.estimator.repeats import RepeatedSteps, repeated_steps
from gvm_ray.lab.estimator.sampling import Say, draw_pool
from gvm_ray.lab.estimator.table import EstimatorRow, markdown, write_results
from gvm_ray.lab.estimator.truth import exact_moments, prompt_truth, target_gradient, true_sizes
from gvm_ray.types import Float64Array

MEASURED, ITS_SIZES, EXACT = "measured", "its n", "exact"
_ORACLE_FACTOR = 8  # the oracle's n are at most this many times samples_per_prompt, or the largest n of a known rule


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmError:
    """An error of one arm, measured or exact; `steps` are the measured steps."""

    arm: str
    variant: str
    error: ErrorSplit
    steps: RepeatedSteps | None = None


def measure(estimator: EstimatorConfig, *, folder: Path, output: Path | None = None, say: Say = print) -> str:
    """Run a whole measurement, write its results, and return the Markdown text.

    Args:
        estimator: the measurement's settings.
        folder: folder of its TOML file.
        output: folder for the results; None is the run's own folder.
        say: called with lines of progress.

    Raises:
        UserError: a setting, file, model or data row is wrong, or the pool has no gradient.
    """
    base, arms = base_config(estimator, folder=folder), planned_arms(estimator, folder=folder)
    run_dir = Path(estimator.runs_dir).resolve() / estimator.name
    pool = draw_pool(estimator, base, [arm.config for arm in arms], run_dir=run_dir, say=say)
    rows: list[EstimatorRow] = []
    for algorithm, group in groupby(arms, key=lambda arm: arm.algorithm):
        rows += algorithm_rows(algorithm, list(group), pool, estimator=estimator, say=say)
    text = markdown(rows, baseline=estimator.baseline, facts=_facts(estimator, base, pool))
    write_results(output or run_dir, rows, text, settings={"settings": estimator.model_dump(mode="json")})
    return text


def algorithm_rows(
    algorithm: str, arms: Sequence[PlannedArm], pool: SamplePool, *, estimator: EstimatorConfig, say: Say = print
) -> list[EstimatorRow]:
    """Compute the rows of one algorithm: each arm measured and, if known, exact; last the oracle.

    Raises:
        DataError: the pool has no gradient.
    """
    config = arms[0].config
    target = target_gradient(config, pool)
    errors: list[ArmError] = []
    for number, arm in enumerate(arms):
        steps = repeated_steps(arm.config, pool, estimator=estimator, arm=number)
        error = measured_error(steps.estimates, target, seed=estimator.seed)
        errors.append(ArmError(arm=arm.name, variant=MEASURED, error=error, steps=steps))
        say(f"{algorithm}/{arm.name}: mean squared error {error.mean_squared_error / (target @ target):.3g} |g|²")
    sizes = {(each.arm, ITS_SIZES): each.steps.sizes for each in errors if each.steps and each.steps.sizes}
    for arm in arms:
        for name, known in _true_sizes(arm.config, pool, seed=estimator.seed).items():
            sizes[arm.name, name] = known
    errors += _exact_errors(config, pool, sizes, target=target)
    order = {arm.name: number for number, arm in enumerate(arms)}
    errors.sort(key=lambda each: order.get(each.arm, len(order)))
    return [_row(algorithm, each, errors, baseline=estimator.baseline, scale=float(target @ target)) for each in errors]


def _exact_errors(
    config: RunConfig, pool: SamplePool, sizes: Mapping[tuple[str, str], SampleSizes], *, target: Float64Array
) -> Iterator[ArmError]:
    """Yield the exact errors of sample sizes by arm and variant, then the oracle's; none without exact moments."""
    largest = max((int(np.ceil(each.counts.max())) for each in sizes.values()), default=0)
    largest = max(largest, _ORACLE_FACTOR * config.samples_per_prompt)
    moments = exact_moments(config, pool, target=target, max_samples=largest)
    if moments is None:
        return
    for (arm, name), each in sizes.items():
        yield ArmError(arm=arm, variant=name, error=moments.expected_error(each))
    budget = min(config.prompts_per_step, pool.num_targets) * config.samples_per_prompt
    yield ArmError(arm="oracle", variant=EXACT, error=_oracle_error(moments, budget=budget))


def _true_sizes(config: RunConfig, pool: SamplePool, *, seed: int) -> dict[str, SampleSizes]:
    truth = prompt_truth(config, pool, pilot_norms=pool.pilot_norms[config.needs.pilot_norms or "embed_tokens"])
    return true_sizes(config, truth, seed=seed)


def _oracle_error(moments: GroupMoments, *, budget: int) -> ErrorSplit:
    counts = oracle_counts(moments, budget=budget)[None].astype(np.float64)
    factors = np.full_like(counts, 1 / moments.num_prompts)
    return moments.expected_error(SampleSizes(counts=counts, factors=factors))


def _row(algorithm: str, each: ArmError, errors: Sequence[ArmError], *, baseline: str, scale: float) -> EstimatorRow:
    of_baseline = {other.variant: other.error for other in errors if other.arm == baseline}
    reference = of_baseline[MEASURED] if each.variant == MEASURED else of_baseline.get(ITS_SIZES, of_baseline[MEASURED])
    error, steps = each.error, each.steps
    interval, deviations = None, None
    if isinstance(error, MeasuredError) and isinstance(reference, MeasuredError):
        of_variance, of_bias, of_error = error.deviations
        deviations = (of_variance / scale, of_bias / scale, of_error / scale)
        interval = ratio_interval(error, reference) if error is not reference else None
    return EstimatorRow(
        algorithm=algorithm,
        arm=each.arm,
        variant=each.variant,
        variance=error.variance / scale,
        bias_squared=error.bias_squared / scale,
        mean_squared_error=error.mean_squared_error / scale,
        cosine=error.cosine,
        variance_ratio=error.variance / reference.variance,
        error_ratio=error.mean_squared_error / reference.mean_squared_error,
        error_ratio_interval=interval,
        deviations=deviations,
        num_samples=steps and steps.num_samples,
        num_tokens=steps and steps.num_tokens,
        max_samples=steps and steps.max_samples,
    )


def _facts(estimator: EstimatorConfig, base: RunConfig, pool: SamplePool) -> dict[str, str]:
    targets = pool.samples[: pool.num_targets]
    rates = np.array([(pool.rewards[own] >= base.rewards.accept_threshold).mean() for own in targets])
    quantiles = ", ".join(f"{value:.2f}" for value in np.quantile(rates, (0.1, 0.25, 0.5, 0.75, 0.9)))
    size = pool.gradients.shape[1]
    budget = estimator.step_prompts * base.samples_per_prompt
    return {
        "policy": f"the starting policy of `{estimator.config}`",
        "pool": f"{pool.num_targets} prompts, {estimator.num_samples} samples each, {len(pool.gradients)} distinct",
        "accept rates": f"mean {rates.mean():.3f}; 10, 25, 50, 75 and 90 % quantiles {quantiles}",
        "gradients": f"of all parameters, {'projected on' if estimator.projection_size else 'all'} {size} dimensions",
        "step": f"{budget} samples for {estimator.step_prompts} prompts, or for the candidates of an arm that selects; "
        f"{estimator.num_repeats} repeats, each after {estimator.warm_up_steps} steps on other prompts",
    }
