"""`gvm-ray bench simulation`: how a cluster of a given size would spend its time."""

import argparse
import asyncio
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import psutil
import ray
from ray._private.internal_api import node_stats

from gvm_ray.actors.cluster import connected
from gvm_ray.actors.generator_pool import GeneratorPool
from gvm_ray.background import drain
from gvm_ray.config import RunConfig
from gvm_ray.exceptions import UserError
from gvm_ray.lab.speed.simulated_engine import SimulatedEngine, Usage
from gvm_ray.lab.speed.simulated_system import SimulationSettings, simulated_system
from gvm_ray.lab.speed.suite import BenchOptions, BenchRow
from gvm_ray.loop import train
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.types import CheckpointState, Histograms, Metrics, SampleText

_POLL_S = 2.0

# Substring of a process's command line -> kind; the first match counts. A Ray worker's line names its actor class.
_KINDS = {
    "sandbox_child": "reward sandboxes",
    "RewardActor": "reward actors",
    "GeneratorActor": "generators",
    "AllocatorActor": "allocator",
    "raylet": "raylet",
    "gcs_server": "global control store",
}


def cpu_seconds() -> dict[str, float]:
    """CPU seconds used so far by the driver (this process) and all its descendants, by kind."""
    driver = psutil.Process()
    seconds = {"driver": _seconds(driver)}
    for process in driver.children(recursive=True):
        try:
            command, used = " ".join(process.cmdline()), _seconds(process)
        except psutil.Error:  # the process has ended
            continue
        kind = next((kind for mark, kind in _KINDS.items() if mark in command), "other")
        seconds[kind] = seconds.get(kind, 0.0) + used
    return seconds


def driver_memory_mb() -> float:
    """MB of memory private to this process, without the object store's shared pages."""
    memory = psutil.Process().memory_info()
    return (memory.rss - memory.shared) / 1e6


def object_store_mb() -> float:
    """MB of the object store in use on all nodes."""
    stats = [
        node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sum(each.store_stats.object_store_bytes_used for each in stats) / 1e6


class PeakWatch:
    """Records the peak use of the object store, polled every two seconds."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._stop = threading.Event()

    @contextmanager
    def watching(self) -> Iterator["PeakWatch"]:
        """Poll in a separate thread while the body runs."""
        thread = threading.Thread(target=self._watch, name="peak-watch", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.peak_mb = max(self.peak_mb, object_store_mb())
            self._stop.wait(_POLL_S)


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """One arm's figures, over the measured steps unless stated otherwise."""

    settings: SimulationSettings
    speed: float  # modelled seconds per second of the clock
    step_s: float  # mean seconds from the end of one update to the end of the next
    busy: tuple[float, ...]  # for each generator: share of the time in which it had something to sample
    occupancy: float  # running sequences / slots
    samples_per_s: float
    ideal_samples_per_s: float
    staleness_mean: float
    staleness_max: float
    cpu: Mapping[str, float]  # cores in use by kind of process
    driver_s_per_step: float  # CPU seconds
    driver_ms_per_group: float
    driver_mb: tuple[float, ...]  # private memory after each step of the whole run
    object_store_mb: tuple[float, ...]  # after each step of the whole run
    object_store_peak_mb: float
    num_samples: int  # in the whole run
    trained_steps: int  # in the whole run
    phases_s: Mapping[str, float]  # over the whole run

    @property
    def busy_mean(self) -> float:
        return float(np.mean(self.busy))


def table_header() -> str:
    """The header of a table of `table_line` rows."""
    return (
        "| generators | allocator | max_staleness | busy % (least) | slots full % | samples/s (of bound %) | "
        "staleness mean/max | driver cores, ms/group, MB first..last | all cores | object store MB peak |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )


def table_line(result: SimulationResult) -> str:
    """Format one arm as a row of a Markdown table."""
    settings = result.settings
    cells = [
        f"{settings.num_generators}",
        settings.allocator,
        f"{settings.max_staleness}",
        f"{100 * result.busy_mean:.1f} ({100 * min(result.busy):.1f})",
        f"{100 * result.occupancy:.1f}",
        f"{result.samples_per_s:.0f} ({100 * result.samples_per_s / result.ideal_samples_per_s:.0f})",
        f"{result.staleness_mean:.2f}/{result.staleness_max:.0f}",
        f"{result.cpu['driver']:.2f}, {result.driver_ms_per_group:.2f}, "
        f"{result.driver_mb[0]:.0f}..{result.driver_mb[-1]:.0f}",
        f"{sum(result.cpu.values()):.2f}",
        f"{result.object_store_peak_mb:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def bench_rows(result: SimulationResult, *, synchronous: SimulationResult) -> list[BenchRow]:
    """Build the arm's rows for the table of all benchmarks."""
    arm = f"{result.settings.num_generators} simulated generators, max_staleness {result.settings.max_staleness}"
    return [
        BenchRow(
            name=f"{arm}: generators busy",
            value=100 * result.busy_mean,
            unit="%",
            floor=100 * synchronous.busy_mean,
            floor_name="the same with max_staleness 0",
        ),
        BenchRow(
            name=f"{arm}: samples",
            value=result.samples_per_s,
            unit="samples/s",
            floor=result.ideal_samples_per_s,
            floor_name="all slots always full",
        ),
        BenchRow(
            name=f"{arm}: driver",
            value=result.cpu["driver"],
            unit="cores",
            floor=None,
            floor_name="",
            higher_is_better=False,
        ),
    ]


_START = CheckpointState(step=0, policy_version=0, cursor={}, allocator={}, costs={})


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The state of a running simulation at one moment."""

    time_s: float
    usages: Sequence[Usage]  # one for each engine
    cpu_s: Mapping[str, float]  # by kind of process

    @classmethod
    async def now(cls, generators: GeneratorPool) -> "Reading":
        usages = await generators.ask(SimulatedEngine.usage)
        return cls(time_s=time.monotonic(), usages=usages, cpu_s=cpu_seconds())


class StepRecords:
    """Log of steps (protocol `StepLog`): keeps metrics, and takes readings before and after the measured steps."""

    def __init__(self, settings: SimulationSettings) -> None:
        self.metrics: list[Metrics] = []
        self.driver_mb: list[float] = []
        self.object_store_mb: list[float] = []
        self.readings: list[asyncio.Task[Reading]] = []
        self.generators: GeneratorPool | None = None
        self._read_after = (settings.num_warm_up - 1, settings.num_warm_up + settings.num_steps - 1)

    def log_step(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> Metrics:
        self.metrics.append(metrics)
        self.driver_mb.append(driver_memory_mb())
        self.object_store_mb.append(object_store_mb())
        if step in self._read_after:
            assert self.generators is not None
            self.readings.append(asyncio.create_task(Reading.now(self.generators)))
        return metrics


def simulate(settings: SimulationSettings) -> SimulationResult:
    """Run one arm, in a new local Ray cluster unless the process is connected to one.

    Raises:
        ConfigError: a setting is out of range.
    """
    config = settings.run_config()
    with connected(config), PeakWatch().watching() as watch:
        return asyncio.run(_simulate(settings, config, watch))


async def _simulate(settings: SimulationSettings, config: RunConfig, watch: PeakWatch) -> SimulationResult:
    records, clock = StepRecords(settings), PhaseClock()
    async with simulated_system(config, settings, log=records, clock=clock) as (system, generators):
        records.generators = generators
        clock.restart()
        await drain(train(system, config, start=_START))
        start, end = await asyncio.gather(*records.readings)
        usages = await generators.ask(SimulatedEngine.usage)
    return _result(
        settings,
        records,
        start=start,
        end=end,
        num_samples=sum(usage.num_samples for usage in usages),
        peak_mb=watch.peak_mb,
        phases_s=clock.seconds(),
    )


def _result(
    settings: SimulationSettings,
    records: StepRecords,
    *,
    start: Reading,
    end: Reading,
    num_samples: int,
    peak_mb: float,
    phases_s: Mapping[str, float],
) -> SimulationResult:
    """Compute the figures between the two readings, and those of the whole run."""
    passed = end.time_s - start.time_s
    used = [later.since(earlier) for earlier, later in zip(start.usages, end.usages, strict=True)]
    cpu_s = {kind: seconds - start.cpu_s.get(kind, 0.0) for kind, seconds in end.cpu_s.items()}
    measured = records.metrics[settings.num_warm_up :][: settings.num_steps]
    rounds = 2 if settings.allocator == "gvm" else 1
    driver_s = cpu_s["driver"] / settings.num_steps
    return SimulationResult(
        settings=settings,
        speed=settings.timed_model.speed,
        step_s=passed / settings.num_steps,
        busy=tuple(usage.busy_s / usage.time_s for usage in used),
        occupancy=sum(usage.slot_s for usage in used) / (passed * settings.num_generators * settings.max_num_seqs),
        samples_per_s=sum(usage.num_samples for usage in used) / passed,
        ideal_samples_per_s=settings.ideal_samples_per_s,
        staleness_mean=fmean(metrics["staleness/mean"] for metrics in measured),
        staleness_max=max(metrics["staleness/max"] for metrics in measured),
        cpu={kind: seconds / passed for kind, seconds in cpu_s.items()},
        driver_s_per_step=driver_s,
        driver_ms_per_group=1e3 * driver_s / (rounds * settings.prompts_per_step),
        driver_mb=tuple(records.driver_mb),
        object_store_mb=tuple(records.object_store_mb),
        object_store_peak_mb=peak_mb,
        num_samples=num_samples,
        trained_steps=len(records.metrics),
        phases_s=phases_s,
    )


def measure(options: BenchOptions) -> list[BenchRow]:
    """Measure busy generators and samples/s of an asynchronous run, against a synchronous run and the upper bound."""
    settings = SimulationSettings(prompts_per_step=256, max_num_seqs=32)  # one slot for each sample of a step
    if options.quick:
        settings = replace(settings, num_generators=4, prompts_per_step=16, num_prompts=256, num_steps=4)
    synchronous = simulate(replace(settings, max_staleness=0))
    return bench_rows(simulate(settings), synchronous=synchronous)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every combination of the arguments, and print a line when each ends."""
    options = _parser().parse_args(arguments)
    print(table_header(), flush=True)
    try:
        for settings in _arms(options):
            result = simulate(settings)
            print(table_line(result), flush=True)
            if options.json is not None:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(result)) + "\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    default = SimulationSettings()
    parser = argparse.ArgumentParser(
        description=str(__doc__).splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--generators", type=int, nargs="+", default=[default.num_generators], help="each value makes an arm")
    add("--max-staleness", type=int, nargs="+", default=[default.max_staleness], help="each value makes an arm")
    add("--allocator", choices=["gvm", "uniform"], nargs="+", default=[default.allocator], help="each makes an arm")
    add("--steps", type=int, default=default.num_steps, help="measured steps")
    add("--warm-up-steps", type=int, default=None, help="steps before the measured ones; none = 2 (max_staleness + 1)")
    add("--prompts", type=int, default=default.prompts_per_step, help="prompts in a step")
    add("--samples", type=int, default=default.samples_per_prompt, help="samples of a prompt, on average")
    add("--slots", type=int, default=default.max_num_seqs, help="sequences that a generator decodes at once")
    add("--samples-per-s", type=float, default=default.samples_per_s, help="in real time, with all slots full")
    add("--stragglers", type=float, default=default.model.straggler_share, help="share of samples 4 times as long")
    add("--slow-generators", type=float, default=default.slow_share, help="share of generators half as fast")
    add("--reward-actors", type=int, default=default.num_reward_actors)
    add("--seed", type=int, default=default.seed)
    add("--json", type=Path, default=None, metavar="FILE", help="append all figures, one line per arm")
    return parser


def _arms(options: argparse.Namespace) -> Iterator[SimulationSettings]:
    default = SimulationSettings()
    for num_generators in options.generators:
        for allocator in options.allocator:
            for max_staleness in options.max_staleness:
                yield replace(
                    default,
                    num_generators=num_generators,
                    max_staleness=max_staleness,
                    allocator=allocator,
                    num_steps=options.steps,
                    warm_up_steps=options.warm_up_steps,
                    prompts_per_step=options.prompts,
                    samples_per_prompt=options.samples,
                    num_prompts=max(default.num_prompts, options.prompts),
                    max_num_seqs=options.slots,
                    samples_per_s=options.samples_per_s,
                    num_reward_actors=options.reward_actors,
                    model=replace(default.model, straggler_share=options.stragglers),
                    slow_share=options.slow_generators,
                    seed=options.seed,
                )


if __name__ == "__main__":
    sys.exit(main())
