"""The null test on the shipped runs: identical arms seldom differ, and an arm twice as fast is seen as about that."""

from pathlib import Path

import pytest
from compare_records import record

from gvm_ray.exceptions import DataError
from gvm_ray.lab.compare.null import NullResult, simulate
from gvm_ray.lab.compare.records import RunRecord, read_csv

SHIPPED = Path(__file__).parents[2] / "docs" / "results" / "compare" / "main" / "confirmation"


def simulated(records: list[RunRecord], *, num_seeds: int = 5) -> NullResult:
    return simulate(records, test="balanced", num_seeds=num_seeds, num_comparisons=150)


@pytest.fixture(scope="module")
def lists() -> list[RunRecord]:
    return [
        run
        for run in read_csv(SHIPPED)
        if run.setting.family == "list_programs"
        and run.setting.training_set == "mostly_solved"
        and run.arm in ("uniform", "gvm_pool")
    ]


def test_false_alarms_and_power_from_the_shipped_curves(lists: list[RunRecord]) -> None:
    result = simulated(lists)
    assert (result.num_settings, result.num_seeds) == (4, 5)
    same, twice = result.truths
    assert max(*same.area_differs, *same.stretch_differs) <= 0.1
    assert min(same.covered) >= 0.9
    assert same.reported[1] == pytest.approx(1, abs=0.1)
    assert twice.reported[1] == pytest.approx(1.95, abs=0.25)
    assert twice.area_differs[0] >= 0.5
    assert twice.area_differs[1] >= 0.95  # over all settings
    assert twice.covered[0] >= 0.85


def test_more_seeds_see_more(lists: list[RunRecord]) -> None:
    few, many = (simulated(lists, num_seeds=seeds).truths[1] for seeds in (3, 10))
    assert many.area_differs[0] > few.area_differs[0]
    assert many.reported[2] - many.reported[0] < few.reported[2] - few.reported[0]


def test_the_baseline_alone_is_enough(lists: list[RunRecord]) -> None:
    alone = [run for run in lists if run.arm == "uniform"]
    assert max(simulated(alone).truths[0].area_differs) <= 0.1


def test_refuses_what_it_cannot_simulate() -> None:
    flat = [record("uniform", seed, accuracy=(0.5, 0.6, 0.4, 0.5, 0.5)) for seed in range(3)]
    with pytest.raises(DataError, match="no setting has 3 finished runs of 'uniform' that rise"):
        simulated(flat)
    with pytest.raises(DataError, match="2 seed"):
        simulated(flat, num_seeds=2)
