"""What a row's fields mean: nested ones by dotted name, problems in several, and numbers as their column has them."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from gvm_ray.config import parse_config
from gvm_ray.config.prompts import FileSourceConfig, FunctionSourceConfig, HuggingFaceSourceConfig
from gvm_ray.exceptions import ConfigError, DataError
from gvm_ray.tasks.prompt_set import load_tasks
from gvm_ray.tasks.rows import Task
from tests.data_files import VERL, write_jsonl, write_parquet

NESTED: dict[str, Any] = {
    "prompt_field": "prompt",
    "answer_field": "reward_model.ground_truth",
    "id_field": "extra_info.index",
    "rationale_field": "extra_info.answer",
    "feature_fields": ("data_source", "extra_info.split"),
}
HERE = "tests.unit.test_row_fields"


def rows() -> list[dict[str, Any]]:
    """Of verl's layout, as a source of prompts."""
    return VERL


def numpy_rows() -> list[dict[str, Any]]:
    """Answers as NumPy's scalars and arrays."""
    answers = [np.float32(1234.56), np.float64(0.5), np.int64(3), np.array([0.1, 2], np.float32), np.str_("x")]
    answers += [np.float16(65504), np.float32(33554436)]
    return [{"problem": f"p{index}", "answer": answer} for index, answer in enumerate(answers)]


def load(path: Path, **settings: Any) -> list[Task]:
    return load_tasks(FileSourceConfig(path=str(path), **settings))


def answers(column: Any, path: Path) -> list[str]:
    """What the values of an Arrow column are as answers of a Parquet file."""
    problems = [f"p{index}" for index in range(len(column))]
    pyarrow.parquet.write_table(pyarrow.table({"problem": problems, "answer": column}), path)
    return [task.answer for task in load(path)]


# --- nested fields ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "huggingface", "function"])
def test_a_dotted_name_is_a_field_in_a_field(tmp_path: Path, kind: str) -> None:
    sources = {
        "parquet": FileSourceConfig(path=str(write_parquet(tmp_path / "a.parquet", VERL)), **NESTED),
        "jsonl": FileSourceConfig(path=str(write_jsonl(tmp_path / "a.jsonl", VERL)), **NESTED),
        "function": FunctionSourceConfig(path=f"{HERE}:rows", **NESTED),
    }
    if kind == "huggingface":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list(VERL).save_to_disk(tmp_path / "saved")
        sources[kind] = HuggingFaceSourceConfig(path=str(tmp_path / "saved"), **NESTED)
    tasks = load_tasks(sources[kind])
    assert [(task.prompt_id, task.problem, task.answer, task.rationale) for task in tasks] == [
        ("0", "How many are 70 and 2?", "72", "70+2=72\n#### 72"),
        ("1", "How many are 1,000 and 234?", "1234", "1000+234=1234\n#### 1,234"),
    ]
    assert tasks[0].features == {"data_source": "openai/gsm8k", "extra_info.split": "train"}


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_missing_nested_field_is_answered_by_those_at_hand(tmp_path: Path, name: str) -> None:
    path = (write_parquet if name.endswith("parquet") else write_jsonl)(tmp_path / name, VERL)
    known = (
        "data_source, extra_info.answer, extra_info.index, extra_info.question, extra_info.split, prompt, "
        "reward_model.ground_truth, reward_model.style"
    )
    with pytest.raises(DataError) as error:
        load(path, **{**NESTED, "answer_field": "reward_model.gold"})
    assert f"no field 'reward_model.gold'; set answer_field to one of its fields: {known}" in str(error.value)
    with pytest.raises(
        DataError, match=r"'reward_model' is dict .*; name a field in it: reward_model.ground_truth, reward_model.style"
    ):
        load(path, **{**NESTED, "answer_field": "reward_model"})


def test_a_field_with_a_dot_beside_a_nested_one_is_listed_once(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"problem": "p", "a.b": 1, "a": {"b": 2, "c": 3}}])
    with pytest.raises(DataError, match=r"set answer_field to one of its fields: a\.b, a\.c, problem$"):
        load(path)


def test_where_a_dot_leads(tmp_path: Path) -> None:
    """A field whose own name has the dot comes first; text with JSON and lists are led into as well."""
    row = {
        "problem": "p",
        "reward.x": "own name",
        "reward": {"x": "nested", "y.z": "half"},
        "info": json.dumps({"gold": {"value": 5}}),
        "choices": [{"text": "first"}, {"text": "second"}],
        "nothing": None,
    }
    for path in (write_jsonl(tmp_path / "a.jsonl", [row]), write_parquet(tmp_path / "a.parquet", [row])):
        for name, answer in (
            ("reward.x", "own name"),
            ("reward.y.z", "half"),
            ("info.gold.value", "5"),
            ("choices.1.text", "second"),
        ):
            assert [task.answer for task in load(path, answer_field=name)] == [answer]
        for name in ("reward.z", "info.gold.x", "choices.2.text", "choices.text", "problem.x"):
            with pytest.raises(DataError, match=f"no field '{name}'; set answer_field to one of its fields: "):
                load(path, answer_field=name)
    with pytest.raises(DataError, match=r"field 'nothing\.at\.all' is null"):
        load(tmp_path / "a.jsonl", answer_field="nothing.at.all")


def test_only_a_chat_of_one_user_message_is_a_problem(tmp_path: Path) -> None:
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}
    for chat, shown in (
        ([system, user], "system, user"),
        ([user, {"role": "assistant", "content": "2"}], "user, assistant"),
        ([{"role": "user", "content": None}], "user"),
    ):
        path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": chat, "answer": 2}])
        with pytest.raises(DataError, match=rf"field 'prompt' is a chat of {shown}, and only one .* prompt.0.content"):
            load(path, prompt_field="prompt")
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": [system, user], "answer": 2}])
    assert load(path, prompt_field="prompt.1.content")[0].problem == "1+1?"
    both = load(path, prompt_field=("prompt.0.content", "prompt.1.content"))
    assert both[0].problem == "Be brief. 1+1?"


# --- a problem in several fields --------------------------------------------------------------------------------------
def test_a_problem_in_several_fields(tmp_path: Path) -> None:
    svamp = [
        {"Body": "A pack costs 76 dollars, with a discount of 25", "Question": "What is paid?", "Answer": 51.0},
        {"Body": "", "Question": " What are 1 and 1?", "Answer": 2.0},
        {"Body": None, "Question": "What is a half?", "Answer": 0.5},
    ]
    path = tmp_path / "SVAMP.json"
    path.write_text(json.dumps(svamp))
    tasks = load(path, prompt_field=["Body", "Question"], answer_field="Answer")
    assert [(task.problem, task.answer) for task in tasks] == [
        ("A pack costs 76 dollars, with a discount of 25 What is paid?", "51"),
        ("What are 1 and 1?", "2"),
        ("What is a half?", "0.5"),
    ]
    for row, complaint in (
        ({"Body": "", "Question": None}, "field 'Body' is empty, field 'Question' is null; the problem must be text"),
        ({"Body": "a", "Question": 3}, "field 'Question' is int 3; the problem must be text"),
        ({"Body": "a"}, "no field 'Question'; set prompt_field to one of its fields: Answer, Body"),
    ):
        path.write_text(json.dumps([{"Answer": 1, **row}]))
        with pytest.raises(DataError, match=complaint):
            load(path, prompt_field=["Body", "Question"], answer_field="Answer")


def test_field_names_in_a_config() -> None:
    values = {"name": "x", "model": {"type": "scratch"}, "prompts": {"train": {"type": "file", "path": "x"}}}
    config = parse_config(values, ['prompts.train.prompt_field=["Body", "Question"]'])
    assert config.prompts.train.prompt_field == ("Body", "Question")  # type: ignore[union-attr]
    assert parse_config(config.model_dump(mode="json")) == config
    assert parse_config(values, ["prompts.train.prompt_field=3"]).prompts.train.prompt_field == "3"  # type: ignore[union-attr]
    for value in ("[]", '["a", 1]'):
        with pytest.raises(ConfigError, match="prompt_field: write the name of a field, or a list of names"):
            parse_config(values, [f"prompts.train.prompt_field={value}"])


# --- numbers and labels -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pyarrow.array([1234.56, 0.1, 1e20, 3], pyarrow.float32()), ["1234.56", "0.1", "1" + "0" * 20, "3"]),
        (pyarrow.array(np.array([0.1, 2.5], np.float16)), ["0.1", "2.5"]),
        (pyarrow.array(np.array([65504, -2049, 0.1], np.float16)), ["65504", "-2048", "0.1"]),
        (pyarrow.array([2.0**24, 123456789.0, 2.0**40], pyarrow.float32()), ["16777216", "123456792", "1099511627776"]),
        (pyarrow.array([[1234.56, 2], [0.3]], pyarrow.list_(pyarrow.float32())), ["1234.56, 2", "0.3"]),
        (pyarrow.array([[0.7]], pyarrow.large_list(pyarrow.float32())), ["0.7"]),
        (pyarrow.array([1234.56, 1e23, 1e-7, -0.0]), ["1234.56", "1" + "0" * 23, "0.0000001", "0"]),
        (
            pyarrow.array([Decimal("12.50"), Decimal("-100.00"), Decimal("0.00")], pyarrow.decimal128(10, 2)),
            ["12.5", "-100", "0"],
        ),
        (
            pyarrow.array([Decimal("1234567890123456789012345678901234.6700")]),
            ["1234567890123456789012345678901234.67"],
        ),
        (pyarrow.array([2**64 - 1], pyarrow.uint64()), ["18446744073709551615"]),
        (pyarrow.array(["a", "a"]).dictionary_encode(), ["a", "a"]),
        (
            pyarrow.array(["504.0", "007", "0.5", "8.00", "v1.0"], pyarrow.large_string()),
            ["504", "007", "0.5", "8.00", "v1.0"],
        ),
    ],
)
def test_numbers_are_written_as_their_column_has_them(tmp_path: Path, column: Any, expected: list[str]) -> None:
    assert answers(column, tmp_path / "a.parquet") == expected


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        (pyarrow.array([float("nan")], pyarrow.float32()), "float NaN"),
        (pyarrow.array([float("-inf")]), "float -Infinity"),
        (pyarrow.array([None], pyarrow.float32()), "null"),
        (pyarrow.array([False]), "bool false"),
        (pyarrow.array([b"1"]), "bytes"),
        (pyarrow.array([0], pyarrow.date32()), 'date "1970-01-01"'),
        (pyarrow.array([[{"a": 1}]]), "list"),
    ],
)
def test_what_is_no_answer_is_named_with_its_row(tmp_path: Path, column: Any, shown: str) -> None:
    with pytest.raises(DataError, match=f"a.parquet, row 1: field 'answer' is {shown}"):
        answers(column, tmp_path / "a.parquet")


def test_floats_of_32_bits_in_structs_and_features(tmp_path: Path) -> None:
    inner = pyarrow.struct([("gold", pyarrow.float32()), ("all", pyarrow.list_(pyarrow.float32()))])
    table = {
        "problem": ["p"],
        "reward": pyarrow.array([{"gold": 1234.56, "all": [0.1, None]}], inner),
        "level": pyarrow.array([2.3], pyarrow.float32()),
    }
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    (task,) = load(tmp_path / "a.parquet", answer_field="reward.gold", feature_fields=("level", "reward"))
    assert task.answer == "1234.56"
    assert task.features == {"level": 2.3, "reward": {"gold": 1234.56, "all": [0.1, None]}}


def test_whole_numbers_that_became_floats_are_ids(tmp_path: Path) -> None:
    """As a column of whole numbers does where one is missing."""
    path = write_parquet(tmp_path / "a.parquet", [{"problem": "p", "answer": "1", "id": 7.0}])
    assert load(path, id_field="id")[0].prompt_id == "7"
    with pytest.raises(DataError, match=r"field 'id' is float 7\.5; an id must be text or a whole number"):
        load(write_parquet(tmp_path / "b.parquet", [{"problem": "p", "answer": "1", "id": 7.5}]), id_field="id")


def test_datasets_give_their_floats_and_the_names_of_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["no", "yes"])
    dataset = datasets.Dataset.from_dict(
        {"problem": ["p"], "answer": [1], "price": [1234.56], "votes": [[0, 1]], "inner": [{"label": 0}]},
        features=datasets.Features(
            {
                "problem": datasets.Value("string"),
                "answer": label,
                "price": datasets.Value("float32"),
                "votes": datasets.List(label),
                "inner": {"label": label},
            }
        ),
    )
    dataset.save_to_disk(tmp_path / "saved")
    dataset.to_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr(f"{HERE}.rows", lambda: dataset)
    sources: list[Any] = [
        lambda **fields: HuggingFaceSourceConfig(path=str(tmp_path / "saved"), **fields),
        lambda **fields: FileSourceConfig(path=str(tmp_path / "a.parquet"), **fields),
        lambda **fields: FunctionSourceConfig(path=f"{HERE}:rows", **fields),
    ]
    for source in sources:
        for field, answer in (("answer", "yes"), ("price", "1234.56"), ("votes", "no, yes"), ("inner.label", "no")):
            assert load_tasks(source(answer_field=field))[0].answer == answer
        assert load_tasks(source(feature_fields=("answer", "price")))[0].features == {"answer": "yes", "price": 1234.56}


def test_a_label_that_is_missing_is_no_answer(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"problem": datasets.Value("string"), "answer": datasets.ClassLabel(names=["no"])})
    datasets.Dataset.from_dict({"problem": ["p"], "answer": [-1]}, features=features).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 1: field 'answer' is null"):
        load(tmp_path / "a.parquet")


def test_numpy_values_of_a_function() -> None:
    tasks = load_tasks(FunctionSourceConfig(path=f"{HERE}:numpy_rows"))
    assert [task.answer for task in tasks] == ["1234.56", "0.5", "3", "0.1, 2", "x", "65504", "33554436"]
