"""Every shipped comparison plans its runs in both phases."""

from pathlib import Path

import pytest

from gvm_ray.config import load_comparison
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
