"""Settings at random: what a TOML file or `--set` can hold is a valid run, or a ConfigError that names the setting."""

import copy
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_ray.config import RunConfig, load_comparison, load_config, load_estimator, parse_config
from gvm_ray.config.lab import ComparisonConfig, EstimatorConfig, PredictionConfig
from gvm_ray.config.load import validated
from gvm_ray.exceptions import ConfigError
from gvm_ray.settings import Settings

pytestmark = pytest.mark.faults

CONFIGS = Path(__file__).parents[2] / "configs"
KINDS: dict[str, type[Settings]] = {
    "arena": RunConfig,
    "compare": ComparisonConfig,
    "estimator": EstimatorConfig,
    "predictor": PredictionConfig,
}
PARTS = ("numina_math", "word_problems")  # folders with parts of runs
SHIPPED: list[tuple[type[Settings], dict[str, Any]]] = [
    (KINDS.get(path.parent.name, RunConfig), tomllib.loads(path.read_text(encoding="utf-8")))
    for path in sorted(CONFIGS.rglob("*.toml"))
    if path.parent.name not in PARTS
]
MINIMAL_TOML = 'name = "t"\n[model]\ntype = "scratch"\n[prompts.train]\ntype = "arithmetic"\n'
FREE = {"set", "phases", "by_algorithm", "test", "parameters", "step_accuracy"}  # tables of names that are not settings

# What pydantic says of tables, types and lists, in its own terms
RAW = re.compile("dictionary|tuple|Tuple|instance of|discriminator|Input tag|Extra inputs|Field required|valid string")

names = st.sampled_from(
    sorted({*RunConfig.model_fields, *ComparisonConfig.model_fields, "type", "path", "levels", "terms"})
)
types = st.sampled_from(
    ["uniform", "gvm", "gvm_pool", "vip", "dapo", "custom", "grpo", "raft", "file", "scratch", "none"]
)
huge = st.sampled_from([2**63, -(2**64), 10**400, 1e308, 5e-324, float("nan"), float("inf")])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | huge | st.text(max_size=20) | types | st.datetimes()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def places(table: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where everything below a table or list lies."""
    for key, below in table.items() if isinstance(table, dict) else enumerate(table):
        yield (*above, key)
        if isinstance(below, dict | list):
            yield from places(below, (*above, key))


def changed(table: dict[str, Any], place: tuple[Any, ...], change: Callable[[Any, Any], object]) -> dict[str, Any]:
    """A copy, with `change(container, key)` made at the place."""
    table = copy.deepcopy(table)
    container: Any = table
    for key in place[:-1]:
        container = container[key]
    change(container, place[-1])
    return table


def refusal(kind: type[Settings], table: dict[str, Any]) -> str:
    """The message with which a table is refused; empty if it is valid. Anything but a ConfigError is raised."""
    message = ""
    try:
        validated(kind, table, origin="x").model_dump_json()  # can be saved
    except ConfigError as error:
        message = str(error)
    message.encode()  # can be printed
    return message


fuzzed = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@fuzzed
@given(kind=st.sampled_from([RunConfig, ComparisonConfig, EstimatorConfig]), table=st.dictionaries(names, values))
def test_random_tables(kind: type[Settings], table: dict[str, Any]) -> None:
    assert refusal(kind, table)  # none has what a run needs


@fuzzed
@given(shipped=st.sampled_from(SHIPPED), data=st.data())
def test_shipped_files_with_random_changes(shipped: tuple[type[Settings], dict[str, Any]], data: st.DataObject) -> None:
    kind, table = shipped
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(list(places(table))))
        value = data.draw(values)
        table = changed(table, place, lambda container, key, value=value: container.__setitem__(key, value))
    refusal(kind, table)


@pytest.mark.parametrize("shipped", SHIPPED, ids=[table["name"] for _, table in SHIPPED])
def test_a_wrong_value_of_any_setting_is_named(shipped: tuple[type[Settings], dict[str, Any]]) -> None:
    kind, table = shipped
    for place in places(table):
        if FREE & set(place):
            continue
        for value in ({"?": [None]}, [None], [{"type": "?"}], {"type": "?"}, {}, [], "?", "", 1, 1.5, True, None):
            message = refusal(
                kind, changed(table, place, lambda container, key, v=value: container.__setitem__(key, v))
            )
            assert not RAW.search(message), (place, value)
            if value == {"?": [None]}:
                setting = next(key for key in reversed(place) if isinstance(key, str))
                assert setting in message, place


@pytest.mark.parametrize("shipped", SHIPPED, ids=[table["name"] for _, table in SHIPPED])
def test_a_missing_setting_has_a_default_or_is_named(shipped: tuple[type[Settings], dict[str, Any]]) -> None:
    kind, table = shipped
    for place in places(table):
        message = refusal(kind, changed(table, place, lambda container, key: container.__delitem__(key)))
        if "required, but not given" in message:
            assert str(place[-1]) in message


@fuzzed
@given(
    load=st.sampled_from([load_config, load_comparison, load_estimator]),
    key=st.lists(names | st.text(max_size=6), min_size=1, max_size=3),
    text=st.text(max_size=30) | types | st.text("[]{}=\"'.0x1\n", max_size=12),
)
def test_random_overrides(
    load: Callable[..., Settings], key: list[str], text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "overridden.toml"
    path.write_text(MINIMAL_TOML)
    message = ""
    try:
        load(path, [f"{'.'.join(key)}={text}"]).model_dump_json()
    except ConfigError as error:
        message = str(error)
    message.encode()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=" + "[" * 20_000, "seed: takes an integer ≥ 0"),
        ("seed=" + "9" * 5000, "seed: "),
        ("seed=0x" + "f" * 5000, "seed: takes a number ≤ 9.22337e+18"),
        ("seed=nan", "seed: takes a finite number"),
        ("num_steps=2020-01-01", "num_steps: takes an integer ≥ 1"),
        ("seed=1\nname='u'", "seed: takes an integer ≥ 0"),
        ("runs_dir=\udcff", "is not UTF-8"),
        ("a..b=1", "not of the form a.b=c"),
        (".=1", "not of the form a.b=c"),
        ("type=gvm", "type: unknown setting"),
        ("model.hidden=3", "hidden: unknown setting; did you mean 'hidden_size'?"),
    ],
)
def test_overrides_that_are_refused(tmp_path: Path, override: str, expected: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL_TOML)
    with pytest.raises(ConfigError) as error:
        load_config(path, [override])
    assert expected in str(error.value)
    assert len(str(error.value)) < 25_000
    str(error.value).encode()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"x = " + b"[" * 20_000, "can't be read (maximum recursion depth"),
        (b"x = " + b"9" * 5000, "can't be read (Exceeds the limit (4300 digits)"),
        (MINIMAL_TOML.encode("utf-16"), "write the path of a TOML file in UTF-8"),
        (bytes(100), "is not valid TOML"),
        (b"x = 2020-13-45", "is not valid TOML"),
        (b"seed = inf\n" + MINIMAL_TOML.encode(), "seed: takes a finite number"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    for load in (load_config, load_comparison, load_estimator):
        with pytest.raises(ConfigError) as error:
            load(path)
        assert str(path) in str(error.value)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert expected in str(error.value)


@pytest.mark.parametrize("path", [".", "x" * 5000, "a\0b"])
def test_paths_that_are_no_files(path: str) -> None:
    with pytest.raises(ConfigError, match=r"can't be read|is a folder"):
        load_config(path)


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({**tomllib.loads(MINIMAL_TOML), "seed": "1" * 10**6})
    assert len(str(error.value)) < 400
