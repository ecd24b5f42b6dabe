"""What runs decide, as recorded: every allocator, algorithm and weighting over a fake system with a virtual clock.

    python -m tests.recorded.decisions            compare with the record, to the last digit
    python -m tests.recorded.decisions --write    record anew

A change of structure must leave every number as it was. `tests/unit/test_recorded_decisions.py` compares too, with room
for another machine's rounding. `tests.recorded.runs` does the same for whole runs with models, on one machine.
"""

import argparse
import asyncio
import json
import math
import selectors
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gvm_ray.background import drain
from gvm_ray.config import RunConfig
from gvm_ray.loop import train
from gvm_ray.types import CheckpointState, GroupOutcome, SampleRequest, TrainBatch
from tests.loop_fakes import START, FakePools, Records, make_system, run_config

RECORD = Path(__file__).with_name("decisions.json")
CHOOSING = {"candidates_per_step": 12}
WORTH_8 = {"predictor": {"history_trials": 8}}
DRAWN_GROUPS = {"type": "gvm_pool", "score": "norm_neyman", "uniform_share": 0.1, "group_size": 4}
BY_STATES = {"states": {"pooling": "mean"}, **WORTH_8}

ALLOCATORS: dict[str, dict[str, Any]] = {
    "uniform": {"type": "uniform"},
    "gvm": {"type": "gvm"},
    "gvm as published": {
        "type": "gvm",
        "reuse_pilots": False,
        "prior_successes": 0,
        "prior_failures": 0,
        "min_samples": 2,
    },
    "gvm filtered": {"type": "gvm", "filter_threshold": 0.7, "min_expected_accepted": 1.5, "max_samples": 12},
    "gvm_pool": {**DRAWN_GROUPS, **BY_STATES, **CHOOSING},
    "gvm_pool, single samples": {
        **DRAWN_GROUPS,
        "group_size": 1,
        "predicted_baseline": True,
        "baseline_source": "both",
        "states": "none",
        "predictor": {"token_features": 8, "history_trials": 8},
        **CHOOSING,
    },
    "gvm_pool, embedding": {**DRAWN_GROUPS, "states": "embedding", **WORTH_8, **CHOOSING},
    "gvm_pool, fitted history": {
        **DRAWN_GROUPS,
        "group_size": 1,
        "predicted_baseline": True,
        "baseline_source": "both",
        **CHOOSING,
    },
    "gvm_pool, undone": {
        **DRAWN_GROUPS,
        "undo_selection": True,
        "exploration": "thompson",
        **BY_STATES,
        **CHOOSING,
    },
    "gvm_pool, signed norms": {**DRAWN_GROUPS, "score": "gradient_deviation", **BY_STATES, **CHOOSING},
    "gvm_pool, pcl": {"type": "gvm_pool", "group_size": 4, **BY_STATES, **CHOOSING},
    "gvm_pool, as it is": {"type": "gvm_pool", **CHOOSING},
    "gvm_pool, unscaled history": {
        **DRAWN_GROUPS,
        "group_size": 1,
        "predicted_baseline": True,
        "predicted_scale": False,
        "baseline_source": "history",
        **WORTH_8,
        **CHOOSING,
    },
    "gvm_online": {"type": "gvm_online", "min_samples": 2, **BY_STATES},
    "neyman": {"type": "neyman", **BY_STATES},
    "neyman, log": {"type": "neyman", "score": "log_neyman", "max_samples": 14, **BY_STATES},
    "reinforce_ada_est": {"type": "reinforce_ada_est"},
    "reinforce_ada_seq": {"type": "reinforce_ada_seq"},
    "reinforce_ada_seq, positive": {"type": "reinforce_ada_seq", "round_samples": 3, "enough_negatives": 0},
    "vip": {"type": "vip"},
    "vip, embedding": {"type": "vip", "states": "embedding"},
    "vip, rloo": {"type": "vip", "baseline": "rloo", "min_samples": 2},
    "knapsack": {"type": "knapsack"},
    "spo": {"type": "spo"},
    "spo, offline": {"type": "spo", "offline_samples": 4},
    "ebpo": {"type": "ebpo"},
    "cures": {"type": "cures", **CHOOSING},
    "dapo": {"type": "dapo"},
    "dapo without refill": {"type": "dapo", "max_batches": 1},
    "speed": {"type": "speed", "screening_samples": 2, **CHOOSING},
    "greso": {"type": "greso", **CHOOSING},
    "mopps": {"type": "mopps", **CHOOSING},
    "mopps with refill": {"type": "mopps", "refill": True, **CHOOSING},
    "dps": {"type": "dps", **CHOOSING},
    "hive": {"type": "hive", "group_size": 16, **CHOOSING},
    "poise": {"type": "poise"},
    "pods": {"type": "pods"},
    "offline_filter": {"type": "offline_filter", "measurement_samples": 4, **CHOOSING},
    "custom": {"type": "custom", "path": "examples.custom_allocator:FewerForSolved"},
}
ALGORITHMS = ("raft", "raft++", "grpo", "dr_grpo", "rloo", "reinforce++")


def cases() -> dict[str, tuple[dict[str, Any], int | None]]:
    """Name -> changes of the run, and the step after which it is resumed, or None."""
    found: dict[str, tuple[dict[str, Any], int | None]] = {}
    for name, allocator in ALLOCATORS.items():
        for algorithm in ("raft++", "grpo"):
            changes = {"allocator": allocator, "algorithm": {"type": algorithm}}
            found[f"{name} / {algorithm}"] = (changes, None)
        overlapped = {"allocator": allocator, "algorithm": {"type": "grpo"}, "max_staleness": 2}
        found[f"{name} / overlapped"] = (overlapped, None)
        found[f"{name} / resumed"] = ({"allocator": allocator, "algorithm": {"type": "grpo"}}, 4)
    for algorithm in ALGORITHMS:
        for weighting in ("prompt_mean", "token_mean"):
            for name in ("uniform", "gvm", "gvm_pool"):
                changes = {
                    "allocator": ALLOCATORS[name],
                    "algorithm": {"type": algorithm, "weighting": weighting, "updates_per_batch": 2},
                }
                found[f"{name} / {algorithm} / {weighting}"] = (changes, None)
    for algorithm in ({"type": "grpo"}, {"type": "reinforce++"}, {"type": "rloo", "shrinkage": True}):
        for name in ("uniform", "spo"):
            changes = {"allocator": ALLOCATORS[name], "algorithm": {**algorithm, "advantage_normalization": "tokens"}}
            found[f"{name} / {algorithm['type']} / normalised over tokens"] = (changes, None)
    for staleness in (1, 3):
        blocks = {"allocator": {"type": "gvm", "block_steps": 2}, "max_staleness": staleness}
        found[f"gvm in blocks / staleness {staleness}"] = (blocks, None)
    found["token budget"] = ({"token_budget": 500}, None)
    return found


class RecordedPools(FakePools):
    """Responses of different lengths; one sample in twelve is unscored, one in ten is cut."""

    def _outcome(self, request: SampleRequest, version: int) -> GroupOutcome:
        drawn = [np.random.default_rng(seed).random(4) for seed in request.seeds]
        outcome = super()._outcome(request, version)
        unscored = np.array([draws[1] < 1 / 12 for draws in drawn], dtype=bool)
        return replace(
            outcome,
            rewards=np.where(unscored, np.nan, outcome.rewards),
            num_tokens=np.array([2 + int(8 * draws[2]) for draws in drawn], dtype=np.int32),
            truncated=np.array([draws[3] < 1 / 10 for draws in drawn], dtype=bool),
            entropies=np.array([draws[1] for draws in drawn]),
        )


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer, so that what overlaps does so the same way every time."""

    def __init__(self) -> None:
        selector = selectors.SelectSelector()
        super().__init__(selector)
        self._now = 0.0
        wait = selector.select

        def jump(timeout: float | None = None) -> Any:
            self._now += timeout or 0.0
            return wait(0)

        selector.select = jump  # type: ignore[method-assign]

    def time(self) -> float:
        """Virtual seconds."""
        return self._now


def decisions(changes: Mapping[str, Any], resume_after: int | None) -> list[dict[str, Any]]:
    """One record a step of a run of six: its metrics, histograms, and what it trains on."""
    config = run_config(**changes)
    loop = VirtualTime()
    try:
        if resume_after is None:
            return loop.run_until_complete(_steps(config, START))
        state = loop.run_until_complete(_state(config, resume_after))
        return loop.run_until_complete(_steps(config, state))
    finally:
        loop.close()


async def _steps(config: RunConfig, start: CheckpointState) -> list[dict[str, Any]]:
    batches, records = await _run(config, start)
    return [
        {"step": step, **_plain(metrics), **_plain(histograms), "groups": _groups(batch)}
        for (step, metrics), histograms, batch in zip(records.steps, records.histograms, batches, strict=True)
    ]


async def _state(config: RunConfig, step: int) -> CheckpointState:
    """What the checkpoint after `step` steps holds, by way of JSON."""
    _, records = await _run(config, START)
    (state,) = [saved for saved in records.saved if saved.step == step]
    through_json = {name: json.loads(json.dumps(getattr(state, name))) for name in ("cursor", "allocator", "costs")}
    return replace(state, **through_json)


async def _run(config: RunConfig, start: CheckpointState) -> tuple[list[TrainBatch], Records]:
    system, fake, learners, records = make_system(config)
    learners.measures_norms = True
    pools = RecordedPools(version=start.step, events=fake.events)
    system = replace(system, pools=pools)
    if start.step:
        system.prompts.load_state_dict(start.cursor)
        system.states.load_state_dict(start.prompt_states)
        await system.allocator.load_state_dict(start.allocator)
    await drain(train(system, config, start=start))
    return learners.batches, records


def _groups(batch: TrainBatch) -> list[list[Any]]:
    """[prompt id, number of samples, sums of advantages, of their squares, and of weights] of each group."""
    return [
        [
            group.prompt_id,
            len(group.sample_indices),
            float(group.advantages.sum()),
            float((group.advantages**2).sum()),
            float(group.weights.sum()),
        ]
        for group in batch.groups
    ]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values: NaN as None, arrays by their size, how many are finite, and the sums of these and their squares."""
    return {name: _json(value) for name, value in values.items() if not name.startswith("time/")}


def _json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        finite = value[np.isfinite(value)]
        return [value.size, finite.size, float(finite.sum()), float((finite**2).sum())]
    return None if isinstance(value, float) and math.isnan(value) else value


def differences(name: str, recorded: Any, present: Any, *, tolerance: float = 0.0) -> Iterator[str]:
    """Places where two records differ by more than `tolerance`, relative to the recorded number."""
    if isinstance(recorded, dict) and isinstance(present, dict):
        for key in sorted(recorded.keys() | present.keys()):
            yield from differences(f"{name}.{key}", recorded.get(key), present.get(key), tolerance=tolerance)
        return
    if isinstance(recorded, list) and isinstance(present, list) and len(recorded) == len(present):
        for index, (before, after) in enumerate(zip(recorded, present, strict=True)):
            yield from differences(f"{name}[{index}]", before, after, tolerance=tolerance)
        return
    if isinstance(recorded, float | int) and isinstance(present, float | int):
        same = math.isclose(recorded, present, rel_tol=tolerance, abs_tol=tolerance)
    else:
        same = recorded == present
    if not same:
        yield f"{name}: recorded {recorded!r}, now {present!r}"


def main() -> None:
    """Write the record, or compare with it; exit code 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record anew")
    write = parser.parse_args().write
    present = {name: decisions(*case) for name, case in cases().items()}
    if write:
        lines = [f"{json.dumps(name)}: {json.dumps(steps)}" for name, steps in present.items()]
        RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        print(f"{len(present)} runs recorded in {RECORD}")
        return
    found = list(differences("", json.loads(RECORD.read_text(encoding="utf-8")), json.loads(json.dumps(present))))
    print("\n".join([*found[:20], f"{len(found)} differences in {len(present)} runs"]))
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
