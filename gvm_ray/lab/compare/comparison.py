"""Results from records: each arm's accuracy, and its comparison with the baseline run of the same setting and seed."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from gvm_ray.exceptions import DataError
from gvm_ray.lab.compare.records import Cost, RunRecord, Setting, check_distinct
from gvm_ray.maths.bootstrap import Estimate, RatioEstimate, estimate_mean, estimate_ratio, stratified_mean
from gvm_ray.maths.curves import TokenRatio, area_under_curve, final_accuracy, token_ratio

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class AccuracyResult:
    """An arm's result on one test. Comparisons are None for the baseline itself, and without a pair of runs."""

    accuracy: float  # final accuracy: mean over settings of the mean over seeds
    deviation: float  # standard deviation over a setting's seeds, root mean square over settings; NaN for single seeds
    token_ratio: RatioEstimate | None  # baseline's cost / arm's cost, both up to the baseline's final accuracy
    area_difference: Estimate | None  # mean accuracy over the cost that both runs of a pair spent, arm minus baseline


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """An arm's result in one setting or over several; failed runs are only counted."""

    arm: str
    num_finished: int
    num_failed: int
    tests: Mapping[str, AccuracyResult]  # empty if no run finished
    allocation_shares: Mapping[str, float]  # RunCosts.allocation_shares, mean over runs
    updates: float  # optimizer updates, mean over runs; NaN if none finished


def compare_arms(
    records: Sequence[RunRecord], *, baseline: str = "uniform", cost: Cost = "charged_tokens"
) -> list[ArmResult]:
    """Compute one result per arm: the baseline, then the others by their final accuracy on the first test.

    If the baseline has no run yet, the results have no comparisons.

    Args:
        records: runs of one phase, at least one, in one or more settings; pairs are made within a setting.
        baseline: the arm to compare the others with.
        cost: the cost that ratios and areas are computed over.

    Raises:
        DataError: the records can't be compared; see :func:`check_comparable`.
    """
    assert len({record.phase for record in records}) == 1, "records of exploration and confirmation can't be mixed"
    check_comparable(records)
    arms = sorted({record.arm for record in records})
    references = {(run.setting, run.seed): run for run in records if run.arm == baseline and run.status == "finished"}
    results = [
        _arm_result([run for run in records if run.arm == arm], {} if arm == baseline else references, cost)
        for arm in arms
    ]
    return sorted(results, key=lambda result: (result.arm != baseline, -_first_accuracy(result)))


def check_comparable(records: Sequence[RunRecord]) -> None:
    """Check that all arms of a setting have the same updates per batch, token budget (used up), base policy and tests.

    Raises:
        DataError: the arms of a setting differ, a finished run ended early, or two records are of the same run.
    """
    check_distinct(records)
    by_setting: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        by_setting[f"{record.phase}/{record.setting}"].append(record)
    for setting, runs in by_setting.items():
        _check_equal(setting, "updates per batch", runs, lambda run: run.updates_per_batch)
        _check_equal(setting, "token budget", runs, lambda run: run.token_budget)
        finished = [run for run in runs if run.status == "finished"]
        _check_equal(setting, "base policy", finished, lambda run: run.base_digest)
        _check_equal(setting, "tests", finished, lambda run: ", ".join(sorted(run.tests)))
        for run in finished:
            _check_budget_is_used(run)


def _check_equal(setting: str, what: str, runs: Sequence[RunRecord], value: Callable[[RunRecord], object]) -> None:
    arms: dict[object, set[str]] = defaultdict(set)
    for run in runs:
        arms[value(run)].add(run.arm)
    if len(arms) > 1:
        found = "; ".join(f"{key} ({', '.join(sorted(names))})" for key, names in arms.items())
        raise DataError(
            f"{setting}: the arms differ in {what}: {found}; a comparison needs the same for all, so run it again"
        )


def _check_budget_is_used(run: RunRecord) -> None:
    end = run.evaluations[-1].charged_tokens
    if end < run.token_budget:
        raise DataError(
            f"{'/'.join(run.key)}: the last evaluation is at {end:,.0f} charged tokens, below the budget of "
            f"{run.token_budget:,}; a finished run ends with an evaluation once it is spent, so run it again"
        )


def _arm_result(
    runs: Sequence[RunRecord], references: Mapping[tuple[Setting, int], RunRecord], cost: Cost
) -> ArmResult:
    finished = [run for run in runs if run.status == "finished"]
    pairs = [(run, references[run.setting, run.seed]) for run in finished if (run.setting, run.seed) in references]
    shares = [run.costs.allocation_shares for run in finished]
    return ArmResult(
        arm=runs[0].arm,
        num_finished=len(finished),
        num_failed=len(runs) - len(finished),
        tests={test: _accuracy_result(test, finished, pairs, cost) for test in finished[0].tests} if finished else {},
        allocation_shares={name: _mean([share[name] for share in shares]) for name in shares[0]} if finished else {},
        updates=_mean([run.evaluations[-1].updates for run in finished]) if finished else math.nan,
    )


def _accuracy_result(
    test: str, runs: Sequence[RunRecord], pairs: Sequence[tuple[RunRecord, RunRecord]], cost: Cost
) -> AccuracyResult:
    def ratio(run: RunRecord, reference: RunRecord) -> TokenRatio | None:
        return token_ratio(
            run.spent(cost),
            run.accuracy(test),
            baseline_tokens=reference.spent(cost),
            baseline_accuracy=reference.accuracy(test),
        )

    def area_difference(run: RunRecord, reference: RunRecord) -> float:
        up_to = float(min(run.spent(cost)[-1], reference.spent(cost)[-1]))
        areas = [area_under_curve(r.spent(cost), r.accuracy(test), up_to=up_to) for r in (run, reference)]
        return areas[0] - areas[1]

    final = _strata([(run, run) for run in runs], lambda run, _: final_accuracy(run.accuracy(test)))
    ratios, differences = _strata(pairs, ratio), _strata(pairs, area_difference)
    variances = [np.var(list(values.values()), ddof=1) for values in final.values() if len(values) > 1]
    return AccuracyResult(
        accuracy=stratified_mean(final),
        deviation=math.sqrt(np.mean(variances)) if variances else math.nan,
        token_ratio=estimate_ratio(ratios) if ratios else None,
        area_difference=estimate_mean(differences) if differences else None,
    )


def _strata(
    pairs: Sequence[tuple[RunRecord, RunRecord]], value: Callable[[RunRecord, RunRecord], T | None]
) -> dict[str, dict[int, T]]:
    """Setting -> seed -> value of the pair; pairs whose value is None are left out."""
    strata: dict[str, dict[int, T]] = defaultdict(dict)
    for run, reference in pairs:
        if (compared := value(run, reference)) is not None:
            strata[str(run.setting)][run.seed] = compared
    return strata


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _first_accuracy(result: ArmResult) -> float:
    return next((test.accuracy for test in result.tests.values()), -1.0)
