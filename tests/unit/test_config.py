"""Settings: what loads, what is refused, and whether the message tells what to write instead."""

import json
import re
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.gvm import GVMAllocatorConfig
from gvm_ray.allocators.gvm_pool import GVMPoolAllocatorConfig
from gvm_ray.allocators.predictive import PredictorConfig
from gvm_ray.allocators.uniform import UniformAllocatorConfig
from gvm_ray.config import RunConfig, load_config, parse_config
from gvm_ray.config.prompts import FileSourceConfig
from gvm_ray.config.strategy import KLConfig, RaftPlusPlusConfig
from gvm_ray.exceptions import ConfigError
from tests.builders import prompts

CONFIGS = Path(__file__).parents[2] / "configs"
HISTORY_OF_THREE = PredictorConfig(history_trials=3)
COMPARED = ("quickstart", "gvm_grpo", "raft++", "grpo")


def minimal(**settings: Any) -> dict[str, Any]:
    """The smallest valid run, with top-level settings replaced."""
    return {"name": "t", "model": {"type": "scratch"}, "prompts": {"train": {"type": "arithmetic"}}, **settings}


def refusal(**settings: Any) -> str:
    """The message with which the minimal run is refused when these settings are added."""
    with pytest.raises(ConfigError) as error:
        parse_config(minimal(**settings))
    return str(error.value)


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


MINIMAL_TOML = 'name = "t"\n[model]\ntype = "scratch"\n[prompts.train]\ntype = "arithmetic"\n'


@pytest.mark.parametrize(
    "path", sorted([*CONFIGS.glob("*.toml"), *(CONFIGS / "arena").glob("*.toml")]), ids=lambda path: path.name
)
def test_shipped_config_loads_and_survives_json(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_compared_configs_differ_only_in_allocator_and_algorithm() -> None:
    dumped = [load_config(CONFIGS / f"{name}.toml").model_dump() for name in COMPARED]
    spent = [(values["samples_per_prompt"], values["algorithm"]["updates_per_batch"]) for values in dumped]
    assert spent == [(8, 4)] * 4
    for values in dumped:
        for name in ("name", "allocator", "algorithm"):
            del values[name]
    assert all(values == dumped[0] for values in dumped)


def test_the_default_allocator_has_no_pilots_and_works_on_prompts_it_never_saw() -> None:
    config = parse_config(minimal())
    allocator = AllocationDriver.of(config.allocator, accept_threshold=0.5, seed=0)
    ids = [str(i) for i in range(config.candidates_per_step)]
    states = np.random.default_rng(0).standard_normal((len(ids), 8)).astype(np.float32)
    first = allocator.plan(prompts(ids), step=0, budget=config.samples_per_step, states=states)
    assert not first.is_pilot
    assert first.total == config.samples_per_step == 512
    assert min(first.counts.values()) == 0  # it selects


def test_samples_per_step_is_prompts_times_samples() -> None:
    assert parse_config(minimal(prompts_per_step=3, samples_per_prompt=7)).samples_per_step == 21


def test_number_with_exponent_is_a_number(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL_TOML + "[learner.optimizer]\nlearning_rate = 1e-6\n")
    assert load_config(path).learner.optimizer.learning_rate == 1e-6


def test_override_sets_a_nested_value_and_the_last_one_wins(tmp_path: Path) -> None:
    overrides = ["allocator.type=gvm", "allocator.alpha=0.5", "allocator.alpha=0.25", "runs_dir=elsewhere"]
    config = load_config(write(tmp_path, MINIMAL_TOML), overrides)
    assert isinstance(config.allocator, GVMAllocatorConfig)
    assert config.allocator.alpha == 0.25
    assert config.runs_dir == "elsewhere"


def test_override_of_type_drops_the_fields_of_the_old_type(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL_TOML + '[allocator]\ntype = "gvm"\nalpha = 0.5\n')
    assert load_config(path, ["allocator.type=uniform"]).allocator == UniformAllocatorConfig()


def test_override_with_none_clears_an_optional_value(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL_TOML + "[evaluation]\nnum_prompts = 5\n")
    assert load_config(path, ["evaluation.num_prompts=none"]).evaluation.num_prompts is None


@pytest.mark.parametrize(
    ("override", "expected"), [("seed", "not of the form a.b=c"), ("name.x=1", "'name' is a value, not a table")]
)
def test_malformed_override_is_refused(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config(write(tmp_path, MINIMAL_TOML), [override])


def overridden(folder: Path, *overrides: str, text: str = MINIMAL_TOML) -> RunConfig:
    return load_config(write(folder, text), overrides)


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("allocator.group_size=8", "allocator", GVMPoolAllocatorConfig(group_size=8)),
        ("allocator.predictor.history_trials=3", "allocator", GVMPoolAllocatorConfig(predictor=HISTORY_OF_THREE)),
        ("algorithm.updates_per_batch=4", "algorithm", RaftPlusPlusConfig(updates_per_batch=4)),
        ("algorithm.kl.coefficient=0.1", "algorithm", RaftPlusPlusConfig(kl=KLConfig(coefficient=0.1))),
    ],
)
def test_a_table_without_type_is_of_the_default_s(tmp_path: Path, override: str, place: str, value: object) -> None:
    assert getattr(overridden(tmp_path, override), place) == value
    *tables, last = override.partition("=")[0].split(".")
    in_file = f"{MINIMAL_TOML}[{'.'.join(tables)}]\n{last} = {override.partition('=')[2]}\n"
    assert getattr(overridden(tmp_path, text=in_file), place) == value


def test_the_order_of_type_and_its_settings_does_not_matter(tmp_path: Path) -> None:
    for overrides in (["allocator.type=gvm", "allocator.alpha=0.5"], ["allocator.alpha=0.5", "allocator.type=gvm"]):
        assert overridden(tmp_path, *overrides).allocator == GVMAllocatorConfig(alpha=0.5)
    of_a_file = [
        "prompts.train.path=x",
        "prompts.train.type=file",
        "prompts.train.limit=3",
        'prompts.eval={type="file"}',
    ]
    for overrides in permutations([*of_a_file, "prompts.eval.path=y"]):
        prompts = overridden(tmp_path, *overrides).prompts
        assert prompts.train == FileSourceConfig(path="x", limit=3)
        assert prompts.eval == FileSourceConfig(path="y")
    sized = MINIMAL_TOML + "[allocator]\ngroup_size = 8\n"
    assert overridden(tmp_path, "allocator.type=gvm_pool", text=sized).allocator == GVMPoolAllocatorConfig(group_size=8)
    assert overridden(tmp_path, "allocator.type=uniform", text=sized).allocator == UniformAllocatorConfig()


def test_a_type_that_is_a_setting_like_others_leaves_its_table_alone(tmp_path: Path) -> None:
    text = MINIMAL_TOML + '[engine]\ntype = "vllm"\nnum_generators = 3\n'
    assert overridden(tmp_path, "engine.type=transformers", text=text).engine.num_generators == 3
    (tmp_path / "more.toml").write_text('[engine]\ntype = "transformers"\n')
    assert load_config([write(tmp_path, text), tmp_path / "more.toml"]).engine.num_generators == 3


@pytest.mark.parametrize(
    "text", ["1234", "3.10", "2026-11-30", "1e5", "true", "nan", "0x10", "none", "1_0", "[a]", "07:30", "1#2", "a=b"]
)
def test_text_settings_take_the_text_as_it_is_written(tmp_path: Path, text: str) -> None:
    config = overridden(tmp_path, f"runs_dir={text}", f"prompts.train.step_accuracy.+={0.5}")
    assert (config.runs_dir, config.prompts.train.step_accuracy) == (text, {"+": 0.5})  # type: ignore[union-attr]
    file_source = ("prompts.train.type=file", f"prompts.train.path={text}", f"prompts.train.prompt_field={text}")
    source = overridden(tmp_path, *file_source).prompts.train
    assert (source.path, source.prompt_field) == (text, text)  # type: ignore[union-attr]


def test_quotes_around_a_text_are_not_part_of_it_and_none_clears_it(tmp_path: Path) -> None:
    assert overridden(tmp_path, 'name="1234"').name == "1234"
    assert overridden(tmp_path, "name='a'").name == "a"
    file_source = ("prompts.train.type=file", "prompts.train.path=x", "prompts.train.id_field=none")
    assert overridden(tmp_path, *file_source).prompts.train.id_field is None  # type: ignore[union-attr]
    assert overridden(tmp_path, "allocator.exploration=none").allocator == GVMPoolAllocatorConfig()


@pytest.mark.parametrize(("value", "quoted"), [("1234", '"1234"'), ("3.5", '"3.5"'), ("2026-11-30", '"2026-11-30"')])
def test_a_file_is_told_to_write_quotes(tmp_path: Path, value: str, quoted: str) -> None:
    with pytest.raises(ConfigError, match=f"name: takes text, not .*; write quotes, e.g. name = {quoted}"):
        overridden(tmp_path, text=MINIMAL_TOML.replace('"t"', value))


def test_bytes_that_editors_on_windows_write_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    for content in (b"\xef\xbb\xbf" + MINIMAL_TOML.encode(), MINIMAL_TOML.replace("\n", "\r\n").encode()):
        path.write_bytes(content)
        assert load_config(path).name == "t"
    for encoding in ("utf-16", "utf-16-le"):
        path.write_bytes((b"\xff\xfe" if encoding == "utf-16-le" else b"") + MINIMAL_TOML.encode(encoding))
        with pytest.raises(ConfigError, match=r"it is in UTF-16\); write the path of a TOML file in UTF-8"):
            load_config(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name = run\n", r"at line 1, column 8\), in 'name = run'; text needs quotes"),
        ('name = "a"\nname = "b"\n', r"in 'name = \"b\"'; a table or setting may appear only once in a file"),
        ("[model]\na = 1\n[model]\n", r"in '\[model\]'; a table or setting may appear only once"),
    ],
)
def test_the_line_that_is_no_toml_is_shown(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        overridden(tmp_path, text=text)


def test_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'nowhere\.toml' doesn't exist"):
        load_config("nowhere.toml")


def test_broken_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(write(tmp_path, "name = \n"))


def test_infinite_number_is_refused() -> None:
    assert "learning_rate" in refusal(learner={"optimizer": {"learning_rate": float("inf")}})


def test_settings_are_frozen() -> None:
    config = parse_config(minimal())
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("allocator", "expected"),
    [
        ({"pilot_samples": 8}, "write pilot_samples=4"),
        ({"max_samples": 5}, "write max_samples=8 or more"),
        ({"min_samples": 9}, "write 8 or less"),
        ({"min_samples": 4, "max_samples": 3}, "write max_samples=4 or more"),
        ({"block_steps": 2}, "write max_staleness=1, or reuse_pilots=false"),
        ({"block_steps": 3, "reuse_pilots": False}, "not a multiple of allocator.block_steps=3"),
    ],
)
def test_gvm_setting_that_cannot_be_met_is_refused(allocator: dict[str, Any], expected: str) -> None:
    assert expected in refusal(samples_per_prompt=8, allocator={"type": "gvm", **allocator})


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        ({"mode": "mask", "cap": 1, "floor": 1}, "write e.g. floor=0.5, cap=2.0"),
        ({"cap": 0.5}, "cap: takes a number ≥ 1"),
        ({"floor": 1.5}, "floor: takes a number ≥ 0, ≤ 1"),
        ({"level": "response"}, "takes one of 'token', 'sequence', 'off'"),
    ],
)
def test_importance_bounds_that_would_drop_agreeing_samples_are_refused(
    importance: dict[str, Any], expected: str
) -> None:
    assert expected in refusal(algorithm={"type": "grpo", "importance": importance})


def test_the_engine_s_log_probs_as_old_ones_need_a_correction_and_the_built_in_ratio() -> None:
    algorithm = {"type": "grpo", "old_logprobs": "engine"}
    assert parse_config(minimal(algorithm=algorithm)).algorithm.old_logprobs == "engine"
    message = refusal(algorithm=algorithm | {"importance": {"level": "off"}})
    assert "write importance.level='token' or 'sequence', or old_logprobs='learner'" in message
    assert "loss.path='a:b'" in refusal(algorithm=algorithm | {"loss": {"path": "a:b"}})


def test_floor_is_not_looked_at_unless_masking() -> None:
    parse_config(minimal(algorithm={"type": "grpo", "importance": {"cap": 1, "floor": 1}}))


def test_block_steps_is_one_without_gvm() -> None:
    assert parse_config(minimal()).block_steps == 1
    blocks = minimal(allocator={"type": "gvm", "block_steps": 2}, max_staleness=1)
    assert parse_config(blocks).block_steps == 2


def test_reasoning_gym_reward_needs_its_source() -> None:
    message = refusal(rewards={"terms": [{"type": "reasoning_gym"}]})
    assert "prompts.train.type = 'reasoning_gym'" in message


def test_warm_start_needs_rationales() -> None:
    message = refusal(warm_start={}, prompts={"train": {"type": "file", "path": "x.jsonl"}})
    assert "write prompts.train.rationale_field" in message
    gym = {"train": {"type": "reasoning_gym", "task": "countdown"}}
    assert "write prompts.train.rationale_format" in refusal(warm_start={}, prompts=gym)
    parse_config(minimal(warm_start={}))


def test_model_heads_must_divide() -> None:
    assert "hidden_size=64" in refusal(model={"type": "scratch", "hidden_size": 64, "num_heads": 5})


def test_reward_pattern_must_compile() -> None:
    assert "not a regular expression" in refusal(rewards={"terms": [{"type": "format", "pattern": "("}]})


def test_pass_env_takes_names_and_never_repeats_a_value() -> None:
    assert parse_config(minimal(rewards={"pass_env": ["OPENAI_API_KEY"]})).rewards.pass_env == ("OPENAI_API_KEY",)
    message = refusal(rewards={"pass_env": ["HF_TOKEN", "OPENAI_API_KEY=sk-hidden"]})
    assert "rewards.pass_env takes names of environment variables" in message
    assert "sk-hidden" not in message


def test_no_setting_is_made_to_hold_a_secret() -> None:
    """The resolved settings are written to the run's folder, so a secret is only ever named (`rewards.pass_env`)."""
    names = set(re.findall(r'"([a-z_0-9]+)": ?\{', json.dumps(RunConfig.model_json_schema())))
    assert {"pass_env", "learning_rate", "max_tokens"} <= names
    assert {
        name for name in names if re.search(r"(^|_)(key|token|secret|password|credentials?|headers?)$", name)
    } == set()
