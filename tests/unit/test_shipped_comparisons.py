"""Every shipped comparison plans its runs in both phases, and its tables can be made against any arm that was run."""

import csv
import shutil
from pathlib import Path

import pytest

from gvm_ray.config import load_comparison
from gvm_ray.exceptions import DataError
from gvm_ray.lab.compare.compare import report_against
from gvm_ray.lab.compare.records import read_csv, run_key
from gvm_ray.lab.compare.runs import planned_runs

ROOT = Path(__file__).parents[2]
COMPARE = ROOT / "configs" / "compare"


def test_shipped_records_are_of_the_shipped_settings() -> None:
    found = sorted((ROOT / "docs" / "results" / "compare").glob("*/*/runs.csv"))
    assert len(found) == 6
    for file in found:
        comparison, phase = load_comparison(COMPARE / f"{file.parts[-3]}.toml"), file.parts[-2]
        assert phase in ("exploration", "confirmation")
        assert comparison.results_dir is not None
        assert (COMPARE / comparison.results_dir / phase).resolve() == file.parent
        runs = planned_runs(comparison, folder=COMPARE, phase=phase)
        fingerprints = {run_key(run): run.fingerprint for run in runs}
        records = read_csv(file.parent)
        assert records
        others = [record for record in records if record.fingerprint != fingerprints[record.key]]
        # Recorded with groups of one, which GRPO is refused since: the arm now has min_samples = 2.
        assert {(record.arm, record.setting.algorithm) for record in others} <= {("gvm_online", "grpo")}


def test_arms_that_were_shown_1024_candidates_still_are() -> None:
    runs = planned_runs(load_comparison(COMPARE / "main.toml"), folder=COMPARE, phase="confirmation")
    assert {run.config.candidates_per_step for run in runs if run.config.allocator.type == "gvm_pool"} == {1024}


@pytest.mark.parametrize("path", sorted(COMPARE.glob("*.toml")), ids=lambda path: path.name)
def test_it_plans_its_runs(path: Path) -> None:
    comparison = load_comparison(path)
    assert comparison.name == path.stem
    names = set()
    for phase in ("exploration", "confirmation"):
        runs = planned_runs(comparison, folder=path.parent, phase=phase)
        assert {run.arm for run in runs} == {arm.name for arm in comparison.arms}
        assert {run.seed for run in runs} == set(comparison.seeds(phase))
        names |= {run.fingerprint for run in runs}
    assert len(names) == len(runs) // len(comparison.confirmation_seeds) * len(
        comparison.exploration_seeds + comparison.confirmation_seeds
    )


def test_against_another_arm_each_area_changes_its_sign(tmp_path: Path) -> None:
    shipped = ROOT / "docs" / "results" / "compare" / "rivals" / "confirmation"
    shutil.copytree(shipped, tmp_path / "confirmation")
    comparison = load_comparison(COMPARE / "rivals.toml", [f'results_dir="{tmp_path}"'])
    report_against(comparison, "dps", config_folder=COMPARE, phase="confirmation")
    rows = areas(tmp_path / "confirmation" / "against_dps.csv")
    before = areas(shipped / "comparison.csv")
    settings = {setting for setting, arm in rows}
    assert settings == {setting for setting, arm in before if arm == "dps"}
    for setting in settings:
        assert rows[setting, "dps"] is None
        there, back = rows[setting, "uniform"], before[setting, "dps"]
        assert there is not None
        assert back is not None
        assert there == pytest.approx((-back[0], -back[2], -back[1]))


def test_against_takes_an_arm_that_was_run() -> None:
    comparison = load_comparison(COMPARE / "rivals.toml")
    with pytest.raises(DataError, match="--against nix: no such arm; write one of uniform, uniform_again"):
        report_against(comparison, "nix", config_folder=COMPARE, phase="confirmation")
    with pytest.raises(DataError, match="--against spo_offline: it has no finished run of the confirmation"):
        report_against(comparison, "spo_offline", config_folder=COMPARE, phase="confirmation")


def areas(path: Path) -> dict[tuple[tuple[str, ...], str], tuple[float, ...] | None]:
    """(Setting, arm) -> area over charged tokens on the balanced test and its interval; rows by setting alone."""
    found = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["base"] != "(all)":
                setting = tuple(row[name] for name in ("training_set", "algorithm", "family", "base"))
                cells = [row[f"balanced/charged_tokens/area{end}"] for end in ("", "_low", "_high")]
                found[setting, row["arm"]] = tuple(map(float, cells)) if all(cells) else None
    return found
