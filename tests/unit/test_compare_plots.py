"""Figures of a comparison are drawn for what there is."""

from pathlib import Path

import pytest
from compare_records import failed, record, setting

from gvm_ray.exceptions import DataError
from gvm_ray.lab.compare.comparison import GENERATED, SECONDS
from gvm_ray.lab.compare.plots import plot_curves, write_plots


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_a_figure_for_each_group_test_and_cost(tmp_path: Path) -> None:
    places = [setting(), setting(base="base1"), setting(algorithm="grpo")]
    arms = ["uniform", "pool", "gvm", "odd"]
    records = [
        record(arm, seed, setting=place) for place in places for arm in arms for seed in range(2 if arm == "odd" else 3)
    ]
    written = write_plots([*records, failed("gone", 0)], tmp_path / "new", highlighted="pool")
    assert {path.name for path in written} == {
        f"confirmation-mostly_solved-{algorithm}-{test}-{cost}.png"
        for algorithm in ("raft++", "grpo")
        for test in ("balanced", "train")
        for cost in ("charged_tokens", "generated_tokens", "updates", "seconds")
    }
    assert all(is_png(path) for path in written)


def test_one_arm_of_one_seed_is_enough(tmp_path: Path) -> None:
    plot_curves([record()], tmp_path / "one.png", test="balanced", cost=GENERATED)
    assert is_png(tmp_path / "one.png")


def test_there_must_be_something_to_draw(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no finished run to plot in none\.png"):
        plot_curves([], tmp_path / "none.png", test="balanced", cost=SECONDS)
    assert write_plots([failed("uniform", 0)], tmp_path) == []
