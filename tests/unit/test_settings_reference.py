"""The settings' reference: complete, with the values, defaults and comments of the classes, and as the page has it."""

from pathlib import Path

import pytest

from gvm_ray.cli import main
from gvm_ray.cli.settings import Section, reference, sections
from gvm_ray.config import RunConfig
from gvm_ray.exceptions import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def section(table: str, kind: str | None = None) -> Section:
    (found,) = (s for s in sections() if table in s.paths and s.type == kind)
    return found


def test_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    assert PAGE.read_text(encoding="utf-8") == capsys.readouterr().out, "gvm-ray settings > docs/configuration.md"


def test_every_setting_of_a_run_is_there() -> None:
    values = {"name": "x", "model": {"type": "scratch"}, "prompts": {"train": {"type": "file", "path": "x"}}}
    config = RunConfig.model_validate(values)
    dumped = {"warm_start": {}, **{k: v for k, v in config.model_dump().items() if v is not None}}
    top = {setting.name for setting in section("").settings}
    tables = {path.split(".")[0] for s in sections() for path in s.paths}
    assert set(dumped) <= top | tables
    for name, value in dumped.items():
        kind = value.get("type") if isinstance(value, dict) else None
        if name in tables and value:
            found = section(name, kind if name in ("model", "allocator", "algorithm", "environment") else None)
            nested = {path.split(".")[-1] for s in sections() for path in s.paths if path.startswith(f"{name}.")}
            assert set(value) - {"type"} <= {setting.name for setting in found.settings} | nested


def test_values_defaults_and_comments() -> None:
    pool = {setting.name: setting for setting in section("allocator", "gvm_pool").settings}
    assert pool["group_size"].values == "integer ≥ 1"
    assert pool["group_size"].default == "`1`"
    assert pool["group_size"].meaning == "a prompt gets no samples, or at least this many"
    assert pool["max_samples"].values == "integer ≥ 1 or none"
    assert pool["sharpness"].meaning == "exponent on the score"  # of the class that it shares with others
    engine = {setting.name: setting for setting in section("engine").settings}
    assert engine["type"].values.startswith('`"auto"`')
    assert engine["in_flight"].meaning.startswith("For samples in flight")  # lines above it
    assert {setting.name: setting.default for setting in section("model", "pretrained").settings}["path"] == "required"
    function = {setting.name: setting.default for setting in section("prompts.train", "function").settings}
    assert (function["parameters"], function["path"]) == ("empty", "required")


# Of these the name says all, or the text of the table.
WITHOUT_WORDS = {"mode", "num_heads", "num_layers", "num_updates", "project", "split", "type"}


def test_settings_have_words_beside_them() -> None:
    assert {setting.name for s in sections() for setting in s.settings if not setting.meaning} == WITHOUT_WORDS


def test_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "learner"]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
    assert titles[:2] == ["## `[learner]`", "## `[learner.optimizer]`"]


def test_one_type_and_one_setting() -> None:
    titles = [line for line in reference("allocator.gvm").splitlines() if line.startswith("#")]
    assert titles == ['## `[allocator]`: `type = "gvm"`']
    rows = [line for line in reference("num_steps").splitlines() if line.startswith("| `")]
    assert rows == ["| `num_steps` | integer ≥ 1 | `100` | each draws a budget of samples and trains on it |"]
    files = [line for line in reference("prompts.train.path").splitlines() if line.startswith("| `")]
    assert len(files) == 3  # of a file, a dataset and a function


def test_a_table_that_is_none_is_named_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"no table or setting 'verl'; the tables are .*allocator"):
        reference("verl")
