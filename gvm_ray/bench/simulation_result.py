"""What a simulation found: figures of one arm, and their form in tables."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gvm_ray.bench.rows import BenchRow
from gvm_ray.bench.simulation_settings import SimulationSettings


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """One arm's figures, of the measured steps unless it says otherwise."""

    settings: SimulationSettings
    speed: float  # modelled seconds in one of the clock
    step_s: float  # mean seconds from one update's end to the next one's
    busy: tuple[float, ...]  # of each generator: share of the time in which it had something to sample
    occupancy: float  # running sequences / slots
    samples_per_s: float
    ideal_samples_per_s: float
    staleness_mean: float
    staleness_max: float
    cpu: Mapping[str, float]  # cores in use by kind of process
    driver_s_per_step: float  # processor seconds
    driver_ms_per_group: float
    driver_mb: tuple[float, ...]  # after each step of the whole run: memory of its own
    object_store_mb: tuple[float, ...]  # after each step of the whole run
    object_store_peak_mb: float
    num_samples: int  # of the whole run
    trained_steps: int  # of the whole run
    phases_s: Mapping[str, float]  # of the whole run

    @property
    def busy_mean(self) -> float:
        return float(np.mean(self.busy))


def table_header() -> str:
    """Of `table_line`."""
    return (
        "| generators | allocator | max_staleness | busy % (least) | slots full % | samples/s (of bound %) | "
        "staleness mean/max | driver cores, ms/group, MB first..last | all cores | object store MB peak |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )


def table_line(result: SimulationResult) -> str:
    """One arm as a row of a Markdown table."""
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
    """The arm's figures for the table of all benchmarks."""
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
