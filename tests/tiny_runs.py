"""Tiny whole runs: a scratch model that learns in seconds to box a digit, problems modulo 3, a few steps."""

import tomllib
from pathlib import Path
from typing import Any

from gvm_ray.config import RunConfig, parse_config
from gvm_ray.reporting import RunFolder, read_rows

# The warm start teaches the form of a response such as `1 \boxed{2}`, and is too short to teach more: by chance about
# one in three is right, which gives every step something to allocate by and to learn from.
TINY_TOML = """\
name = "tiny"
num_steps = 4
prompts_per_step = 8
samples_per_prompt = 6

[model]
type = "scratch"
hidden_size = 64
num_layers = 2
num_heads = 2
max_position_embeddings = 128

[warm_start]
num_updates = 40
batch_size = 32
num_demonstrations = 256
cache = false
optimizer = { learning_rate = 1e-2 }

[prompts]
max_tokens = 16

[prompts.train]
type = "arithmetic"
modulus = 3
levels = [{ num_operations = 2, operator = "-" }]
max_operations = 2
size = 48

[prompts.eval]
type = "arithmetic"
split = "test"
modulus = 3
levels = [{ num_operations = 2, operator = "-" }]
max_operations = 2
size = 12

[sampling]
max_tokens = 12

[engine]
type = "transformers"
kv_cache_gib = 0.05
max_num_seqs = 64

[rewards]
terms = [{ type = "exact" }]
cpus_per_actor = 0.25

[allocator]
type = "gvm"
pilot_samples = 3

[algorithm]
type = "raft++"
updates_per_batch = 2

[learner.optimizer]
learning_rate = 1e-3

[evaluation]
every_steps = 2

[checkpoint]
every_steps = 2

[deadlines]
start_s = 300
sample_s = 120
update_s = 120
sync_s = 120

[reporting]
progress = false
"""


def tiny_values(runs_dir: Path, **changes: Any) -> dict[str, Any]:
    """The tiny run's settings as plain values; `a__b=c` replaces setting a.b, and None drops one."""
    values: dict[str, Any] = {**tomllib.loads(TINY_TOML), "runs_dir": str(runs_dir)}
    for path, value in changes.items():
        *parents, last = path.split("__")
        table = values
        for name in parents:
            table = table.setdefault(name, {})
        if value is None:
            table.pop(last, None)
        else:
            table[last] = value
    return values


def tiny_config(runs_dir: Path, **changes: Any) -> RunConfig:
    """A tiny run, with changes as `tiny_values` takes them."""
    return parse_config(tiny_values(runs_dir, **changes))


def timeless_rows(folder: RunFolder) -> list[dict[str, Any]]:
    """The run's metrics without what a clock measured."""
    return [
        {name: value for name, value in row.items() if name != "time_s" and not name.startswith("time/")}
        for row in read_rows(folder.metrics)
    ]


def largest_change(before: Path, after: Path) -> float:
    """The largest absolute difference between two model folders' weights, which have the same names."""
    from safetensors.torch import load_file

    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert old.keys() == new.keys()
    return max(float((new[name] - old[name]).abs().max()) for name in old)
