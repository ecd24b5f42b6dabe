"""Costs that a curve is drawn over: tokens, and seconds at the prices of a machine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gvm_ray.config.lab import PriceConfig
from gvm_ray.lab.compare.records import RunRecord
from gvm_ray.types import Float64Array


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
