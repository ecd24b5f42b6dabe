"""`gvm-ray bench`: the benchmark parts, their timing, and the table of their figures."""

import importlib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from gvm_ray.exceptions import ConfigError
from gvm_ray.reporting.run_folder import json_text
from gvm_ray.reporting.summary import package_versions
from gvm_ray.resources import find_gpus


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One measured figure next to its floor or bound, both measured in one process."""

    name: str  # the measured operation, e.g. "learner update"
    value: float
    unit: str  # "tokens/s", "s", "MB/s" ...
    floor: float | None  # the same figure of the bare implementation; None if there is none
    floor_name: str  # the bare implementation, e.g. "bare PyTorch loop"
    higher_is_better: bool = True

    @property
    def ratio(self) -> float | None:
        """value / floor, or floor / value if lower is better: 1 is as good as the floor, more is better."""
        if self.floor is None:
            return None
        better, worse = (self.value, self.floor) if self.higher_is_better else (self.floor, self.value)
        return better / worse if worse else None


def compare(ours: Callable[[], object], bare: Callable[[], object], *, repeats: int) -> tuple[float, float]:
    """Measure the median seconds of one call of each.

    Both are called once unmeasured, then `repeats` times in turn, so that other load on the machine affects both alike.

    Raises:
        ValueError: `repeats` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats} measures nothing; write 1 or more")
    ours()
    bare()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, measured in zip((ours, bare), seconds, strict=True):
            start = time.perf_counter()
            function()
            measured.append(time.perf_counter() - start)
    return median(seconds[0]), median(seconds[1])


_PACKAGE = "gvm_ray.lab.speed"

# In running order, cheapest first; each is a module of this package with `measure(options) -> list[BenchRow]`.
PARTS = ("plan", "gradient_norms", "weight_sync", "learner", "engine", "startup", "end_to_end", "simulation")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of the parts."""

    quick: bool = False  # smaller cases and fewer repeats, to check that it runs and the order of magnitude
    trl_python: str | None = None  # interpreter of an environment with TRL, the peer of the end-to-end part
    say: Callable[[str], None] = field(default=lambda line: None, repr=False)  # called with lines of progress


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """The rows of one part, or its error."""

    name: str
    rows: tuple[BenchRow, ...]
    seconds: float  # duration of the measurement
    error: str | None = None


Measure = Callable[[BenchOptions], Iterable[BenchRow]]


def select(names: Iterable[str]) -> tuple[str, ...]:
    """Select the named parts, or all if none is named, in running order.

    Raises:
        ConfigError: there is no part with a given name.
    """
    asked = set(names)
    unknown = sorted(asked.difference(PARTS))
    if unknown:
        raise ConfigError(f"there is no benchmark {unknown[0]!r}; write one or more of: {', '.join(PARTS)}")
    return tuple(name for name in PARTS if not asked or name in asked)


def run_parts(
    names: Iterable[str],
    options: BenchOptions,
    *,
    on_start: Callable[[str], None] = lambda name: None,
    measures: Mapping[str, Measure] | None = None,
) -> list[PartResult]:
    """Measure part after part. If a part raises, its error is reported, and the others still run.

    Args:
        names: names of the parts, from `select`.
        options: options of every part; its `say` is called with each figure.
        on_start: called with the name of each part before it runs.
        measures: functions to use instead of the parts' own.
    """
    results = []
    for name in names:
        on_start(name)
        start = time.perf_counter()
        rows: list[BenchRow] = []
        error: str | None = None
        try:
            measure = measures[name] if measures is not None else _measure_of(name)
            for row in measure(options):
                rows.append(row)
                options.say(f"  {row.name}: {row.value:,.4g} {row.unit}")
        except Exception as raised:  # an error in one part must not cost the figures of the others
            logging.getLogger(__name__).exception("benchmark %s failed", name)
            error = f"{type(raised).__name__}: {raised}"
        results.append(PartResult(name=name, rows=tuple(rows), seconds=time.perf_counter() - start, error=error))
    return results


def _measure_of(name: str) -> Measure:
    return importlib.import_module(f"{_PACKAGE}.{name}").measure


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine on which the figures were measured."""

    cpu: str  # model name
    cores: int  # number of cores that this process may use
    memory_gib: float
    gpus: tuple[str, ...]  # names

    @classmethod
    def here(cls) -> "Machine":
        return cls(
            cpu=_cpu_model(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            gpus=tuple(gpu.name for gpu in find_gpus()),
        )


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """The results of one `gvm-ray bench`."""

    machine: Machine
    quick: bool
    results: Sequence[PartResult]
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    versions: dict[str, str] = field(default_factory=package_versions)

    @property
    def failed(self) -> bool:
        """Whether a part has an error instead of rows."""
        return any(result.error is not None for result in self.results)

    def markdown(self) -> str:
        """Format all rows as a table under a heading with the date and the machine."""
        machine = self.machine
        gpus = ", ".join(machine.gpus) or "no GPU"
        lines = [
            f"# gvm-ray bench, {self.date}" + (" (quick: small cases, few repeats)" if self.quick else ""),
            "",
            f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB, {gpus}.",
            ", ".join(f"{name} {version}" for name, version in self.versions.items()) + ".",
            "",
            "| part | measured | value | floor | what the floor is | ratio |",
            "|---|---|---:|---:|---|---:|",
        ]
        for result in self.results:
            lines += [_line(result.name, row) for row in result.rows]
            if result.error is not None:
                lines.append(f"| {result.name} | failed: {_cell(result.error)} | | | | |")
        lines += ["", "A ratio of 1 is as good as the floor; more is better, whatever the unit.", ""]
        return "\n".join(lines)

    def json(self) -> str:
        """Format the same as one JSON object; every row has its ratio."""
        parts = [
            asdict(result) | {"rows": [asdict(row) | {"ratio": row.ratio} for row in result.rows]}
            for result in self.results
        ]
        values = {
            "date": self.date,
            "quick": self.quick,
            "machine": asdict(self.machine),
            "versions": self.versions,
            "parts": parts,
        }
        return json_text(values, indent=2) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write bench.md and bench.json into a folder, which is created if missing; return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / "bench.md", folder / "bench.json"]
        for path, text in zip(paths, (self.markdown(), self.json()), strict=True):
            path.write_text(text, encoding="utf-8")
        return paths


def _line(part: str, row: BenchRow) -> str:
    floor = "" if row.floor is None else f"{_number(row.floor)} {row.unit}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    cells = (part, _cell(row.name), f"{_number(row.value)} {row.unit}", floor, _cell(row.floor_name), ratio)
    return "| " + " | ".join(cells) + " |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _cpu_model() -> str:
    """Return the processor's name, which Python's platform module doesn't know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


@contextmanager
def local_cluster(*, object_store_mb: int = 512) -> Iterator[None]:
    """A local cluster for as long as this lasts; the one that this process is connected to, where it is.

    Args:
        object_store_mb: MiB of shared memory.
    """
    import ray  # late: the names of the parts are listed without it

    if ray.is_initialized():
        yield
        return
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=object_store_mb * 2**20,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()
