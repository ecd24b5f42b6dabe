"""Records to results and tables: against numbers worked out by hand, and what can't be compared."""

import csv
import math
from pathlib import Path

import pytest
from compare_records import failed, record, setting

from gvm_ray.config.lab import PriceConfig
from gvm_ray.exceptions import DataError
from gvm_ray.lab.compare.comparison import CHARGED, GENERATED, UPDATES, compare_arms, costs_of
from gvm_ray.lab.compare.records import RunCosts, RunRecord
from gvm_ray.lab.compare.tables import ALL, table_rows, write_tables

UNIFORM = (0.5, 0.6, 0.7, 0.7, 0.7)  # reaches its final .7 at 200 tokens
FAST = (0.5, 0.7, 0.8, 0.8, 0.8)  # reaches .7 at 100
SLOW = (0.5, 0.5, 0.6, 0.6, 0.6)  # never does, in 400


def runs(arm: str, accuracy: tuple[float, ...], *, num_seeds: int = 3, **fields: object) -> list[RunRecord]:
    return [record(arm, seed, accuracy=accuracy, **fields) for seed in range(num_seeds)]


def test_arms_by_hand_the_baseline_first_and_the_better_one_next() -> None:
    results = compare_arms([*runs("slow", SLOW), *runs("uniform", UNIFORM), *runs("fast", FAST)])
    assert [result.arm for result in results] == ["uniform", "fast", "slow"]
    uniform, fast, slow = (result.tests["balanced"] for result in results)
    assert uniform.ratio is None
    assert not uniform.by_cost
    assert fast.accuracy == pytest.approx(0.8)
    assert fast.ratio is not None
    assert fast.ratio.value == pytest.approx(2)
    assert (fast.ratio.num_reached, fast.ratio.num_pairs) == (3, 3)
    charged = fast.by_cost["charged_tokens"]
    # (.6 + .75 + .8 + .8) / 4 - (.55 + .65 + .7 + .7) / 4
    assert charged.area.value == pytest.approx(0.35 / 4)
    assert charged.area.interval == pytest.approx((0.35 / 4, 0.35 / 4))
    assert charged.area.excludes(0)
    assert charged.stretch is not None
    assert charged.stretch.value > 1.5
    assert slow.ratio is not None
    assert slow.ratio.value == pytest.approx(0.5)
    assert (slow.ratio.num_reached, slow.ratio.num_pairs) == (0, 3)
    stretch = slow.by_cost["charged_tokens"].stretch
    assert stretch is not None
    assert stretch.value < 0.7
    assert results[0].updates == 16


def test_an_arm_that_is_twice_as_fast_has_a_stretch_of_two() -> None:
    rise = [0.5 + 0.3 * (1 - math.exp(-time / 4)) for time in range(17)]
    faster = [0.5 + 0.3 * (1 - math.exp(-time / 2)) for time in range(17)]
    pool = compare_arms([*runs("uniform", tuple(rise)), *runs("pool", tuple(faster))])[1].tests["balanced"]
    stretch = pool.by_cost["charged_tokens"].stretch
    assert stretch is not None
    assert stretch.value == pytest.approx(2, rel=0.03)  # evaluations are few, and curves linear between them
    assert stretch.interval == pytest.approx((stretch.value, stretch.value))


def test_there_is_no_stretch_where_the_baseline_does_not_rise() -> None:
    uniform = [record("uniform", seed, accuracy=(0.5, *[end] * 3)) for seed, end in enumerate((0.4, 0.5, 0.62))]
    pool = compare_arms([*uniform, *runs("pool", (0.5, 0.7, 0.7, 0.7))])[1].tests["balanced"]
    assert pool.by_cost["charged_tokens"].stretch is None
    assert pool.by_cost["charged_tokens"].area.value > 0


def test_deviation_is_that_of_seeds_within_a_setting() -> None:
    def flat(seed: int, accuracy: float, base: str) -> RunRecord:
        return record("uniform", seed, accuracy=(0.3, *[accuracy] * 3), setting=setting(base=base))

    # .4 and .6 have a variance of .02, .8 and .8 of 0; the two bases' distance doesn't count.
    records = [flat(0, 0.4, "a"), flat(1, 0.6, "a"), flat(0, 0.8, "b"), flat(1, 0.8, "b")]
    test = compare_arms(records)[0].tests["balanced"]
    assert test.accuracy == pytest.approx(0.65)
    assert test.deviation == pytest.approx(math.sqrt(0.01))
    assert math.isnan(compare_arms(records[:1])[0].tests["balanced"].deviation)


def test_runs_are_paired_by_seed_and_setting() -> None:
    # The baseline of seed 1 is the slow one; over unpaired means the ratio would be another.
    records = [record("uniform", 0, accuracy=UNIFORM), record("uniform", 1, accuracy=SLOW)]
    records += [record("pool", 0, accuracy=UNIFORM), record("pool", 1, accuracy=SLOW), record("pool", 2, accuracy=FAST)]
    pool = compare_arms(records)[1]
    test = pool.tests["balanced"]
    assert pool.num_finished == 3
    assert test.ratio is not None
    assert test.ratio.value == pytest.approx(1)
    assert (test.ratio.num_reached, test.ratio.num_pairs) == (2, 2)
    area = test.by_cost["charged_tokens"].area
    assert area.value == pytest.approx(0)
    assert area.interval is None


def test_another_cost_gives_another_ratio() -> None:
    costly = [
        run.model_copy(
            update={
                "evaluations": tuple(
                    p.model_copy(update={"charged_tokens": 2.0 * p.charged_tokens}) for p in run.evaluations
                )
            }
        )
        for run in runs("pool", FAST)
    ]
    records = [*runs("uniform", UNIFORM), *costly]
    for cost, expected in ((CHARGED, 1.0), (GENERATED, 2.0), (UPDATES, 2.0)):
        ratio = compare_arms(records, costs=[cost])[1].tests["balanced"].ratio
        assert ratio is not None
        assert ratio.value == pytest.approx(expected)


def test_seconds_at_given_prices_by_hand() -> None:
    point = record().evaluations[1].model_copy(update={"prefill_tokens": 30, "prompt_tokens": 10, "trained_tokens": 80})
    run = record().model_copy(update={"evaluations": (point,)})
    prices = PriceConfig(decode_us=1e6, prefill_us=0.1e6, learner_us=2e6)
    cost = costs_of([run], {"mine": prices})[-1]
    assert cost.name == "mine_seconds"
    assert cost.spent(run) == pytest.approx([100 + 0.1 * 40 + 2 * 90])
    # Records from before these tokens were counted have no price.
    assert [each.name for each in costs_of([run, record()], {"mine": prices})] == ["charged_tokens", "generated_tokens"]


def test_failed_runs_are_counted_and_left_out() -> None:
    results = compare_arms(
        [*runs("uniform", UNIFORM), *runs("fast", FAST, num_seeds=2), failed("fast", 2), failed("gone", 0)]
    )
    fast, gone = results[1:]
    assert (fast.num_finished, fast.num_failed) == (2, 1)
    assert fast.tests["balanced"].accuracy == pytest.approx(0.8)
    assert fast.tests["balanced"].by_cost["charged_tokens"].area.interval is None
    assert (gone.num_finished, gone.num_failed) == (0, 1)
    assert gone.tests == {}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (runs("pool", FAST, updates_per_batch=32), r"differ in updates per batch: 4 \(uniform\); 32 \(pool\)"),
        (runs("pool", FAST, token_budget=500), r"differ in token budget: 400 \(uniform\); 500 \(pool\)"),
        (runs("pool", (0.5, 0.6), token_budget=400), r"pool/0: .* 100 charged tokens, .* the budget of 400"),
        (runs("uniform", FAST), "2 records of the run"),
    ],
)
def test_unequal_means_are_an_error_and_no_table(other: list[RunRecord], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        write_tables([*runs("uniform", UNIFORM), *other], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_settings_may_differ_in_their_budgets() -> None:
    other = setting(base="base1")
    records = [*runs("uniform", UNIFORM), *runs("uniform", (0.5, 0.6, 0.7), setting=other, updates_per_batch=1)]
    assert compare_arms(records)[0].num_finished == 6


def test_phases_do_not_mix() -> None:
    with pytest.raises(AssertionError, match="can't be mixed"):
        compare_arms([record("uniform", 0), record("uniform", 1, phase="exploration")])


def test_without_a_run_of_the_baseline_the_arms_stand_alone(tmp_path: Path) -> None:
    (fast,) = compare_arms(runs("fast", FAST))
    assert fast.tests["balanced"].accuracy == pytest.approx(0.8)
    assert fast.tests["balanced"].ratio is None
    text = write_tables(runs("fast", FAST), tmp_path)[0].read_text()
    assert "| fast | balanced | 3 | 0.800 ± 0.000 | - | - | - | - | - | - |" in text
    assert "Errors on test" not in text


def test_the_mean_over_settings_is_of_the_arms_that_have_them_all(tmp_path: Path) -> None:
    both = [*runs("uniform", UNIFORM), *runs("pool", FAST)]
    both += [*runs("uniform", SLOW, setting=setting(base="b")), *runs("pool", SLOW, setting=setting(base="b"))]
    records = [*both, *runs("dapo", FAST)]  # whose mean of one setting is no better than pool's of two
    summary = [row.result for row in table_rows(records) if row.family == ALL]
    assert {result.arm: result.num_finished for result in summary} == {"uniform": 6, "pool": 6}
    assert {row.base: row.result.num_finished for row in table_rows(records) if row.result.arm == "dapo"} == {
        "base0": 3
    }
    text = write_tables(records, tmp_path)[0].read_text()
    assert "arithmetic/base0; arms without runs in some settings, listed only by setting: dapo." in text


def test_rows_keep_phases_and_algorithms_apart_and_sum_up_families_and_bases() -> None:
    places = [setting(base="base0"), setting(base="base1"), setting(algorithm="grpo")]
    records = [run for place in places for run in runs("uniform", UNIFORM, setting=place)]
    records += [record("uniform", 7, phase="exploration")]
    rows = table_rows(records)
    assert [(row.phase, row.algorithm, row.base, row.seeds) for row in rows] == [
        ("confirmation", "grpo", ALL, (0, 1, 2)),
        ("confirmation", "grpo", "base0", (0, 1, 2)),
        ("confirmation", "raft++", ALL, (0, 1, 2)),
        ("confirmation", "raft++", "base0", (0, 1, 2)),
        ("confirmation", "raft++", "base1", (0, 1, 2)),
        ("exploration", "raft++", ALL, (7,)),
        ("exploration", "raft++", "base0", (7,)),
    ]
    assert [row.result.num_finished for row in rows] == [3, 3, 6, 3, 3, 1, 1]


def test_markdown_shows_decisions_failures_seeds_and_errors(tmp_path: Path) -> None:
    costs = RunCosts(generated_tokens=400, pilot_tokens=200, planning_s=1, sampling_s=4, update_s=5)
    records = [*runs("uniform", UNIFORM), *runs("fast", FAST, costs=costs), *runs("slow", SLOW), failed("slow", 3)]
    text = write_tables(records, tmp_path / "new")[0].read_text()
    lines = {line.split(" | ")[0]: line for line in text.splitlines() if "| balanced |" in line}
    assert "## mostly_solved, raft++: confirmation (seeds 0, 1, 2, 3)" in text
    assert "| 3 | 0.800 ± 0.000 |" in lines["| fast"]
    assert "| **+0.088 [+0.088, +0.088]** |" in lines["| fast"]
    assert "| 2.00 | 3/3 |" in lines["| fast"]
    assert "| 20.0 / 0.0 / 0.0 / 10.0 % | 16 |" in lines["| fast"]
    assert "| 3 (1 failed) |" in lines["| slow"]
    assert "| 0.50 | 0/3 |" in lines["| slow"]
    assert "- Errors on test balanced: 200 simulated comparisons of 3 paired seeds in the setting." in text
    assert "Recorded with other settings" not in text
    assert r"slow/3 | ActorFailure: the learner \| died at once |" in text


def test_csv_holds_the_same_numbers(tmp_path: Path) -> None:
    records = [*runs("uniform", UNIFORM), *runs("slow", SLOW, num_seeds=2)]
    with write_tables(records, tmp_path)[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["base"], row["arm"]) for row in rows[2:]] == [("base0", "uniform"), ("base0", "slow")]
    slow = rows[3]
    assert float(slow["balanced/accuracy"]) == pytest.approx(0.6)
    assert float(slow["balanced/ratio"]) == pytest.approx(0.5)
    assert (slow["balanced/reached"], slow["balanced/pairs"]) == ("0", "2")
    assert float(slow["balanced/charged_tokens/area"]) < 0
    assert slow["balanced/charged_tokens/area_low"] == "nan"
    assert float(slow["balanced/charged_tokens/stretch"]) < 1
    assert rows[2]["balanced/ratio"] == ""
