"""Prompts from a function that the config names by its path."""

import sys

import pytest

from gvm_ray.config.prompts import FunctionSourceConfig
from gvm_ray.exceptions import ConfigError, DataError
from gvm_ray.tasks.prompt_set import load_tasks

FUNCTIONS = """
ROWS = [{"problem": "p", "answer": 1, "level": 3}, {"problem": "q", "answer": [2, 3.5], "level": 4}]

def listed(): return ROWS

def made(*, num):
    yield from ROWS[:num]

def broken():
    yield ROWS[0]
    raise OSError("no database")

def empty(): return []

def texts(): return ["p"]

def unanswered(): return [*ROWS, {"problem": "r"}]
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """The module `own_source`, in a folder where Python looks."""
    (tmp_path / "own_source.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_source", raising=False)


def test_rows_come_from_a_function(functions):
    tasks = load_tasks(FunctionSourceConfig(path="own_source:listed", feature_fields=("level",)))
    assert [(task.problem, task.answer, task.features) for task in tasks] == [
        ("p", "1", {"level": 3}),
        ("q", "2, 3.5", {"level": 4}),
    ]
    assert len(load_tasks(FunctionSourceConfig(path="own_source:made", parameters={"num": 1}))) == 1
    assert len(load_tasks(FunctionSourceConfig(path="own_source:broken", limit=1))) == 1  # the rest isn't asked for


def test_a_dataset_that_a_function_returns_is_read(functions, monkeypatch):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"problem": ["p"], "answer": ["1"]})
    monkeypatch.setattr("own_source.listed", lambda: dataset)
    assert load_tasks(FunctionSourceConfig(path="own_source:listed"))[0].problem == "p"


@pytest.mark.parametrize(
    ("path", "error", "complaint"),
    [
        ("own_source:nothing", ConfigError, "'own_source:nothing' can't be imported"),
        ("own_source:ROWS", ConfigError, "'own_source:ROWS' is a list; write the path of a function"),
        ("own_source:made", DataError, "with parameters {} raised TypeError after row 0: made() missing"),
        ("own_source:broken", DataError, "raised OSError after row 1: no database"),
        ("own_source:empty", DataError, "'own_source:empty' gave no rows; return at least one"),
        ("own_source:texts", DataError, "'own_source:texts', row 1 is a str; give dicts of field name to value"),
        ("own_source:unanswered", DataError, "'own_source:unanswered', row 3: no field 'answer'; set answer_field to"),
    ],
)
def test_what_is_wrong_with_a_function_of_rows_is_said(functions, path, error, complaint):
    with pytest.raises(error) as raised:
        load_tasks(FunctionSourceConfig(path=path))
    assert complaint in str(raised.value)
