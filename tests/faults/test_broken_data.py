"""Data files as crashes, spreadsheets and other programs leave them: the place and the remedy are named, at once."""

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from gvm_ray.config.prompts import FileSourceConfig, PromptsConfig, TemplateConfig
from gvm_ray.exceptions import DataError, UserError
from gvm_ray.learner.scratch_model import build_character_tokenizer
from gvm_ray.rewards.math_verify import can_parse_answer
from gvm_ray.tasks import load_prompts, prompt_set
from gvm_ray.tasks.prompt_set import load_tasks

pytestmark = pytest.mark.faults

ROW = {"problem": "p", "answer": "1"}


def complaint(path: Path | str, **settings: Any) -> str:
    """What is said of a file that is refused."""
    with pytest.raises(DataError) as error:
        load_tasks(FileSourceConfig(path=str(path), **settings))
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"problem": "pé"}'.encode("latin-1"), "byte 14 is not UTF-8; save the file as UTF-8"),
        (json.dumps(ROW).encode("utf-16"), "holds zero bytes, as UTF-16"),
        (json.dumps(ROW).encode("utf-16-le"), "save it as plain UTF-8"),
        (gzip.compress(json.dumps(ROW).encode(), mtime=0), "compressed files"),
        (bytes(512), "holds zero bytes"),
        (
            b'{"problem": "p\\u0000", "answer": "1"}',
            r"field 'problem' holds the character '\x00' at position 1; remove",
        ),
        (b'{"problem": "\\ud800", "answer": "1"}', r"field 'problem' holds the character '\ud800' at position 0"),
        (b'{"problem": "p", "answer": ["1", "\\udc00"]}', r"field 'answer' holds the character '\udc00'"),
        (b'{"problem": "p", "answer": ' + b"[" * 100_000, "can't be read as JSON (maximum recursion depth"),
        (b'{"problem": "p", "answer": ' + b"9" * 5000 + b"}", "can't be read as JSON (Exceeds the limit (4300 digits)"),
        (b'{"problem": "p", "answer": 1e999}', "field 'answer' is float Infinity"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\n" + content)
    message = complaint(path)
    assert message.startswith(f"{path}, line 2: ")
    assert expected in message


@pytest.mark.parametrize("field", ["id", "rationale"])
def test_no_text_in_other_fields_is_named(tmp_path: Path, field: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**ROW, field: "a\0b"}))
    assert f"line 1: field '{field}' holds the character" in complaint(path, **{f"{field}_field": field})


def test_parquet_cut_short_or_overwritten(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rng = random.Random(0)
    problems = [f"{rng.random()}" for _ in range(200)]
    table = pyarrow.table({"problem": problems, "answer": ["1"] * 200})
    pyarrow.parquet.write_table(table, tmp_path / "whole.parquet", compression="gzip")
    whole = (tmp_path / "whole.parquet").read_bytes()
    short, middle = tmp_path / "short.parquet", tmp_path / "middle.parquet"
    short.write_bytes(whole[: len(whole) // 2])
    middle.write_bytes(whole[:100] + bytes(1000) + whole[1100:])  # its description of itself at the end is whole
    assert "is not valid Parquet" in complaint(short)
    assert "is not valid Parquet" in complaint(middle)


def test_parquet_text_in_another_encoding(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    latin = pyarrow.array(["pé".encode("latin-1")], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"problem": latin, "answer": ["1"]}), tmp_path / "a.parquet")
    assert "with text in UTF-8" in complaint(tmp_path / "a.parquet")


def test_two_fields_of_one_name(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    contents = {
        "a.csv": ("problem,answer,answer\np,1,2\n", ", line 1"),
        "a.jsonl": ('{"problem": "p", "answer": 1, "answer": 2}', ", line 1"),
        "a.json": ('[\n{"problem": "p", "answer": 1, "answer": 2}]', ""),
    }
    for name, (content, place) in contents.items():
        (tmp_path / name).write_text(content)
        expected = f"{tmp_path / name}{place}: there are several fields named 'answer'"
        assert complaint(tmp_path / name).startswith(expected)
    columns = [pyarrow.array(["p"]), pyarrow.array([1]), pyarrow.array([2])]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns, names=["problem", "answer", "answer"]), path)
    assert complaint(path).startswith(f"{path}: there are several fields named 'answer', so it is unclear")
    inner = pyarrow.StructArray.from_arrays(columns[1:], names=["x", "x"])
    pyarrow.parquet.write_table(pyarrow.table([columns[0], inner], names=["problem", "answer"]), path)
    assert "is not valid Parquet after row 0" in complaint(path, answer_field="answer.x")


def test_two_fields_of_one_name_that_nothing_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("problem,answer,x,x,,\np,1,,,,\n")
    assert load_tasks(FileSourceConfig(path=str(path)))[0].answer == "1"


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    folder, circle, pipe = (tmp_path / f"{name}.jsonl" for name in ("folder", "circle", "pipe"))
    folder.mkdir()
    circle.symlink_to(circle)
    os.mkfifo(pipe)  # to open it would wait for a writer
    for path, expected in (
        (folder, "is a folder"),
        (circle, "can't be read ([Errno 40]"),
        (pipe, "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
        ("~nobody-of-this-name/a.jsonl", "doesn't exist"),
        ("a" * 5000, "can't be read ([Errno 36]"),
        ("a\0.jsonl", "can't be read (embedded null byte)"),
    ):
        message = complaint(path)
        assert expected in message
        assert message.endswith("write the path of a .jsonl, .parquet or .csv file")


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user may read every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROW))
    path.chmod(0)
    assert "can't be read ([Errno 13]" in complaint(path)


def test_one_id_for_two_tasks(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"id": 1, **ROW}, {"id": 2, **ROW}, {"id": 1, **ROW}, {"id": "1", "problem": "q", "answer": "1"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = complaint(path, id_field="id")
    assert f"{path}, line 4: field 'id' is str \"1\", the id of another task ({path}, line 1); give each" in message
    path.write_text(json.dumps({"id": 1, **ROW}) + "\n" + json.dumps({"id": 1, **ROW, "answer": "2"}))
    assert "line 2: field 'id'" in complaint(path, id_field="id")


def test_a_prompt_of_a_million_characters_is_counted_and_not_tokenized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"problem": "1+" * 500_000, "answer": "1"}, {"problem": "1+1", "answer": "2"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenized: list[int] = []
    render = prompt_set.render_all

    def spy(tasks: list[Any], *, template: TemplateConfig, tokenizer: Any) -> Any:
        tokenized.extend(len(task.problem) for task in tasks)
        return render(tasks, template=template, tokenizer=tokenizer)

    monkeypatch.setattr(prompt_set, "render_all", spy)
    sets = load_prompts(PromptsConfig(train=FileSourceConfig(path=str(path))), build_character_tokenizer())
    assert [prompt.text for prompt in sets.train] == ["1+1"]
    assert len(sets.report.train.too_long_ids) == 1
    assert tokenized == [3]


def test_a_gold_answer_of_a_million_characters_is_not_parsed() -> None:
    assert can_parse_answer("1" * 300)
    assert not can_parse_answer("1" * 10**6)
    assert can_parse_answer("word " * 200_000 + "\\boxed{1}")  # a whole solution, with a short answer


def test_a_prompt_that_the_tokenizer_knows_nothing_of(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"problem": "😀", "answer": "1"}))
    with pytest.raises(UserError, match=r"prompts.train: prompt '\w+' gives no token.*'😀'"):
        load_prompts(PromptsConfig(train=FileSourceConfig(path=str(path))), build_character_tokenizer())
