"""Scale without GPUs: the real actors and the real loop around engines that sleep, so that what the rest costs is seen.

    python -m gvm_ray.bench.simulation --generators 1 4 16 64 --max-staleness 0 2 --steps 10

Time is really slept, so no more may be asked than the machine's processors can do in it: all generators together answer
`--samples-per-s` samples in a second of the clock, whatever their number, and the column of cores says what that took.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from gvm_ray.actors.generator_pool import GeneratorPool
from gvm_ray.actors.placement import connected
from gvm_ray.bench.resource_meter import PeakWatch, cpu_seconds, driver_memory_mb, object_store_mb
from gvm_ray.bench.rows import BenchRow
from gvm_ray.bench.simulated_engine import SimulatedEngine, Usage
from gvm_ray.bench.simulated_system import simulated_system
from gvm_ray.bench.simulation_result import SimulationResult, bench_rows, table_header, table_line
from gvm_ray.bench.simulation_settings import SimulationSettings
from gvm_ray.bench.suite import BenchOptions
from gvm_ray.config import RunConfig
from gvm_ray.exceptions import UserError
from gvm_ray.loop import train
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.sample_text import SampleText
from gvm_ray.types import CheckpointState, Histograms, Metrics

_START = CheckpointState(step=0, policy_version=0, cursor={}, allocator={}, costs={})


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The state of a running simulation at one moment."""

    time_s: float
    usages: Sequence[Usage]  # of each engine
    cpu_s: Mapping[str, float]  # by kind of process

    @classmethod
    async def now(cls, generators: GeneratorPool) -> "Reading":
        usages = await generators.ask(SimulatedEngine.usage)
        return cls(time_s=time.monotonic(), usages=usages, cpu_s=cpu_seconds())


class StepRecords:
    """Protocol `StepLog`: keeps each step's metrics, and takes a reading as the measured steps begin and end."""

    def __init__(self, settings: SimulationSettings) -> None:
        self.metrics: list[Metrics] = []
        self.driver_mb: list[float] = []
        self.object_store_mb: list[float] = []
        self.readings: list[asyncio.Task[Reading]] = []
        self.generators: GeneratorPool | None = None
        self._read_after = (settings.num_warm_up - 1, settings.num_warm_up + settings.num_steps - 1)

    def log_step(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> None:
        self.metrics.append(metrics)
        self.driver_mb.append(driver_memory_mb())
        self.object_store_mb.append(object_store_mb())
        if step in self._read_after:
            assert self.generators is not None
            self.readings.append(asyncio.create_task(Reading.now(self.generators)))


def simulate(settings: SimulationSettings) -> SimulationResult:
    """Run one arm, on a Ray cluster of its own unless the process is connected to one.

    Raises:
        ConfigError: a setting is out of range.
    """
    config = settings.run_config()
    with connected(config), PeakWatch().watching() as watch:
        return asyncio.run(_simulate(settings, config, watch))


async def _simulate(settings: SimulationSettings, config: RunConfig, watch: PeakWatch) -> SimulationResult:
    records, clock = StepRecords(settings), PhaseClock()
    async with simulated_system(config, settings.parts(), log=records, clock=clock) as (system, generators):
        records.generators = generators
        clock.restart()
        await train(system, config, start=_START)
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
    """What lies between the two readings, and what was seen in the whole run."""
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
    """Busy generators and samples a second, asynchronous beside synchronous and beside the bound."""
    settings = SimulationSettings(prompts_per_step=256, max_num_seqs=32)  # as many samples in a step as there are slots
    if options.quick:
        settings = replace(settings, num_generators=4, prompts_per_step=16, num_prompts=256, num_steps=4)
    synchronous = simulate(replace(settings, max_staleness=0))
    return bench_rows(simulate(settings), synchronous=synchronous)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every combination of the arguments, and print a line of each as it ends."""
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
    add("--generators", type=int, nargs="+", default=[default.num_generators], help="each makes an arm")
    add("--max-staleness", type=int, nargs="+", default=[default.max_staleness], help="each makes an arm")
    add("--allocator", choices=["gvm", "uniform"], nargs="+", default=[default.allocator], help="each makes an arm")
    add("--steps", type=int, default=default.num_steps, help="that are measured")
    add("--warm-up-steps", type=int, default=None, help="before those; none = 2 (max_staleness + 1)")
    add("--prompts", type=int, default=default.prompts_per_step, help="in a step")
    add("--samples", type=int, default=default.samples_per_prompt, help="of a prompt, on average")
    add("--slots", type=int, default=default.max_num_seqs, help="sequences that a generator decodes at once")
    add("--samples-per-s", type=float, default=default.samples_per_s, help="by the clock, with all slots full")
    add("--stragglers", type=float, default=default.model.straggler_share, help="share of samples 4 times as long")
    add("--slow-generators", type=float, default=default.slow_share, help="share of generators half as fast")
    add("--reward-actors", type=int, default=default.num_reward_actors)
    add("--seed", type=int, default=default.seed)
    add("--json", type=Path, default=None, metavar="FILE", help="append all figures of each arm, one line an arm")
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
