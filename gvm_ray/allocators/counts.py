"""Sample counts of a step: by prompt, and in summary."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gvm_ray.types import AllocationReport, EstimatorTerms, Float64Array, Metrics


def sum_by_prompt(prompt_ids: Sequence[str], counts: NDArray[np.int64]) -> dict[str, int]:
    """prompt_id -> samples, in order of first appearance. A prompt may stand twice in a step, where an epoch ends.

    Args:
        prompt_ids: [P].
        counts: [P].
    """
    total = dict(zip(prompt_ids, counts.tolist(), strict=True))
    if len(total) < len(prompt_ids):
        total = dict.fromkeys(prompt_ids, 0)
        for prompt_id, count in zip(prompt_ids, counts.tolist(), strict=True):
            total[prompt_id] += count
    return total


def report_counts(
    counts: Mapping[str, int],
    *,
    accept_rates: Float64Array,
    estimator: EstimatorTerms,
    estimates: Mapping[str, float] | None = None,
    histograms: Mapping[str, Float64Array] | None = None,
) -> AllocationReport:
    """The report of a step with these samples per prompt.

    Metrics are `allocation/min|max|total` of the samples per prompt, `allocation/zero`, the prompts that got none, and
    `estimates`, what else there is to say; histograms are samples_per_prompt and accept_rate, and those given.

    Args:
        counts: prompt_id -> n_i, of P prompts.
        accept_rates: [P] the estimates of p_i, in the order of `counts`.
        estimator: what the algorithm has to know.
        estimates: metrics behind the decision.
        histograms: likewise.
    """
    values = np.fromiter(counts.values(), dtype=np.int64, count=len(counts))
    metrics: Metrics = {}
    if values.size:
        metrics = {
            "allocation/min": float(values.min()),
            "allocation/max": float(values.max()),
            "allocation/zero": float((values == 0).sum()),
            "allocation/total": float(values.sum()),
        }
    return AllocationReport(
        estimator=estimator,
        metrics={**metrics, **(estimates or {})},
        histograms={
            "samples_per_prompt": values.astype(np.float64),
            "accept_rate": accept_rates,
            **(histograms or {}),
        },
    )
