"""The layouts of published benchmark files: found by name, read by their fields, and refused with a remedy."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from gvm_ray.benchmarks.samples import find_benchmarks
from gvm_ray.exceptions import ConfigError, DataError
from gvm_ray.maths.final_answer import final_boxed
from gvm_ray.tasks import load_tasks

# A row of each layout, and the final answer that its gold answer states.
LAYOUTS: dict[str, tuple[dict[str, Any], str, str | None, str | None]] = {
    "math500": (
        {"problem": "1+1?", "solution": r"\boxed{2}", "answer": "2", "subject": "Algebra", "level": 2},
        "2",
        "subject",
        "level",
    ),
    "minerva_math": (
        {"problem": "Mass?", "answer": r"It is \boxed{4.5e33} g.", "type": "Astronomy", "idx": 0},
        "4.5e33",
        "type",
        None,
    ),
    "olympiad_bench": (
        {"id": 1, "subfield": "Algebra", "problem": "Roots?", "solution": ["So."], "answer": ["1,2"], "unit": None},
        "1,2",
        "subfield",
        None,
    ),
    "olympiad_original": ({"question": "Roots?", "final_answer": ["1", "2"]}, "1, 2", None, None),
    "amc23": ({"id": 0, "problem": "Miles?", "answer": 27.0, "question": "Miles?"}, "27", None, None),
    "math": (
        {"problem": "1+1?", "solution": r"\boxed{2}", "type": "Algebra", "level": "Level 2"},
        "2",
        "type",
        "level",
    ),
}


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_fields_of_a_layout_are_found(name: str, tmp_path: Path) -> None:
    row, gold, subject_field, level_field = LAYOUTS[name]
    write_rows(tmp_path / f"{name}.jsonl", row)
    benchmark = find_benchmarks([name], folder=tmp_path)[0]
    (task,) = load_tasks(benchmark.source)
    assert task.problem == row.get("problem", row.get("question"))
    assert (final_boxed(task.answer) or task.answer) == gold
    assert (benchmark.name, benchmark.subject_field, benchmark.level_field) == (name, subject_field, level_field)
    assert set(task.features) == {field for field in (subject_field, level_field) if field is not None}


def test_a_benchmark_is_a_name_a_folder_or_a_path(tmp_path: Path) -> None:
    row = LAYOUTS["math500"][0]
    write_rows(tmp_path / "plain.jsonl", row)
    write_rows(tmp_path / "folder" / "test.jsonl", row)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "columns.parquet")
    elsewhere = write_rows(tmp_path / "elsewhere" / "own.jsonl", row)
    nested = write_rows(tmp_path / "elsewhere" / "nested" / "test.jsonl", row)
    found = find_benchmarks(["plain", "folder", "columns", str(elsewhere), str(nested)], folder=tmp_path)
    assert [benchmark.name for benchmark in found] == ["plain", "folder", "columns", "own", "nested"]
    assert len({load_tasks(benchmark.source)[0].prompt_id for benchmark in found}) == 1


def test_a_missing_benchmark_says_what_is_there_and_what_to_do(tmp_path: Path) -> None:
    write_rows(tmp_path / "aime24.jsonl", LAYOUTS["amc23"][0])
    with pytest.raises(DataError, match=r"'math500' is not in .*, which has aime24; put math500\.jsonl .*there"):
        find_benchmarks(["math500"], folder=tmp_path)
    with pytest.raises(DataError, match=r"which has none; put math500\.jsonl"):
        find_benchmarks(["math500"], folder=tmp_path / "nowhere")
    with pytest.raises(DataError, match="doesn't exist"):
        find_benchmarks([str(tmp_path / "gone.jsonl")], folder=None)
    with pytest.raises(ConfigError, match="--benchmark-dir FOLDER"):
        find_benchmarks(["math500"], folder=None)


def test_files_that_are_no_benchmark_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "unanswered.jsonl", {"problem": "1+1?", "hint": "no"})
    with pytest.raises(DataError, match=r"no field for the answer: its first row has problem, hint; call it one of"):
        find_benchmarks(["unanswered"], folder=tmp_path)
    write_rows(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="no field for the problem: its first row has nothing"):
        find_benchmarks(["empty"], folder=tmp_path)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not valid Parquet"):
        find_benchmarks(["torn"], folder=tmp_path)
    write_rows(tmp_path / "twice.jsonl", LAYOUTS["math500"][0])
    with pytest.raises(ConfigError, match="has 'twice' twice"):
        find_benchmarks(["twice", str(tmp_path / "twice.jsonl")], folder=tmp_path)
    with pytest.raises(ConfigError, match="names no benchmark"):
        find_benchmarks([], folder=tmp_path)


DATA = Path(os.environ.get("GVM_RAY_BENCHMARK_DIR") or Path(__file__).resolve().parents[3] / "shared" / "data")
PUBLISHED = {
    "math500": (500, "subject", "level"),
    "minerva_math": (272, "type", None),
    "olympiad_bench": (675, "subfield", None),
    "aime24": (30, None, None),
    "amc23": (40, None, None),
}


@pytest.mark.skipif(
    not all((DATA / f"{name}.jsonl").is_file() for name in PUBLISHED), reason=f"needs the benchmarks in {DATA}"
)
def test_the_published_files_are_read_as_they_are() -> None:
    found = find_benchmarks(list(PUBLISHED), folder=DATA)
    sizes = [len({task.prompt_id for task in load_tasks(benchmark.source)}) for benchmark in found]
    fields = [(benchmark.subject_field, benchmark.level_field) for benchmark in found]
    assert [(size, *pair) for size, pair in zip(sizes, fields, strict=True)] == list(PUBLISHED.values())
