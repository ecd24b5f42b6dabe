"""The plan of a comparison: its runs, what is refused before any starts, and what makes a run another one."""

import json
from pathlib import Path
from typing import Any

import pytest
from compare_settings import COMPARISON, RUN_TOML

from gvm_ray.config import ComparisonConfig, load_comparison
from gvm_ray.config.lab import Phase
from gvm_ray.config.load import merged
from gvm_ray.exceptions import ConfigError
from gvm_ray.lab.compare.runs import PlannedRun, planned_runs, selected, warnings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.toml").write_text(RUN_TOML)
    return tmp_path


def plan(folder: Path, *, phase: Phase = "exploration", **changes: Any) -> list[PlannedRun]:
    return planned_runs(ComparisonConfig.model_validate(COMPARISON | changes), folder=folder, phase=phase)


def arms(*extra: dict[str, Any]) -> list[dict[str, Any]]:
    return [*COMPARISON["arms"], *extra]


def test_every_combination_is_run_and_arms_stand_side_by_side(folder: Path) -> None:
    runs = plan(folder)
    assert len({run.name for run in runs}) == len(runs) == 2 * 2 * 2 * 2 * 2
    assert [run.name for run in runs[:4]] == [
        f"exploration/sums/a/small/raft/{arm}/{seed}" for seed in (0, 1) for arm in ("uniform", "pool")
    ]
    assert [(run.setting.base, run.setting.algorithm) for run in runs[::8]] == [
        (base, algorithm) for base in "ab" for algorithm in ("raft", "grpo")
    ]
    assert {run.seed for run in plan(folder, phase="confirmation")} == {7, 8, 9}


def test_a_sitting_makes_the_runs_that_match_a_pattern(folder: Path) -> None:
    runs = plan(folder)
    chosen = [run.name for run in selected(runs, ["*/b/*/grpo/pool/*", "sums/a/small/raft/uniform/0"])]
    assert chosen == [
        "exploration/sums/a/small/raft/uniform/0",
        *(f"exploration/sums/b/{size}/grpo/pool/{seed}" for size in ("small", "large") for seed in (0, 1)),
    ]
    assert selected(runs, ["*"]) == runs
    with pytest.raises(ConfigError, match=r"--only pool matches no run.* sums/a/small/raft/uniform/0"):
        selected(runs, ["*", "pool"])


def test_a_run_has_the_settings_of_its_place(folder: Path) -> None:
    runs = {run.name: run for run in plan(folder)}
    run = runs["exploration/sums/b/large/grpo/pool/1"]
    config = run.config
    assert (config.seed, config.token_budget, run.token_budget, config.prefill_price) == (1, 1000, 1000, 0.5)
    assert config.name == "mine"
    assert config.allocator.type == "gvm_pool"  # and no pilot_samples of the family's
    assert (config.algorithm.type, config.algorithm.updates_per_batch) == ("grpo", 3)
    assert config.learner.optimizer.learning_rate == 1e-4
    assert config.prompts.train.model_dump()["size"] == 80
    assert config.model.model_dump()["seed"] == run.base.model.model_dump()["seed"] == 5
    assert run.base.allocator.type == "gvm"
    assert run.base.token_budget is None
    other = runs["exploration/sums/b/large/raft/pool/1"].config
    assert other.learner.optimizer.learning_rate != 1e-4
    assert other.algorithm.updates_per_batch == 2


def test_an_arm_may_run_again_with_other_seeds(folder: Path) -> None:
    again = {"name": "again", "seed_offset": 1000, "set": {"allocator": {"type": "uniform"}}}
    runs = {run.name: run for run in plan(folder, arms=arms(again))}
    first, second = (runs[f"exploration/sums/a/small/raft/{arm}/1"] for arm in ("uniform", "again"))
    assert (first.seed, second.seed) == (1, 1)  # a pair
    assert (first.config.seed, second.config.seed, second.train_test.seed) == (1, 1001, 1001)
    assert first.config.model_copy(update={"seed": 1001}) == second.config
    assert first.fingerprint != second.fingerprint


def test_the_second_test_is_drawn_like_the_training_set(folder: Path) -> None:
    (small,) = [run for run in plan(folder) if run.name == "exploration/sums/a/small/raft/uniform/0"]
    assert small.config.prompts.eval is not None
    assert small.train_test.prompts.eval is not None
    assert small.config.prompts.eval.model_dump()["size"] == 10
    assert small.train_test.prompts.eval.model_dump()["size"] == 20
    assert small.train_test.prompts.train == small.config.prompts.train


def test_phases_may_differ_in_their_tests(folder: Path) -> None:
    phases = {"confirmation": {"prompts": {"eval": {"size": 30}}}}
    sizes = []
    for phase in ("exploration", "confirmation"):
        run = plan(folder, phase=phase, phases=phases)[0]
        assert run.config.prompts.eval is not None
        sizes.append(run.config.prompts.eval.model_dump()["size"])
    assert sizes == [10, 30]


def test_a_fingerprint_is_of_all_that_decides(folder: Path) -> None:
    def fingerprint(**changes: Any) -> str:
        return plan(folder, **changes)[0].fingerprint

    usual = fingerprint()
    assert usual == fingerprint()
    assert len({run.fingerprint for run in plan(folder)}) == 32
    assert usual == fingerprint(
        exploration_seeds=[0], arms=COMPARISON["arms"][:1]
    )  # the other runs are none of its business
    assert usual == fingerprint(runs_dir="elsewhere")
    changed = {
        "budget": fingerprint(token_budget=1001),
        "price": fingerprint(prefill_price=0.6),
        "seed": fingerprint(exploration_seeds=[3]),
        "arm": fingerprint(
            arms=[{"name": "uniform", "set": {"allocator": {"type": "uniform"}, "max_staleness": 1}}],
            baseline="uniform",
        ),
    }
    for name, toml in (
        ("model", RUN_TOML.replace('"scratch"', '"scratch", seed = 9')),
        ("prompts", RUN_TOML.replace("size = 40", "size = 41")),
        ("test", RUN_TOML.replace("size = 10", "size = 11")),
        ("updates", RUN_TOML.replace("updates_per_batch = 2", "updates_per_batch = 4")),
    ):
        (folder / "run.toml").write_text(toml)
        changed[name] = fingerprint()
    (folder / "run.toml").write_text(RUN_TOML)
    family = COMPARISON["families"][0]
    one_set = {**family, "training_sets": [{"name": "small", "test": {"size": 21}}]}
    changed["train test"] = fingerprint(families=[one_set])
    assert usual not in changed.values()
    assert len(set(changed.values())) == len(changed)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"algorithm": {"updates_per_batch": 8}}, r"algorithm\.updates_per_batch \(uniform: 2; pool: 2; greedy: 8\)"),
        ({"token_budget": 2000}, r"token_budget \(uniform: 1000; pool: 1000; greedy: 2000\)"),
        ({"prefill_price": 0.0}, "prefill_price"),
        ({"prompts": {"train": {"size": 4000}}}, "prompts"),
        ({"evaluation": {"every_steps": 1}}, "evaluation"),
        ({"sampling": {"temperature": 0.5}}, "sampling"),
        ({"rewards": {"accept_threshold": 0.1}}, "rewards"),
        ({"model": {"seed": 1}}, "model"),
    ],
)
def test_arms_with_unequal_means_are_refused(folder: Path, change: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=rf"sums/a/small/raft: the arms differ in {what}.*write the same for all"):
        plan(folder, arms=arms({"name": "greedy", "set": change}))


def test_an_arm_that_differs_under_one_algorithm_only_is_found(folder: Path) -> None:
    greedy = {"name": "greedy", "by_algorithm": {"grpo": {"algorithm": {"updates_per_batch": 8}}}}
    with pytest.raises(ConfigError, match=r"sums/a/small/grpo: the arms differ in algorithm.updates_per_batch"):
        plan(folder, arms=arms(greedy))


def test_an_arm_has_runs_with_the_algorithms_it_names_alone(folder: Path) -> None:
    planned = plan(folder, arms=arms({"name": "singles", "algorithms": ["raft"]}))
    assert {run.setting.algorithm for run in planned if run.arm == "singles"} == {"raft"}
    assert [run for run in planned if run.arm != "singles"] == plan(folder)


def test_a_wrong_setting_names_the_run_that_has_it(folder: Path) -> None:
    wrong = {"name": "wrong", "set": {"allocator": {"type": "gvm_pool", "group_sizes": 4}}}
    with pytest.raises(ConfigError, match=r"(?s)sums/a/small/raft/wrong.*group_sizes.*did you mean 'group_size'"):
        plan(folder, arms=arms(wrong))
    with pytest.raises(ConfigError, match=r"(?s)sums/a.*model.*sede.*did you mean 'seed'"):
        plan(folder, families=[{**COMPARISON["families"][0], "bases": [{"name": "a", "set": {"model": {"sede": 1}}}]}])


def test_a_family_without_file_or_test_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml' doesn't exist"):
        plan(folder, families=[{**COMPARISON["families"][0], "config": "nowhere.toml"}])
    (folder / "run.toml").write_text(
        RUN_TOML.replace("[prompts.eval]", "[prompts.train2]").split("[prompts.train2]")[0]
    )
    with pytest.raises(ConfigError, match=r"no \[prompts.eval\], so accuracy can't be measured; add it"):
        plan(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "best"}, "baseline='best' is not an arm; write one of uniform, pool"),
        ({"highlighted": "best"}, "highlighted='best' is not an arm"),
        ({"arms": [*COMPARISON["arms"], COMPARISON["arms"][0]]}, "arms hold 'uniform' more than once"),
        ({"arms": []}, "arms is empty"),
        ({"families": []}, "families is empty"),
        ({"families": [{**COMPARISON["families"][0], "bases": []}]}, "bases of 'sums' is empty"),
        ({"families": [{**COMPARISON["families"][0], "training_sets": []}]}, "training_sets of 'sums' is empty"),
        ({"confirmation_seeds": [1, 2]}, "exploration_seeds and confirmation_seeds hold 1 more than once"),
        (
            {"arms": [{**COMPARISON["arms"][0], "algorithms": ["raft"]}]},
            "the baseline 'uniform' runs only with .*leave out its",
        ),
        ({"arms": [*COMPARISON["arms"], {"name": "none", "algorithms": []}]}, "algorithms"),
        ({"token_budget": 0}, r"token_budget: takes an integer ≥ 1 \(got 0\)"),
        ({"arms": [{"name": "a/b"}], "baseline": "a/b"}, r"arms\.0\.name"),
        ({"num_slot": 3}, "num_slot: unknown setting; did you mean 'num_slots'"),
    ],
)
def test_a_comparisons_file_is_checked_when_it_is_read(folder: Path, changes: dict[str, Any], message: str) -> None:
    path = folder / "arena.toml"
    path.write_text(_toml(COMPARISON | changes))
    with pytest.raises(ConfigError, match=message):
        load_comparison(path)


def test_a_comparisons_file_is_read_with_overrides(folder: Path) -> None:
    path = folder / "arena.toml"
    path.write_text(_toml(COMPARISON))
    assert load_comparison(path) == ComparisonConfig.model_validate(COMPARISON)
    changed = load_comparison(path, ["token_budget=5", "phases.exploration.prompts.eval.size=3"])
    assert changed.token_budget == 5
    assert changed.phases["exploration"] == {"prompts": {"eval": {"size": 3}}}


def _toml(values: dict[str, Any]) -> str:
    """JSON of strings, numbers and lists is TOML; tables are written inline."""

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(key)} = {inline(each)}" for key, each in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(inline, value)) + "]"
        return json.dumps(value)

    return "".join(f"{key} = {inline(value)}\n" for key, value in values.items())


def test_too_few_seeds_are_said_beforehand() -> None:
    comparison = ComparisonConfig.model_validate(COMPARISON)
    (line,) = warnings(comparison, phase="exploration")
    assert "exploration_seeds has 2 seed(s)" in line
    assert warnings(comparison, phase="confirmation") == []


def test_laying_changes_over_values() -> None:
    values = {"a": 1, "t": {"type": "x", "p": 1, "deep": {"q": 1, "r": 2}}, "l": [1, 2]}
    assert merged(values, {}) == values
    assert merged(values, {"a": 2, "l": [3]}) == {**values, "a": 2, "l": [3]}
    assert merged(values, {"t": {"deep": {"q": 5}}})["t"] == {"type": "x", "p": 1, "deep": {"q": 5, "r": 2}}
    assert merged(values, {"t": {"type": "x", "p": 2}})["t"] == {"type": "x", "p": 2, "deep": {"q": 1, "r": 2}}
    assert merged(values, {"t": {"type": "y", "s": 1}})["t"] == {"type": "y", "s": 1}
    assert merged(values, {"new": {"type": "z"}})["new"] == {"type": "z"}
    assert values["t"] == {"type": "x", "p": 1, "deep": {"q": 1, "r": 2}}  # unchanged
