"""Sample counts of a step: by prompt, and in summary."""

from collections.abc import Iterable, Sequence

import numpy as np

from gvm_ray.types import Metrics


def sum_by_prompt(prompt_ids: Sequence[str], counts: Iterable[int]) -> dict[str, int]:
    """prompt_id -> samples, in order of first appearance. A prompt may stand twice in a step, where an epoch ends."""
    total: dict[str, int] = {}
    for prompt_id, count in zip(prompt_ids, counts, strict=True):
        total[prompt_id] = total.get(prompt_id, 0) + int(count)
    return total


def count_metrics(counts: Iterable[int]) -> Metrics:
    """`allocation/min|max|total` of the samples per prompt, and `allocation/zero`: the prompts that got none."""
    values = np.fromiter(counts, dtype=np.int64)
    if not values.size:
        return {}
    return {
        "allocation/min": float(values.min()),
        "allocation/max": float(values.max()),
        "allocation/zero": float((values == 0).sum()),
        "allocation/total": float(values.sum()),
    }
