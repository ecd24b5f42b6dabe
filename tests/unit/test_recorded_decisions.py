"""What runs decide is what was recorded; `python -m tests.recorded.decisions` compares to the last digit."""

import json

import pytest

from tests.recorded.decisions import RECORD, cases, decisions, differences

RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))


def test_every_case_is_recorded() -> None:
    assert RECORDED.keys() == cases().keys()


@pytest.mark.parametrize("name", cases())
def test_decisions_are_as_recorded(name: str) -> None:
    present = json.loads(json.dumps(decisions(*cases()[name])))
    assert not list(differences(name, RECORDED[name], present, tolerance=1e-8))  # room for another machine's rounding


def test_differences_are_found_wherever_they_lie() -> None:
    before = {"a": [1, {"b": 2.0}], "c": None}
    assert list(differences("x", before, {"a": [1, {"b": 2.0}], "c": None})) == []
    assert list(differences("x", before, {"a": [1, {"b": 2.5}], "c": None})) == ["x.a[1].b: recorded 2.0, now 2.5"]
    assert list(differences("x", before, {"a": [1], "c": 0})) == [
        "x.a: recorded [1, {'b': 2.0}], now [1]",
        "x.c: recorded None, now 0",
    ]
    assert list(differences("x", 1.0, 1.0 + 1e-9, tolerance=1e-8)) == []
