"""The figures for people (Markdown) and for programs (JSON), with the machine, day and versions they hold for."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from gvm_ray.bench.rows import BenchRow
from gvm_ray.bench.suite import PartResult
from gvm_ray.reporting.json_text import json_text
from gvm_ray.reporting.summary import package_versions


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the figures were measured on."""

    cpu: str  # model name
    cores: int  # that this process may use
    memory_gib: float
    gpus: tuple[str, ...]  # names

    @classmethod
    def here(cls) -> "Machine":
        import torch

        return cls(
            cpu=_cpu_model(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            gpus=tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())),
        )


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """Everything that one `gvm-ray bench` found out."""

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
        """A table of all rows under a heading that says where and when they were measured."""
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
        lines += ["", "A ratio of 1 is as good as the floor, more is better, whichever way the unit counts.", ""]
        return "\n".join(lines)

    def json(self) -> str:
        """The same as one JSON object; every row has its ratio."""
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
        """bench.md and bench.json in a folder, which is made where it is missing; returns their paths."""
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
    """The processor's name, which Python's platform module doesn't know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
