"""Whole runs with models, as recorded on one machine: rows, histograms, and the checksum of the weights they end with.

    python -m tests.recorded.runs --write FOLDER    record (of a checkout before a change)
    python -m tests.recorded.runs FOLDER            compare (after it), to the last digit

About a quarter of an hour on two cores. Another machine rounds otherwise, so the record is not part of the repository.
"""

import argparse
import json
import tempfile
from hashlib import file_digest
from pathlib import Path
from typing import Any

from gvm_ray.config import RunConfig
from gvm_ray.reporting import RunFolder, read_rows
from gvm_ray.run import train
from tests.recorded.decisions import differences
from tests.tiny_runs import timeless_rows, tiny_config

BY_STATES = {"states": {"pooling": "mean"}}
POOL = {
    "type": "gvm_pool",
    "score": "norm_neyman",
    "uniform_share": 0.1,
    "group_size": 4,
    "candidates_per_step": 24,
    **BY_STATES,
}
GRPO = {"type": "grpo", "updates_per_batch": 2}

# Name -> changes of the tiny run, and the steps after which it is resumed, or None.
RUNS: dict[str, tuple[dict[str, Any], int | None]] = {
    "uniform, raft++": ({"allocator": {"type": "uniform"}}, None),
    "uniform, grpo, reference": (
        {
            "allocator": {"type": "uniform"},
            "algorithm": {**GRPO, "kl": {"coefficient": 0.01}, "entropy_coefficient": 0.01},
        },
        None,
    ),
    "gvm, raft++": ({}, None),
    "gvm, grpo, token mean": ({"algorithm": {**GRPO, "weighting": "token_mean"}}, None),
    "gvm in blocks": ({"allocator": {"type": "gvm", "pilot_samples": 3, "block_steps": 2}, "max_staleness": 1}, None),
    "gvm_pool, grpo": ({"allocator": POOL, "algorithm": GRPO}, None),
    "gvm_pool, single samples": (
        {"allocator": {**POOL, "group_size": 1, "predicted_baseline": True}, "algorithm": GRPO},
        None,
    ),
    "gvm_online, reinforce++": (
        {"allocator": {"type": "gvm_online", **BY_STATES}, "algorithm": {"type": "reinforce++"}},
        None,
    ),
    "cures, rloo": ({"allocator": {"type": "cures", "group_size": 6}, "algorithm": {"type": "rloo"}}, None),
    "dapo, dr_grpo": ({"allocator": {"type": "dapo"}, "algorithm": {"type": "dr_grpo"}}, None),
    "reinforce_ada_seq, grpo": (
        {"allocator": {"type": "reinforce_ada_seq", "round_samples": 2}, "algorithm": GRPO},
        None,
    ),
    "overlapped": ({"max_staleness": 1, "engine__in_flight": "finish", "algorithm": GRPO}, None),
    "resumed": ({"allocator": POOL, "algorithm": GRPO}, 2),
    "two ranks": ({"learner__num_workers": 2, "algorithm": GRPO}, None),
    "two ranks, padded": ({"learner__num_workers": 2, "learner__packing": "padded"}, None),
    "lora": ({"learner__lora": {"rank": 4}, "algorithm": GRPO}, None),
    "lora, resumed": ({"learner__lora": {"rank": 4}, "allocator": POOL}, 2),
    "several turns": (
        {
            "environment": {"type": "function", "path": "tests.turn_environments:second_chance", "max_turns": 2},
            "sampling__max_tokens": 24,
        },
        None,
    ),
    "vllm": ({"engine__type": "vllm", "engine__enforce_eager": True, "algorithm": GRPO}, None),
}


def record(name: str, runs_dir: Path) -> dict[str, Any]:
    """Rows, histograms and checksum of one run."""
    changes, resume_after = RUNS[name]
    label = name.replace(", ", "-").replace(" ", "_")
    if resume_after is not None:
        train(_config(runs_dir, label, {**changes, "num_steps": resume_after}))
    train(_config(runs_dir, label, changes), resume=resume_after is not None)
    folder = RunFolder(runs_dir / label)
    with (folder.model / "model.safetensors").open("rb") as weights:
        checksum = file_digest(weights, "sha256").hexdigest()
    return {"rows": timeless_rows(folder), "histograms": read_rows(folder.histograms), "weights": checksum}


def _config(runs_dir: Path, label: str, changes: dict[str, Any]) -> RunConfig:
    # As recorded before prompts were shared and every phase had all cores, which round otherwise.
    before = {"learner__packing": "padded", "learner__cpus_per_worker": 1, "engine__cpus_per_generator": 1}
    return tiny_config(runs_dir, name=label, **{**before, **changes})


def main() -> None:
    """Record, or compare; exit code 1 where anything differs."""
    import ray

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the records, one JSON file a run")
    parser.add_argument("--write", action="store_true", help="record; runs that are recorded already are left alone")
    parser.add_argument("--only", nargs="*", default=list(RUNS), help="names of runs")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    ray.init(address="local", num_cpus=32, include_dashboard=False, namespace="gvm_ray", log_to_driver=False)
    found: list[str] = []
    for name in arguments.only:
        file = arguments.folder / f"{name}.json"
        if arguments.write and file.exists():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            present = json.loads(json.dumps(record(name, Path(scratch))))
        if arguments.write:
            file.write_text(json.dumps(present), encoding="utf-8")
        else:
            found += differences(name, json.loads(file.read_text(encoding="utf-8")), present)
    ray.shutdown()
    print("\n".join([*found[:20], f"{len(found)} differences in {len(arguments.only)} runs"]))
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
