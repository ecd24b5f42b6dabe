"""Records of runs: written whole, read back equal, and refused where they contradict themselves."""

import math
from pathlib import Path

import pytest
from compare_records import failed, record, setting
from pydantic import ValidationError

from gvm_ray.exceptions import DataError
from gvm_ray.lab.compare.records import (
    RunCosts,
    RunRecord,
    check_distinct,
    read_csv,
    read_record,
    write_csv,
    write_record,
)

RECORDS = [
    record("uniform", 0, accuracy=(0.1 + 0.2, 1 / 3, 0.7)),
    record("uniform", 10),
    record("pool", 0, setting=setting("list-programs", "base1", algorithm="grpo")),
    record("pool", 0, phase="exploration"),
    failed("gvm", 0),
    record("gvm", 1, status="failed", error="no base", evaluations=()),
]


def test_json_gives_back_every_record(tmp_path: Path) -> None:
    paths = [write_record(tmp_path, run) for run in RECORDS]
    assert len(set(paths)) == len(RECORDS)
    assert paths[0] == tmp_path / "confirmation/arithmetic/base0/mostly_solved/raft++/uniform/0.json"
    assert [read_record(path) for path in paths] == RECORDS


def test_csv_gives_back_every_record(tmp_path: Path) -> None:
    runs, points = write_csv(RECORDS, tmp_path)
    assert len(points.read_text().splitlines()) == 1 + sum(len(run.evaluations) for run in RECORDS)
    assert points.read_text().splitlines()[0].endswith("trained_tokens,accuracy/balanced,accuracy/train")
    assert read_csv(tmp_path) == RECORDS
    assert runs == tmp_path / "runs.csv"


def test_a_write_that_dies_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_record(tmp_path, RECORDS[0])
    before = path.read_text()

    def die(self: Path, text: str, encoding: str) -> None:
        with self.open("w", encoding=encoding) as file:
            file.write(text[: len(text) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", die)
    with pytest.raises(OSError, match="disk full"):
        write_record(tmp_path, RECORDS[0].model_copy(update={"status": "failed", "error": "x"}))
    assert path.read_text() == before
    assert read_record(path) == RECORDS[0]


def test_arrays_of_a_curve() -> None:
    run = record(accuracy=(0.5, 0.6))
    assert run.tests == ("balanced", "train")
    assert run.points("charged_tokens").tolist() == [0.0, 100.0]
    assert run.points("seconds").tolist() == [0.0, 2.0]
    assert run.accuracy("balanced").tolist() == [0.5, 0.6]


def test_shares_of_the_time_by_hand() -> None:
    costs = RunCosts(
        generated_tokens=100, pilot_tokens=25, planning_s=1, prefill_s=2, gradient_norms_s=3, sampling_s=8, update_s=6
    )
    assert costs.allocation_shares == pytest.approx(
        {"pilots": 0.1, "prefill": 0.1, "gradient_norms": 0.15, "planning": 0.05}
    )
    assert all(math.isnan(share) for share in RunCosts().allocation_shares.values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"evaluations": ()}, "at least one evaluation"),
        ({"status": "failed"}, "only a failed run, has an error"),
        ({"error": "late"}, "only a failed run, has an error"),
        ({"arm": "../x"}, "arm"),
        ({"updates_per_batch": 0}, "updates_per_batch"),
        ({"speed": 1}, "Extra inputs"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        record(**fields)  # pyright: ignore[reportArgumentType]


def test_every_evaluation_has_every_test() -> None:
    points = [point.model_dump() for point in record().evaluations]
    del points[1]["accuracy"]["train"]
    with pytest.raises(ValidationError, match="different tests"):
        RunRecord.model_validate(record().model_dump() | {"evaluations": points})


def test_files_that_hold_no_records_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"evaluations\.csv' doesn't exist"):
        read_csv(tmp_path)
    (tmp_path / "0.json").write_text('{"arm": "uniform"')
    with pytest.raises(DataError, match=r"0\.json' is not a record"):
        read_record(tmp_path / "0.json")


def test_a_run_is_recorded_once() -> None:
    with pytest.raises(DataError, match=r"2 records of the run confirmation/arithmetic/base0/.*/uniform/0"):
        check_distinct([RECORDS[0], RECORDS[1], RECORDS[0]])


def test_csv_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    runs, points = write_csv(RECORDS[:2], tmp_path)
    whole = runs.read_text()
    runs.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=r"rows of confirmation/.*/uniform/10, but runs.csv has none"):
        read_csv(tmp_path)
    runs.write_text(whole)
    points.write_text(points.read_text().splitlines(keepends=True)[0])
    with pytest.raises(
        DataError, match=r"have no valid run confirmation/.*/uniform/0: .whole record.: a finished run has at least"
    ):
        read_csv(tmp_path)
