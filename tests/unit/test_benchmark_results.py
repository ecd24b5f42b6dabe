"""Tables of models on benchmarks, against numbers worked out by hand."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from gvm_ray.benchmarks.results import BenchmarkReport, BenchmarkResult, ModelResult, PromptSamples
from gvm_ray.benchmarks.samples import Sample
from gvm_ray.exceptions import SystemFailure

Rewards = Sequence[Sequence[float | None]]


def make_result(rewards: Rewards, *, subjects: Sequence[str] = "", num_too_long: int = 0) -> BenchmarkResult:
    """Prompts p0, p1 ... with these rewards; right ones answer "r", wrong ones "w", and the last of each nothing."""
    prompts = [
        PromptSamples(
            prompt_id=f"p{number}",
            subject=subjects[number] if subjects else None,
            level=str(number % 2) if subjects else None,
            samples=tuple(
                Sample(
                    sample_index=index,
                    reward=reward,
                    answer=None if index == len(row) - 1 else "r" if reward == 1 else "w",
                    num_tokens=10 * (index + 1),
                    finish_reason="length" if index == 0 else "stop",
                )
                for index, reward in enumerate(row)
            ),
        )
        for number, row in enumerate(rewards)
    ]
    return BenchmarkResult.of(prompts, accept_threshold=0.5, num_too_long=num_too_long)


def make_model(name: str, rewards: Mapping[str, Rewards]) -> ModelResult:
    return ModelResult(name=name, model=name, benchmarks={each: make_result(rows) for each, rows in rewards.items()})


ALL, HALF, NONE = [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]


def test_a_benchmark_by_hand() -> None:
    result = make_result([ALL, HALF, NONE, [None, None]], subjects="aabb", num_too_long=2)
    means = {name: each.mean for name, each in result.overall.metrics.items()}
    # The first answers vote alone: right, right, wrong. A prompt without a scored sample is in no mean.
    assert means == pytest.approx({"avg@2": 0.5, "pass@1": 0.5, "pass@2": 2 / 3, "maj@2": 2 / 3})
    assert result.accuracies == {"p0": 1.0, "p1": 0.5, "p2": 0.0}
    assert {name: each.accuracy for name, each in result.subjects.items()} == {"a": 0.75, "b": 0.0}
    assert {name: each.accuracy for name, each in result.levels.items()} == {"0": 0.5, "1": 0.5}
    assert result.subjects["b"].num_prompts == 1
    assert (result.mean_tokens, result.truncated, result.unanswered) == (15.0, 0.5, 0.5)
    assert (result.overall.num_prompts, result.overall.num_unscored, result.num_too_long) == (4, 2, 2)
    with pytest.raises(SystemFailure, match="none of the 2 samples was scored"):
        make_result([[None, None]])


def test_the_averages_give_each_benchmark_the_same_weight() -> None:
    three = {"math500": [ALL] * 9, "minerva_math": [HALF] * 3, "olympiad_bench": [NONE] * 3}
    assert {name: each.value for name, each in make_model("m", three).averages().items()} == {"3 average": 0.5}
    five = three | {"aime24": [NONE] * 3, "amc23": [ALL, NONE, NONE, NONE]}
    averages = make_model("m", five).averages()
    assert {name: each.value for name, each in averages.items()} == pytest.approx(
        {"3 average": 0.5, "5 average": (1 + 0.5 + 0 + 0 + 0.25) / 5}
    )
    assert averages["3 average"].interval == (0.5, 0.5)  # every prompt of a benchmark alike
    low, high = averages["5 average"].interval or (0, 0)
    # Only amc23 varies: its mean of four has the variance 1/16, and 3 degrees of freedom make 3.1824 deviations.
    assert (low, high) == pytest.approx((0.35 - 3.1824 / 20, 0.35 + 3.1824 / 20), abs=1e-4)


def test_other_sets_of_benchmarks_have_their_own_average() -> None:
    two = {"math500": [ALL] * 3, "own": [NONE] * 3}
    assert list(make_model("m", two).averages()) == ["average of 2"]
    assert make_model("m", {"own": [ALL] * 3}).averages() == {}
    few = make_model("m", {"a": [ALL] * 3, "b": [NONE] * 2}).averages()["average of 2"]
    assert (few.value, few.interval) == (0.5, None)


def test_differences_are_paired_over_prompts() -> None:
    # Far apart from prompt to prompt, but the second model is half better on each: no doubt is left.
    first = make_model("first", {"a": [NONE, HALF, HALF, NONE], "b": [[None, None], HALF, HALF, HALF]})
    second = make_model("second", {"a": [HALF, ALL, ALL, HALF], "b": [ALL, HALF, HALF, HALF]})
    differences = second.minus(first)
    assert list(differences) == ["a", "b", "average of 2"]
    assert (differences["a"].value, differences["a"].interval) == (0.5, (0.5, 0.5))
    assert (differences["b"].value, differences["b"].interval) == (0.0, (0.0, 0.0))  # the prompt p0 has no pair
    assert differences["average of 2"].value == 0.25


@pytest.fixture
def report() -> BenchmarkReport:
    better = ModelResult(
        name="better",
        model="org/better",
        benchmarks={"a": make_result([ALL, ALL, HALF], subjects="xxy"), "b": make_result([HALF] * 3)},
    )
    base = ModelResult(
        name="base",
        model="org/base",
        benchmarks={"a": make_result([ALL, HALF, NONE], subjects="xxy"), "b": make_result([HALF] * 3, num_too_long=1)},
    )
    return BenchmarkReport(models=(base, better), settings={"temperature": 1.0})


def test_the_tables_for_people(report: BenchmarkReport) -> None:
    lines = report.markdown().splitlines()
    assert "| model | a | b | average of 2 |" in lines
    assert any(line.startswith("| better | 83.33 [50.00, 100.00] | 50.00 [50.00, 50.00] | 66.67") for line in lines)
    assert "## Minus base, paired over prompts" in lines
    assert any(line.startswith("| better | +33.33 [-38.38, +105.04] | +0.00 [+0.00, +0.00]") for line in lines)
    assert "| subject | prompts | base | better |" in lines
    assert any(line.startswith("| y | 1 | 0.00 [0.00, 0.00] | 50.00") for line in lines)
    assert any(line.startswith("| base | 3 (1 too long) | 50.00 [50.00, 50.00] |") for line in lines)


def test_the_files_for_programs_agree(report: BenchmarkReport, tmp_path: Path) -> None:
    paths = report.write(tmp_path)
    assert [path.name for path in paths] == ["results.json", "results.csv", "results.md", "results.png"]
    values = json.loads(paths[0].read_text())
    assert [model["name"] for model in values["models"]] == ["base", "better"]
    assert values["models"][0]["benchmarks"]["a"]["overall"]["metrics"]["avg@2"]["mean"] == 0.5
    assert values["models"][0]["benchmarks"]["a"]["accuracies"] == {"p0": 1.0, "p1": 0.5, "p2": 0.0}
    assert values["models"][1]["averages"]["average of 2"]["value"] == pytest.approx(2 / 3)
    assert values["differences"]["better"]["b"] == {"value": 0.0, "interval": [0.0, 0.0]}
    with paths[1].open(newline="") as file:
        rows = {(r["model"], r["benchmark"], r["group"], r["value"], r["metric"]): r for r in csv.DictReader(file)}
    assert float(rows["base", "a", "all", "", "avg@2"]["mean"]) == 0.5
    assert float(rows["better", "a", "subject", "y", "avg@2"]["mean"]) == 0.5
    assert float(rows["base", "a", "level", "1", "avg@2"]["mean"]) == 0.5
    assert float(rows["better", "average of 2", "average", "", "avg@2"]["mean"]) == pytest.approx(2 / 3)
    assert float(rows["better", "a", "difference", "", "avg@2 minus base"]["mean"]) == pytest.approx(1 / 3)
    assert paths[3].read_bytes().startswith(b"\x89PNG")
    assert paths[3].stat().st_size > 5000


def test_one_model_has_no_differences(report: BenchmarkReport) -> None:
    alone = BenchmarkReport(models=report.models[:1], settings={})
    assert alone.differences() == {}
    assert "Minus" not in alone.markdown()
