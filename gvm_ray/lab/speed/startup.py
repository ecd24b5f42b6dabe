"""Benchmark of a run's start: seconds from the command to generators that hold the first weights, phase by phase.

    python -m gvm_ray.lab.speed.startup CONFIG.json     one start of a run, as JSON

Each start is a process of its own, because imports are a large part of it. The floor is what no run can do without: an
interpreter that starts a local Ray cluster and an actor in it that imports the engine's library.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from gvm_ray.config import RunConfig, parse_config
from gvm_ray.engines import resolve_engine
from gvm_ray.exceptions import SystemFailure
from gvm_ray.lab.speed.suite import BenchOptions, BenchRow, local_cluster

_LIBRARIES = {"vllm": "vllm.v1.engine.llm_engine", "transformers": "transformers.models.llama.modeling_llama"}
_TOTAL, _PROCESSOR = "in all", "processor time of all its processes"


def measure(options: BenchOptions) -> Iterator[BenchRow]:
    """Measure the starts of a run with a small model, beside the floor; medians of the phases.

    Raises:
        SystemFailure: a start failed.
    """
    with tempfile.TemporaryDirectory(prefix="gvm-ray-bench-") as folder:
        config = _config(Path(folder))
        path = Path(folder) / "config.json"
        path.write_text(config.model_dump_json(), encoding="utf-8")
        library = _LIBRARIES[resolve_engine(config.engine)]
        starts: list[dict[str, float]] = []
        floors: list[dict[str, float]] = []
        for _ in range(1 if options.quick else 3):
            starts.append(_output_of(str(path)))
            floors.append(_output_of(library))
    for name in starts[0]:
        has_floor = name in floors[0]
        yield BenchRow(
            name=f"start of a run, {name}",
            value=median(start[name] for start in starts),
            unit="s",
            floor=median(floor[name] for floor in floors) if has_floor else None,
            floor_name=f"bare Ray with an actor that imports {library.partition('.')[0]}" if has_floor else "",
            higher_is_better=False,
        )


def _output_of(argument: str) -> dict[str, float]:
    command = [sys.executable, "-m", __name__, argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemFailure(f"a start failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def _config(folder: Path) -> RunConfig:
    """A run with a scratch model, the default engine, and no warm start."""
    return parse_config(
        {
            "name": "start",
            "runs_dir": str(folder / "runs"),
            "model": {"type": "scratch"},
            "prompts": {"max_tokens": 64, "train": {"type": "arithmetic", "size": 512}},
            "sampling": {"max_tokens": 64},
            "engine": {"kv_cache_gib": 0.25},
            "rewards": {"terms": [{"type": "exact"}]},
            "cluster": {"dashboard": False},
            "reporting": {"ray_metrics": False, "progress": False},
        }
    )


class _Phases:
    """Seconds of each phase of this process's life."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase, which may run beside others."""
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began

    async def of(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        """Do the work as a phase."""
        with self.phase(name):
            await work


# --- in a process of its own ------------------------------------------------------------------------------------------
def _start(config: RunConfig) -> dict[str, float]:
    """Start the run's parts as `launched` does, publish the first weights, and stop; returns seconds by phase."""
    phases = _Phases()
    from gvm_ray.actors.cluster import connected
    from gvm_ray.prepare import prepare

    phases.seconds["interpreter and imports"] = _age()
    run_dir = Path(config.runs_dir) / config.name
    with phases.phase("checks of settings, model and prompts"):
        prepared = prepare(config, run_dir=run_dir)
    began = time.monotonic()
    with connected(config):
        phases.seconds["local Ray cluster"] = time.monotonic() - began
        asyncio.run(_start_parts(config, prepared, run_dir, phases))
    return phases.seconds


async def _start_parts(config: RunConfig, prepared: Any, run_dir: Path, phases: _Phases) -> None:
    from gvm_ray.actors.cluster import find_threads
    from gvm_ray.actors.context import RunContext
    from gvm_ray.system import learner_group, start_pools

    context = RunContext.of(config, threads=find_threads(config))
    pools = start_pools(config, prepared.model, kind=prepared.engine_kind, context=context)
    learners = learner_group(config, prepared, pools, run_dir=run_dir, context=context)
    try:
        with phases.phase("actors, side by side"):
            await asyncio.gather(
                phases.of("reward actor ready", pools.rewards.start()),
                phases.of("generator ready", pools.generators.start()),
                phases.of("learner rank ready", learners.start()),
            )
        with phases.phase("weights published"):
            await pools.publish(await learners.weights(0))
        phases.seconds |= _spent()
    finally:
        await learners.stop()
        pools.close()


def _bare(library: str) -> dict[str, float]:
    """Start a bare local cluster and an actor that imports a library; returns the seconds since this process began."""
    import ray

    def load() -> None:
        __import__(library)

    with local_cluster():
        ray.get(ray.remote(load).remote())
        return _spent()


def _spent() -> dict[str, float]:
    """Seconds of the clock, and of the processor by this process and those that it has started."""
    seconds = {_TOTAL: _age(), _PROCESSOR: 0.0}
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            seconds[_PROCESSOR] += sum(process.cpu_times()[:4])  # with those of children that have ended
    return seconds


def _age() -> float:
    """Seconds since this process began."""
    return time.time() - psutil.Process().create_time()


def main(argument: str) -> None:
    """Print the seconds of one start: of a run by its settings' file, or of the floor by a library's name."""
    path = Path(argument)
    seconds = _start(parse_config(json.loads(path.read_text()))) if path.suffix == ".json" else _bare(argument)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1])
