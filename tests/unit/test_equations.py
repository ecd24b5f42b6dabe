"""SVAMP and MAWPS as published: problems in two fields or with placeholders, and equations that become rationales."""

from pathlib import Path
from typing import Any

import pytest

from gvm_ray.data.equations import mawps_row, svamp_row
from gvm_ray.exceptions import DataError
from tests.data_files import prepared, reasons, write_jsonl

DISCOUNT = {
    "ID": "chal-1",
    "Body": "Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars on each pack",
    "Question": "How much do you have to pay to buy each pack?",
    "Equation": "( 76.0 - 25.0 )",
    "Answer": 51.0,
    "Type": "Subtraction",
}
TREES = {
    "ID": "chal-2",
    "Body": "Haley grew 9 trees. After a typhoon 4 died.",
    "Question": "She grew 5 more. How many has she?",
    "Equation": "( ( 9.0 - 4.0 ) + 5.0 )",
    "Answer": "10.0",  # as in copies whose columns are text
    "Type": "Addition",
}
MAWPS_CSV = """\
Question,Numbers,Equation,Answer,Body,Ques
"Bryan 's books : number0 in each of his number1 bookshelves , how many in total ?",56.0 9.0,* number0 number1,504.0,a,b
There are number0 rows of number1 and number2 more . How many ?,2.5 4.0 1.5,+ * number0 number1 number2,11.5,a,b
Half of number0 apples . How many ?,9.0,* number0 0.5,4.0,a,b
"""


def solved(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(row["answer"], row["rationale"], row["num_operations"]) for row in rows]


def test_svamp_as_published(tmp_path: Path) -> None:
    rows, report = prepared(tmp_path / "out.parquet", write_jsonl(tmp_path / "SVAMP.json", [DISCOUNT, TREES]))
    assert rows[0]["problem"] == DISCOUNT["Body"] + ". " + DISCOUNT["Question"]
    assert rows[1]["problem"] == TREES["Body"] + " " + TREES["Question"]
    assert solved(rows) == [("51", r"\boxed{76 - 25}", 1), ("10", r"\boxed{(9 - 4) + 5}", 2)]
    assert {row["source"] for row in rows} == {"svamp"}
    assert not reasons(report)


def test_mawps_as_the_repository_of_svamp_ships_it(tmp_path: Path) -> None:
    source = tmp_path / "train.csv"
    source.write_text(MAWPS_CSV)
    rows, _ = prepared(tmp_path / "out.parquet", source)
    assert [row["problem"] for row in rows] == [
        "Bryan's books: 56 in each of his 9 bookshelves, how many in total?",
        "There are 2.5 rows of 4 and 1.5 more. How many?",
        "Half of 9 apples. How many?",
    ]
    assert solved(rows) == [
        ("504", r"\boxed{56 * 9}", 1),
        ("11.5", r"\boxed{(2.5 * 4) + 1.5}", 2),
        ("4", None, 1),  # the equation gives 4.5: a problem, but nothing to learn from
    ]


def test_rows_that_cannot_be_read_are_dropped_and_named(tmp_path: Path) -> None:
    broken = [{**DISCOUNT, "Equation": "( 76.0 - )"}, {**DISCOUNT, "Body": None}, {**DISCOUNT, "Equation": "76 - 25"}]
    rows, report = prepared(tmp_path / "out.parquet", write_jsonl(tmp_path / "SVAMP.json", [DISCOUNT, *broken]))
    assert len(rows) == 1
    assert reasons(report) == [(f"SVAMP.json, line {line}", "bad_row") for line in (2, 3, 4)]
    with pytest.raises(DataError, match=r"x, line 2: the equation '\( 76.0 - \)' can't be read"):
        svamp_row(broken[0], where="x, line 2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Numbers": "56.0"}, r"Numbers has 1 numbers, too few for"),
        ({"Equation": "* number0 number1 number0"}, r"the equation '\* 56 9 56' can't be read"),
        ({"Equation": "% number0 number1"}, r"can't be read"),
        ({"Numbers": 56.0}, r"field 'Numbers' is 56.0; it must be text"),
    ],
)
def test_what_is_wrong_with_a_row_of_mawps_is_said(changes: dict[str, Any], message: str) -> None:
    row = {"Question": "number0 by number1?", "Numbers": "56.0 9.0", "Equation": "* number0 number1", "Answer": "504.0"}
    assert mawps_row(row, where="x")["rationale"] == r"\boxed{56 * 9}"
    with pytest.raises(DataError, match=message):
        mawps_row({**row, **changes}, where="x")


def test_a_division_by_zero_is_no_rationale() -> None:
    assert svamp_row({**DISCOUNT, "Equation": "( 76.0 / 0.0 )"}, where="x")["rationale"] is None
