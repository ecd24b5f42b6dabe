"""JSON Lines with one object a step: readable while the run goes on, and free of double steps after a resume."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gvm_ray.reporting.json_text import json_text, parse_json


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file in order, empty if there is none; null stands for a number that was not finite.

    A last line cut short by a crash is left out.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    complete = lines[:-1]  # a written row ends in a newline, so what follows the last one is empty or cut short
    return [parse_json(line) for line in complete]


def read_steps(path: Path) -> list[dict[str, Any]]:
    """One object a step, in order: an evaluation that went on beside later steps joins the row of its own."""
    steps: dict[int, dict[str, Any]] = {}
    for row in read_rows(path):
        steps.setdefault(row["step"], {}).update(row)
    return [steps[step] for step in sorted(steps)]


def cut_rows(path: Path, *, start_step: int) -> list[dict[str, Any]]:
    """Drop the rows of `start_step` and later, and a last line cut short; returns the rows kept."""
    if not path.exists():
        return []
    kept = [row for row in read_rows(path) if row["step"] < start_step]
    incomplete = path.with_name(path.name + ".incomplete")
    incomplete.write_text("".join(_line(row) for row in kept), encoding="utf-8")
    os.replace(incomplete, path)
    return kept


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Write one object at the end of the file and flush it; a number that isn't finite is written as null."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(row))


def _line(row: Mapping[str, Any]) -> str:
    return json_text(row) + "\n"
