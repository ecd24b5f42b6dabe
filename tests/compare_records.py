"""Records of made-up runs, as straight or bent as a test wants them."""

from collections.abc import Sequence
from typing import Any

from gvm_ray.lab.compare.records import Evaluation, RunCosts, RunRecord, Setting


def setting(family: str = "arithmetic", base: str = "base0", **other: str) -> Setting:
    return Setting(family=family, base=base, **{"training_set": "mostly_solved", "algorithm": "raft++", **other})


def record(
    arm: str = "uniform", seed: int = 0, *, accuracy: Sequence[float] = (0.5, 0.6, 0.7, 0.7, 0.7), **fields: Any
) -> RunRecord:
    """A finished run of 100 tokens and 4 updates a step, evaluated at every step, on two tests that differ by 0.1."""
    last = len(accuracy) - 1
    values: dict[str, Any] = {
        "phase": "confirmation",
        "setting": setting(),
        "status": "finished",
        "updates_per_batch": 4,
        "token_budget": max(1, 100 * last),
        "evaluations": tuple(_evaluation(step, value) for step, value in enumerate(accuracy)),
        "costs": RunCosts(generated_tokens=100 * last, sampling_s=3.0, update_s=1.0),
    }
    return RunRecord(arm=arm, seed=seed, **values | fields)


def failed(arm: str, seed: int, *, error: str = "ActorFailure: the learner | died\nat once") -> RunRecord:
    """A run that failed after its base evaluation."""
    return record(arm, seed, accuracy=(0.5,), status="failed", error=error, token_budget=400)


def _evaluation(step: int, accuracy: float) -> Evaluation:
    return Evaluation(
        step=step,
        updates=4 * step,
        generated_tokens=100 * step,
        charged_tokens=100.0 * step,
        seconds=2.0 * step,
        accuracy={"balanced": accuracy, "train": accuracy + 0.1},
    )
