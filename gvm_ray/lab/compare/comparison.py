"""Results from records: each arm's accuracy, and its comparison with the baseline run of the same setting and seed.

Curves are compared over a cost: tokens, or seconds at the prices of a machine.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from gvm_ray.config.lab import PriceConfig
from gvm_ray.exceptions import DataError
from gvm_ray.lab.compare.records import RunRecord, Setting, check_distinct
from gvm_ray.maths.curves import (
    TokenRatio,
    area_under_curve,
    final_accuracy,
    jackknife_log_stretch,
    on_grid,
    token_ratio,
)
from gvm_ray.maths.student_t import Estimate, estimate_mean, stratified_mean
from gvm_ray.types import Float64Array

T = TypeVar("T")
Pair = tuple[RunRecord, RunRecord]  # an arm's run, and the baseline's of the same setting and seed


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A cumulative cost of a run; `spent` gives it at each evaluation [E]."""

    name: str
    label: str
    spent: Callable[[RunRecord], Float64Array]


def counted(name: str, label: str) -> Cost:
    """A cost that the records hold, by the name of its field."""
    return Cost(name=name, label=label, spent=lambda record: record.points(name))


CHARGED = counted("charged_tokens", "charged tokens (generated + prefilled candidates at their price)")
GENERATED = counted("generated_tokens", "generated tokens (pilots included)")
UPDATES = counted("updates", "optimizer updates")
SECONDS = counted("seconds", "seconds as the runs took them (without evaluation)")


def priced(name: str, prices: PriceConfig) -> Cost:
    """Seconds of sampling and learning at given prices a token.

    Generated tokens are decoded; the prompts of sampled groups, and those of candidates that only the allocator reads,
    are prefilled, once a request; the learner trains on the samples that it is handed and on each prompt once.
    """

    def spent(record: RunRecord) -> Float64Array:
        tokens = {
            each: record.points(each)
            for each in ("generated_tokens", "prompt_tokens", "prefill_tokens", "trained_tokens")
        }
        microseconds = (
            prices.decode_us * tokens["generated_tokens"]
            + prices.prefill_us * (tokens["prompt_tokens"] + tokens["prefill_tokens"])
            + prices.learner_us * (tokens["trained_tokens"] + tokens["prompt_tokens"])
        )
        return 1e-6 * microseconds

    return Cost(name=f"{name}_seconds", label=f"seconds at the prices of {name}", spent=spent)


def costs_of(records: Sequence[RunRecord], prices: Mapping[str, PriceConfig]) -> list[Cost]:
    """The costs to compare by, charged tokens first; without prices where a record lacks the tokens they apply to."""
    finished = [record for record in records if record.status == "finished"]
    known = all(np.isfinite(record.points("prompt_tokens")).all() for record in finished)
    return [CHARGED, GENERATED, *(priced(name, each) for name, each in prices.items() if known)]


@dataclass(frozen=True, kw_only=True)
class CostResult:
    """An arm's curve beside the baseline's, over one cost."""

    area: Estimate  # mean accuracy over the cost that both runs of a pair spent, arm minus baseline: it decides
    stretch: Estimate | None  # how many times as fast the arm is; None where the baseline doesn't rise


@dataclass(frozen=True, kw_only=True)
class RatioResult:
    """Baseline's cost / arm's cost, both up to the baseline's final accuracy: a description of the curves' ends."""

    value: float  # geometric mean; a run that didn't reach the accuracy counts with all it spent
    num_reached: int
    num_pairs: int  # with an accuracy to reach: one above the base policy's


@dataclass(frozen=True, kw_only=True)
class AccuracyResult:
    """An arm's result on one test. The baseline itself, and an arm without a pair of runs, have no comparisons."""

    accuracy: float  # final accuracy: mean over settings of the mean over seeds
    deviation: float  # standard deviation over a setting's seeds, root mean square over settings; NaN for single seeds
    ratio: RatioResult | None  # over the first cost
    by_cost: Mapping[str, CostResult]


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
    records: Sequence[RunRecord], *, baseline: str = "uniform", costs: Sequence[Cost] = (CHARGED,)
) -> list[ArmResult]:
    """Compute one result per arm: the baseline, then the others by their final accuracy on the first test.

    If the baseline has no run yet, the results have no comparisons.

    Args:
        records: runs of one phase, at least one, in one or more settings; pairs are made within a setting.
        baseline: the arm to compare the others with.
        costs: the costs that curves are compared over; the first is also that of the ratio.

    Raises:
        DataError: the records can't be compared; see :func:`check_comparable`.
    """
    assert len({record.phase for record in records}) == 1, "records of exploration and confirmation can't be mixed"
    check_comparable(records)
    arms = sorted({record.arm for record in records})
    references = {(run.setting, run.seed): run for run in records if run.arm == baseline and run.status == "finished"}
    results = [
        _arm_result([run for run in records if run.arm == arm], {} if arm == baseline else references, costs)
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
    runs: Sequence[RunRecord], references: Mapping[tuple[Setting, int], RunRecord], costs: Sequence[Cost]
) -> ArmResult:
    finished = [run for run in runs if run.status == "finished"]
    pairs = [(run, references[run.setting, run.seed]) for run in finished if (run.setting, run.seed) in references]
    shares = [run.costs.allocation_shares for run in finished]
    return ArmResult(
        arm=runs[0].arm,
        num_finished=len(finished),
        num_failed=len(runs) - len(finished),
        tests={test: _accuracy_result(test, finished, pairs, costs) for test in finished[0].tests} if finished else {},
        allocation_shares={name: _mean([share[name] for share in shares]) for name in shares[0]} if finished else {},
        updates=_mean([run.evaluations[-1].updates for run in finished]) if finished else math.nan,
    )


def _accuracy_result(
    test: str, runs: Sequence[RunRecord], pairs: Sequence[Pair], costs: Sequence[Cost]
) -> AccuracyResult:
    final = _strata([(run, run) for run in runs], lambda run, _: final_accuracy(run.accuracy(test)))
    variances = [np.var(list(values.values()), ddof=1) for values in final.values() if len(values) > 1]
    return AccuracyResult(
        accuracy=stratified_mean(final),
        deviation=math.sqrt(np.mean(variances)) if variances else math.nan,
        ratio=_ratio(test, pairs, costs[0]),
        by_cost={cost.name: _cost_result(test, pairs, cost) for cost in costs} if pairs else {},
    )


def _ratio(test: str, pairs: Sequence[Pair], cost: Cost) -> RatioResult | None:
    def ratio(run: RunRecord, reference: RunRecord) -> TokenRatio | None:
        return token_ratio(
            cost.spent(run),
            run.accuracy(test),
            baseline_tokens=cost.spent(reference),
            baseline_accuracy=reference.accuracy(test),
        )

    strata = _strata(pairs, ratio)
    if not strata:
        return None
    reached = [not each.censored for ratios in strata.values() for each in ratios.values()]
    logs = {name: {seed: math.log(each.value) for seed, each in ratios.items()} for name, ratios in strata.items()}
    return RatioResult(value=math.exp(stratified_mean(logs)), num_reached=sum(reached), num_pairs=len(reached))


def _cost_result(test: str, pairs: Sequence[Pair], cost: Cost) -> CostResult:
    def area_difference(run: RunRecord, reference: RunRecord) -> float:
        up_to = float(min(cost.spent(run)[-1], cost.spent(reference)[-1]))
        areas = [area_under_curve(cost.spent(r), r.accuracy(test), up_to=up_to) for r in (run, reference)]
        return areas[0] - areas[1]

    return CostResult(area=estimate_mean(_strata(pairs, area_difference)), stretch=_stretch(test, pairs, cost))


def _stretch(test: str, pairs: Sequence[Pair], cost: Cost) -> Estimate | None:
    """The stretch over the settings in which the baseline rises: of one that doesn't there is nothing to say."""
    values: list[float] = []
    pseudo_values: dict[str, dict[int, float]] = {}
    for name, members in _by_setting(pairs).items():
        if not rises([reference.accuracy(test) for _, reference in members]):
            continue
        up_to = min(float(cost.spent(run)[-1]) for pair in members for run in pair)
        arms, baselines = (
            on_grid([cost.spent(run) for run in runs], [run.accuracy(test) for run in runs], up_to=up_to)
            for runs in zip(*members, strict=True)
        )
        log, *pseudo = jackknife_log_stretch(arms, baselines).tolist()
        values.append(log)
        pseudo_values[name] = dict(enumerate(pseudo or [log]))
    if not values:
        return None
    interval = estimate_mean(pseudo_values).interval
    value = _mean(values)
    if interval is not None:  # centred at the estimate itself: the mean pseudo-value is noisier
        half = (interval[1] - interval[0]) / 2
        interval = value - half, value + half
    return Estimate(value=value, interval=interval).exponential()


def rises(accuracies: Sequence[Float64Array]) -> bool:
    """True if curves [E] end above their start: by Student-t over seeds, or on average where there are too few."""
    gains = {seed: final_accuracy(each) - each[0] for seed, each in enumerate(accuracies)}
    gain = estimate_mean({"": gains})
    return gain.value > 0 and (gain.interval is None or gain.interval[0] > 0)


def _by_setting(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    by_setting: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_setting[str(pair[0].setting)].append(pair)
    return by_setting


def _strata(pairs: Sequence[Pair], value: Callable[[RunRecord, RunRecord], T | None]) -> dict[str, dict[int, T]]:
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
