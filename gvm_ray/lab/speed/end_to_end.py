"""Benchmark of whole training steps, against TRL's GRPOTrainer on the same model and prompts.

The case: a step has 32 prompts x 8 completions of at most 64 tokens and one optimizer update; GRPO with equal numbers
of samples, float32, as many threads at a time as the machine has cores. Prompts are arithmetic chains whose worked
responses take 41 to 64 tokens. The model of 0.9 million parameters has just learned to write such responses, so rewards
are mixed, every group has something to train on, and lengths are realistic.
"""

import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from gvm_ray.config import RunConfig, parse_config
from gvm_ray.config.engine import EngineConfig
from gvm_ray.config.prompts import ArithmeticSourceConfig
from gvm_ray.engines import resolve_engine
from gvm_ray.exceptions import ConfigError, SystemFailure
from gvm_ray.lab.speed.suite import BenchOptions, BenchRow
from gvm_ray.prepare import find_base_model
from gvm_ray.reporting import RunFolder, read_rows
from gvm_ray.reporting.progress import EVERY_S, ProgressLines
from gvm_ray.resources import plan_threads, this_machine
from gvm_ray.run import train
from gvm_ray.tasks import load_tasks

PROMPTS_PER_STEP = 32
SAMPLES_PER_PROMPT = 8
MAX_TOKENS = 64
LEARNING_RATE = 1e-4
WARM_UP_STEPS = 3  # first steps of each run, left out of the median

# The worked response of a chain of k operations has 2k + 2 tokens.
SOURCE = {
    "type": "arithmetic",
    "modulus": 2,
    "levels": [{"num_operations": length, "operator": "+"} for length in (20, 26, 31)],
    "max_operations": 31,
    "size": 512,
}
MODEL = {
    "type": "scratch",
    "hidden_size": 128,
    "num_layers": 5,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 336,
}
# Enough to learn the format of a response; whether the answer is right stays a matter of chance.
WARM_START = {
    "num_updates": 60,
    "batch_size": 16,
    "optimizer": {"learning_rate": 3e-3, "schedule": {"type": "cosine", "warmup_updates": 10, "min_ratio": 0.05}},
}


Say = Callable[[str], None]


def _tell_nobody(line: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Case:
    """The inputs of every trainer."""

    model: Path  # a Hugging Face folder
    prompts: Path  # JSONL with the fields `prompt` and `answer`
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """The figures of one run, ours or TRL's."""

    completions_per_s: float  # in steady state
    mean_completion_tokens: float  # must be equal for all runs, else the figures can't be compared


def measure(options: BenchOptions) -> Iterator[BenchRow]:
    """Measure completions/s in steady state for each engine and staleness.

    The floor is the mean of two TRL runs, one before and one after each run.

    Raises:
        ConfigError: `options.trl_python` is not an interpreter.
        SystemFailure: a run failed, or TRL is not installed for that interpreter.
    """
    stalenesses = (0, 1) if options.quick else (0, 1, 2)
    with tempfile.TemporaryDirectory(prefix="gvm-ray-bench-") as folder:
        case = prepare_case(Path(folder), num_steps=WARM_UP_STEPS + (2 if options.quick else 10))
        engines = dict.fromkeys((resolve_engine(EngineConfig()), "transformers"))
        cases = list(itertools.product(engines, stalenesses))
        peer = run_trl(options.trl_python, case, say=options.say) if options.trl_python else None
        for number, (engine, staleness) in enumerate(cases, start=1):
            name = f"{engine}, max_staleness {staleness}"
            options.say(f"  run {number} of {len(cases)}, {case.num_steps} steps: {name}")
            ours = run_ours(case_config(case, engine=engine, max_staleness=staleness), say=options.say)
            later = run_trl(options.trl_python, case, say=options.say) if options.trl_python else None
            peers = [figures for figures in (peer, later) if figures is not None]
            yield from _rows(name, ours, peers)
            peer = later


def _rows(name: str, ours: RunFigures, peers: Sequence[RunFigures]) -> list[BenchRow]:
    floor_name = "TRL GRPOTrainer, transformers generation" if peers else "TRL: give --trl-python"
    return [
        BenchRow(
            name=f"training, {name}",
            value=ours.completions_per_s,
            unit="completions/s",
            floor=mean(figures.completions_per_s for figures in peers) if peers else None,
            floor_name=floor_name,
        ),
        BenchRow(
            name=f"mean response, {name}",
            value=ours.mean_completion_tokens,
            unit="tokens",
            floor=mean(figures.mean_completion_tokens for figures in peers) if peers else None,
            floor_name=floor_name,
        ),
    ]


def prepare_case(folder: Path, *, num_steps: int) -> Case:
    """Prepare the warm-started model, in the cache of warm starts, and the prompts as a file.

    Raises:
        SystemFailure: the warm start failed.
    """
    prompts = folder / "prompts.jsonl"
    tasks = load_tasks(ArithmeticSourceConfig.model_validate(SOURCE))
    lines = [json.dumps({"prompt": task.problem, "answer": task.answer}) for task in tasks]
    prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = _values(folder) | {"name": "warm-start", "warm_start": WARM_START, "engine": {"type": "transformers"}}
    values["reporting"] = values["reporting"] | {"progress": True}
    config = parse_config(values)
    base = find_base_model(config, run_dir=folder)
    if base.warm_start_folder is not None:
        with contextlib.redirect_stdout(sys.stderr):  # shows its progress lines
            train(config)
        base = find_base_model(config, run_dir=folder)
    return Case(model=Path(base.path), prompts=prompts, num_steps=num_steps)


def case_config(case: Case, *, engine: str, max_staleness: int) -> RunConfig:
    """Build the case's run configuration."""
    values = _values(case.prompts.parent) | {
        "name": f"{engine}-staleness-{max_staleness}",
        "num_steps": case.num_steps,
        "max_staleness": max_staleness,
        "model": {"type": "pretrained", "path": str(case.model)},
        "engine": {"type": engine, "kv_cache_gib": 0.25},
    }
    values["prompts"] = {
        "max_tokens": MAX_TOKENS,
        "train": {"type": "file", "path": str(case.prompts), "prompt_field": "prompt"},
    }
    return parse_config(values)


def run_ours(config: RunConfig, *, say: Say = _tell_nobody) -> RunFigures:
    """Run the case and return its figures: samples per step / median seconds per step, after the warm-up steps."""
    lines = ProgressLines(f"  {config.name}, steps", config.num_steps, say=say)
    with _quiet():
        train(config, overwrite=True, callbacks=[lambda step, metrics: lines.at(step + 1)])
    rows = read_rows(RunFolder(Path(config.runs_dir) / config.name).metrics)
    # The first step has no difference: the time before it belongs to the start.
    seconds = [later["time_s"] - earlier["time_s"] for earlier, later in pairwise(rows)]
    return RunFigures(
        completions_per_s=config.samples_per_step / median(seconds[WARM_UP_STEPS - 1 :]),
        mean_completion_tokens=mean(row["length/mean"] for row in rows),
    )


def run_trl(python: str, case: Case, *, say: Say = _tell_nobody) -> RunFigures:
    """Run TRL on the case with the repository's benchmark script, and return its figures.

    Raises:
        ConfigError: the interpreter or the script is missing.
        SystemFailure: the script failed.
    """
    script = Path(__file__).parents[3] / "tests" / "speed" / "trl_grpo.py"
    if not script.is_file():
        raise ConfigError(f"--trl-python needs {str(script)!r}, which only a checkout of the repository has")
    threads = plan_threads(case_config(case, engine="transformers", max_staleness=0), this_machine()).rank
    sizes = {"steps": case.num_steps, "warm-up-steps": WARM_UP_STEPS, "prompts-per-step": PROMPTS_PER_STEP}
    sizes |= {"samples-per-prompt": SAMPLES_PER_PROMPT, "max-tokens": MAX_TOKENS, "threads": threads}
    arguments = [f"--{name}={value}" for name, value in (sizes | {"learning-rate": LEARNING_RATE}).items()]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)  # meant for this interpreter, not for the other
    command = [python, str(script), str(case.model), str(case.prompts), *arguments]
    say(f"  TRL, {case.num_steps} steps")
    output, errors, code = _output_of(command, environment, say=say)
    if code:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        raise SystemFailure(f"TRL's run in {python!r} failed: {last}; see {script.name} for the packages that it needs")
    figures = json.loads(output.strip().splitlines()[-1])
    return RunFigures(
        completions_per_s=figures["completions_per_s"], mean_completion_tokens=figures["mean_completion_tokens"]
    )


def _output_of(command: Sequence[str], environment: Mapping[str, str], *, say: Say) -> tuple[str, str, int]:
    """Run a command; return its output, its errors and its exit code. `say` is called with the time at intervals."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)
    except OSError as error:
        raise ConfigError(f"--trl-python {command[0]!r} can't be run ({error}); write the path of a Python") from error
    start = time.monotonic()
    with process:
        while True:
            try:
                output, errors = process.communicate(timeout=EVERY_S)
                return output, errors, process.returncode
            except subprocess.TimeoutExpired:
                say(f"  TRL, {time.monotonic() - start:.0f} s so far")
            except BaseException:
                process.kill()
                raise


def _values(folder: Path) -> dict[str, Any]:
    """Settings that the warm start and the measured runs share; nothing is evaluated, checkpointed or plotted."""
    return {
        "name": "case",
        "runs_dir": str(folder / "runs"),
        "num_steps": 1,
        "prompts_per_step": PROMPTS_PER_STEP,
        "samples_per_prompt": SAMPLES_PER_PROMPT,
        "model": MODEL,
        "prompts": {"max_tokens": MAX_TOKENS, "train": SOURCE},
        "sampling": {"temperature": 1.0, "max_tokens": MAX_TOKENS},
        "rewards": {"terms": [{"type": "exact"}]},
        "allocator": {"type": "uniform"},
        "algorithm": {"type": "grpo"},
        "learner": {"optimizer": {"learning_rate": LEARNING_RATE}},
        "checkpoint": {"every_steps": 10**6},
        "cluster": {"dashboard": False},
        "reporting": {"tensorboard": False, "ray_metrics": False, "progress": False, "samples_every_steps": 0},
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide a run's own lines from the benchmark's output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
