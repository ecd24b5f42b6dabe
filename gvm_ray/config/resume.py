"""Settings that may change when a run is resumed; all others may not."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gvm_ray.config.run import RunConfig

# Settings for where, how fast and how long a run runs, and what is kept of it. All others decide what is learned or
# measured: if they changed, no single set of settings would explain the run's curve, costs and weights. A new setting
# may not change until it is named here.
MAY_CHANGE = frozenset(
    {
        "name",
        "runs_dir",
        "num_steps",
        "token_budget",
        "max_staleness",  # together with cluster.placement: shared GPUs need 0
        "max_unscored_fraction",
        *(
            f"engine.{name}"
            for name in (
                "type",
                "path",
                "num_generators",
                "cpus_per_generator",
                "gpus_per_generator",
                "tensor_parallel_size",
                "max_num_seqs",
                "gpu_memory_utilization",
                "sleep",
                "kv_cache_gib",
                "enforce_eager",
                "in_flight",
            )
        ),
        *(
            f"rewards.{name}"
            for name in ("num_actors", "cpus_per_actor", "timeout_s", "memory_mb", "allow_network", "pass_env")
        ),
        *(
            f"learner.{name}"
            for name in (
                "num_workers",
                "cpus_per_worker",
                "gpus_per_worker",
                "micro_batch_tokens",
                "packing",
                "attention",
                "logprob_chunk_tokens",
                "activation_checkpointing",
                "cpu_offload",
                "compile",
                "max_skipped_updates",
            )
        ),
        "weight_sync",
        "evaluation.every_steps",
        "evaluation.num_generators",
        "checkpoint",
        "deadlines",
        "faults",
        "cluster",
        "reporting",
    }
)

_SHOWN_CHARACTERS = 80  # of a value in a message


def changed_settings(before: RunConfig, now: RunConfig) -> dict[str, tuple[str, str]]:
    """Settings that changed although they may not: dotted name -> (old value, new value), as text.

    For a table whose `type` changed, only the `type` is named.
    """
    return {
        name: (_shown(old), _shown(new))
        for name, old, new in _differences(before.model_dump(mode="json"), now.model_dump(mode="json"))
    }


def _differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if name in MAY_CHANGE or before == now:
        return
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        yield name, before, now
    elif "type" in before and "type" in now and before["type"] != now["type"] and f"{name}.type" not in MAY_CHANGE:
        yield f"{name}.type", before["type"], now["type"]
    elif before.keys() != now.keys():  # free keywords, e.g. of a custom algorithm
        yield name, before, now
    else:
        for key in now:
            yield from _differences(before[key], now[key], f"{name}.{key}".lstrip("."))


def _shown(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
