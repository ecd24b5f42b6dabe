"""`gvm-ray estimator`: draws the pool, repeats every arm's step on it, and measures the error of its estimates."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from gvm_ray.config import EstimatorConfig, RunConfig
from gvm_ray.lab.estimator.arms import PlannedArm, base_config, planned_arms
from gvm_ray.lab.estimator.moments import (
    ErrorSplit,
    GroupMoments,
    MeasuredError,
    SampleSizes,
    measured_error,
    oracle_counts,
    ratio_interval,
)
from gvm_ray.lab.estimator.pool import SamplePool, draw_pool
from gvm_ray.lab.estimator.repeats import RepeatedSteps, repeated_steps
from gvm_ray.lab.estimator.truth import (
    baseline_moments,
    exact_moments,
    predicts_baseline,
    prompt_truth,
    target_gradient,
    true_sizes,
)
from gvm_ray.lab.responses import Say
from gvm_ray.reporting.run_folder import json_text
from gvm_ray.types import Float64Array

_NONE = "-"


@dataclass(frozen=True, kw_only=True)
class EstimatorRow:
    """One arm, measured or with some of its difficulties removed. Errors are in units of |target|^2."""

    algorithm: str
    arm: str
    variant: str  # "measured", or the name of an exact variant
    variance: float
    bias_squared: float
    mean_squared_error: float
    cosine: float
    variance_ratio: float  # x baseline's
    error_ratio: float  # mean squared error x baseline's
    error_ratio_interval: tuple[float, float] | None = None  # 95 %; this and all fields below only for measured arms
    deviations: tuple[float, float, float] | None = None  # standard errors of variance, squared bias, and their sum
    num_samples: float | None = None  # mean number drawn in a step, including pilots
    num_tokens: float | None = None  # mean number drawn in a step, including pilots
    max_samples: int | None = None  # largest n of a prompt in any step


def markdown(rows: Sequence[EstimatorRow], *, baseline: str, facts: Mapping[str, str]) -> str:
    """Format one table for each algorithm, below the facts of the measurement and a legend."""
    lines = ["# Gradient estimators at a fixed policy", "", *(f"- {name}: {value}" for name, value in facts.items())]
    lines += ["", *_legend(baseline)]
    for algorithm, group in groupby(rows, key=lambda row: row.algorithm):
        lines += ["", f"## {algorithm}", "", *_table(list(group), baseline)]
    return "\n".join([*lines, ""])


def write_results(folder: Path, rows: Sequence[EstimatorRow], text: str, *, settings: Mapping[str, Any]) -> None:
    """Write estimator.md, estimator.csv and estimator.json into a folder, which is created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "estimator.md").write_text(text, encoding="utf-8")
    (folder / "estimator.csv").write_text(csv_text(rows), encoding="utf-8")
    values = {**settings, "rows": [asdict(row) for row in rows]}
    (folder / "estimator.json").write_text(json_text(values, indent=2) + "\n", encoding="utf-8")


def csv_text(rows: Sequence[EstimatorRow]) -> str:
    """Format the rows as CSV; intervals and standard errors have their own columns, empty if there are none."""
    file = io.StringIO()
    cells = [_cells(row) for row in rows]
    writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in cells for name in row)))
    writer.writeheader()
    writer.writerows(cells)
    return file.getvalue()


def _cells(row: EstimatorRow) -> dict[str, Any]:
    cells = asdict(row)
    low, high = cells.pop("error_ratio_interval") or (None, None)
    deviations = cells.pop("deviations") or (None, None, None)
    names = ("variance_deviation", "bias_squared_deviation", "mean_squared_error_deviation")
    return {**cells, "error_ratio_low": low, "error_ratio_high": high, **dict(zip(names, deviations, strict=True))}


def _legend(baseline: str) -> list[str]:
    return [
        "Variance, squared bias and their sum, the mean squared error (MSE), are those of one step's estimate of the "
        "target, in units of the target's squared norm; ± is a bootstrap standard error over the repeats.",
        "The target is the algorithm's estimate from all samples of all prompts. Ratios compare with "
        f"`{baseline}`, [95 %]; rows that aren't measured are compared with its exact expectation if that is known.",
        "",
        "- measured: the allocator as it is, on samples drawn from the pool.",
        "- its n: the exact expectation for the same n_i as in the measured steps, without the noise of a few huge "
        "gradients; for allocators that fix all n_i before they sample.",
        "- true p, G ...: exact expectations as well. `true p, G`: the allocator's rule with the prompts' "
        "true accept rates and gradient norms in place of estimates, and no pilots; the difference is lost to "
        "estimation. "
        "`real n`: n is not rounded either. `undone`: weights undo the selection of prompts.",
        "- groups of random prompts: exact expectations for prompts drawn with replacement, so many samples each and "
        "the same sum, with the algorithm's own baseline or with the true mean and deviation of each prompt's reward, "
        "which single samples need. With those the variance is least at one sample a prompt (POISE, arXiv 2605.07579).",
        "- oracle: the n_i with the same sum that give the least MSE, if every prompt's gradients are known.",
        "- cosine: of the mean estimate with the target; measured ones are corrected for noise, so they may exceed 1.",
    ]


def _table(rows: Sequence[EstimatorRow], baseline: str) -> list[str]:
    columns = ["arm", "", "variance", "bias²", "MSE", f"variance x {baseline}", f"MSE x {baseline}", "cosine"]
    columns += ["samples", "tokens", "largest n"]
    lines = ["| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * (len(columns) - 2)]
    for row in rows:
        deviations = row.deviations or (None, None, None)
        interval = row.error_ratio_interval
        cells = [
            row.arm,
            row.variant,
            _with_deviation(row.variance, deviations[0]),
            _with_deviation(row.bias_squared, deviations[1]),
            _with_deviation(row.mean_squared_error, deviations[2]),
            f"{row.variance_ratio:.2f}",
            f"{row.error_ratio:.2f}" + ("" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"),
            f"{row.cosine:.3f}",
            _NONE if row.num_samples is None else f"{row.num_samples:.0f}",
            _NONE if row.num_tokens is None else f"{row.num_tokens:.0f}",
            _NONE if row.max_samples is None else str(row.max_samples),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _with_deviation(value: float, deviation: float | None) -> str:
    return f"{value:.3g}" if deviation is None else f"{value:.3g} ± {deviation:.1g}"


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
    if any(predicts_baseline(arm.config) for arm in arms):
        errors += _random_prompt_errors(config, pool, target=target)
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


def _random_prompt_errors(config: RunConfig, pool: SamplePool, *, target: Float64Array) -> Iterator[ArmError]:
    """Yield the exact errors of groups of prompts at random, with the algorithm's own baseline and with a predicted one
    that is right, for sizes 1, 2, 4 ... up to samples_per_prompt. A group with a baseline of its own starts at 2."""
    budget, most = config.prompts_per_step * config.samples_per_prompt, config.samples_per_prompt
    for arm, first, moments_of in (
        ("groups of random prompts", 2 if config.algorithm.group_baseline else 1, exact_moments),
        ("the same, true baseline", 1, baseline_moments),
    ):
        size, moments = first, moments_of(config, pool, target=target, max_samples=most)
        while moments is not None and size <= most:
            error = moments.error_of_random_prompts(size, budget=budget)
            yield ArmError(arm=arm, variant=f"{size} a prompt", error=error)
            size *= 2


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
