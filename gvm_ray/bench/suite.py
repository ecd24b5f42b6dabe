"""Which parts there are and the order they run in. Imports nothing heavy: a part is imported when its turn comes."""

import importlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

from gvm_ray.bench.rows import BenchRow
from gvm_ray.exceptions import ConfigError

_PACKAGE = "gvm_ray.bench"

# In this order, from the cheapest; each is a module of this package with `measure(options) -> list[BenchRow]`.
_ORDER = ("plan", "gradient_norms", "weight_sync", "learner", "engine", "end_to_end", "simulation")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What the parts are asked for."""

    quick: bool = False  # smaller cases and fewer repeats: does it run, and is the order of magnitude right
    trl_python: str | None = None  # interpreter of an environment with TRL, the peer of the end-to-end part
    say: Callable[[str], None] = field(default=lambda line: None, repr=False)  # told how far a part is


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """The rows of one part, or why there are none."""

    name: str
    rows: tuple[BenchRow, ...]
    seconds: float  # that measuring took
    error: str | None = None


Measure = Callable[[BenchOptions], Iterable[BenchRow]]


def part_names() -> tuple[str, ...]:
    """The parts of this installation, in the order they run in."""
    return tuple(name for name in _ORDER if find_spec(f"{_PACKAGE}.{name}") is not None)


def select(names: Iterable[str]) -> tuple[str, ...]:
    """The named parts in the order they run in; all of them where none is named.

    Raises:
        ConfigError: there is no part of a name.
    """
    known, asked = part_names(), set(names)
    unknown = sorted(asked.difference(known))
    if unknown:
        raise ConfigError(f"there is no benchmark {unknown[0]!r}; write one or more of: {', '.join(known)}")
    return tuple(name for name in known if not asked or name in asked)


def run_parts(
    names: Iterable[str],
    options: BenchOptions,
    *,
    on_start: Callable[[str], None] = lambda name: None,
    measures: Mapping[str, Measure] | None = None,
) -> list[PartResult]:
    """Measure part after part; one that raises is reported with its reason, and the others still run.

    Args:
        names: as `select` gave them.
        options: for every part; each figure is told to `say` as it comes.
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
        except Exception as raised:  # one part's fault must not cost the figures of the others
            logging.getLogger(__name__).exception("benchmark %s failed", name)
            error = f"{type(raised).__name__}: {raised}"
        results.append(PartResult(name=name, rows=tuple(rows), seconds=time.perf_counter() - start, error=error))
    return results


def _measure_of(name: str) -> Measure:
    return importlib.import_module(f"{_PACKAGE}.{name}").measure
