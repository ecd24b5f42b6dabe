"""Raw data in its public layouts: which field is what, how the answer is taken out, and which files are read."""

import json
from pathlib import Path
from typing import Any

import pytest

from gvm_ray.exceptions import ConfigError, DataError
from tests.data_files import GSM8K, MATH, VERL, numina, prepared, reasons, write_jsonl, write_parquet


def columns(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


def test_gsm8k_answers_come_after_the_mark_without_commas(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "raw.jsonl", [*GSM8K, {"question": "No mark?", "answer": "7"}])
    rows, report = prepared(tmp_path / "out.parquet", source)
    assert columns(rows, "answer", "source") == [("1234", "gsm8k"), ("-2", "gsm8k")]
    assert rows[0]["problem"] == GSM8K[0]["question"]
    assert rows[0]["rationale"] == GSM8K[0]["answer"]
    assert reasons(report) == [("raw.jsonl, line 3", "no_answer")]


@pytest.mark.parametrize(
    ("marked", "answer"),
    [
        ("1,234", "1234"),
        ("-1,000", "-1000"),
        ("$1,234.50", "$1234.50"),
        ("1,000,000", "1000000"),
        ("1,234, 5,678", "1234, 5678"),
        ("12%", "12%"),
        ("1, 2", "1, 2"),
        ("1,2", "1,2"),
        ("1, 234", "1, 234"),
        ("1,23", "1,23"),
        ("1,2,345", "1,2,345"),
        ("1234,567", "1234,567"),
        ("0.5,125", "0.5,125"),
        ("(1,234)", "(1,234)"),
        ("{100,200,300} and 1,000", "{100,200,300} and 1000"),
    ],
)
def test_only_commas_between_thousands_leave_a_marked_answer(tmp_path: Path, marked: str, answer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [{"question": "q", "answer": f"So.\n####{marked}"}])
    rows, _ = prepared(tmp_path / "out.parquet", source)
    assert [row["answer"] for row in rows] == [answer]


def test_math_answers_are_boxed_and_levels_are_numbers(tmp_path: Path) -> None:
    """The original has a file of its own for each problem."""
    for index, row in enumerate(MATH):
        path = tmp_path / "MATH" / "train" / row["type"].lower() / f"{index}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(row, indent=4))
    rows, _ = prepared(tmp_path / "out.parquet", tmp_path / "MATH")
    assert columns(rows, "answer", "subject", "source") == [
        ("\\frac12", "Algebra", "math"),
        ("1024", "Number Theory", "math"),
    ]
    assert [row["level"] for row in rows] == [2, None]


def test_math_500_has_answers_of_its_own(tmp_path: Path) -> None:
    row = {
        "problem": "p?",
        "solution": "s",
        "answer": "\\pi",
        "subject": "Algebra",
        "level": 3,
        "unique_id": "x/1.json",
    }
    rows, _ = prepared(tmp_path / "out.parquet", write_jsonl(tmp_path / "a.jsonl", [row]), id_field="unique_id")
    assert columns(rows, "prompt_id", "answer", "subject", "level", "rationale") == [
        ("x/1.json", "\\pi", "Algebra", 3, "s")
    ]


def test_the_shards_of_numina_math_are_read_in_order(tmp_path: Path) -> None:
    for shard in range(15):
        row = numina(f"Problem {shard}?", f"So \\boxed{{{shard}}}.", source="cn_k12" if shard % 2 else "amc_aime")
        write_parquet(tmp_path / "hub" / "data" / f"train-{shard:05}-of-00015.parquet", [row])
    write_parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", [numina("Test?", "\\boxed{1}")])
    (tmp_path / "hub" / "dataset_infos.json").write_text("{}")
    write_jsonl(tmp_path / "hub" / ".cache" / "train.jsonl", [numina("Hidden?", "\\boxed{1}")])
    rows, report = prepared(tmp_path / "out.parquet", tmp_path / "hub")
    assert [row["answer"] for row in rows] == [str(shard) for shard in range(15)]
    assert report.kept_by_source == {"amc_aime": 8, "cn_k12": 7}
    assert len(report.inputs) == 15
    by_pattern, _ = prepared(tmp_path / "again.parquet", tmp_path / "hub" / "**" / "train-*.parquet")
    assert by_pattern == rows
    test, _ = prepared(tmp_path / "test.parquet", tmp_path / "hub", split="test")
    assert [row["problem"] for row in test] == ["Test?"]
    with pytest.raises(DataError, match="has no split 'dev'; write as --split one of test, train"):
        prepared(tmp_path / "dev.parquet", tmp_path / "hub", split="dev")


def test_numina_math_without_an_answer(tmp_path: Path) -> None:
    rows = [
        numina("Two boxes?", "\\boxed{1} and \\boxed{2}"),
        numina("A proof.", "Clear."),
        numina("An empty box?", "\\boxed{}"),
        {**numina("No solution?", ""), "solution": None},
    ]
    kept, report = prepared(tmp_path / "cot.parquet", write_jsonl(tmp_path / "cot.jsonl", rows))
    assert [row["answer"] for row in kept] == ["1, 2"]
    assert [reason for _, reason in reasons(report)] == ["no_answer", "no_answer", "bad_row"]
    assert "field 'solution' is null" in report.dropped[2].detail
    kept, _ = prepared(tmp_path / "other.parquet", tmp_path / "cot.jsonl", rationale_field="source")
    assert columns(kept, "answer", "rationale") == [
        ("1, 2", "olympiads")
    ]  # a proof is no answer whatever the rationale
    types = {"problem_type": "Algebra", "question_type": "math-word-problem"}
    newer = [numina(f"{a}?", "s", answer=a, **types) for a in ("3", "proof", "notfound", "so \\boxed{4}")]
    kept, report = prepared(tmp_path / "new.parquet", write_jsonl(tmp_path / "new.jsonl", newer))
    assert columns(kept, "answer", "problem_type", "question_type") == [
        ("3", "Algebra", "math-word-problem"),
        ("4", "Algebra", "math-word-problem"),
    ]
    assert len(report.dropped) == 2


def test_other_data_by_its_usual_names_or_by_those_given(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "question": "q1", "problem": "p1", "answer": 27.0, "solution": ["s1", "t1"], "subfield": "Algebra"},
        {"id": 8, "question": "q2", "problem": "p2", "answer": ["1", "2"], "solution": None, "subfield": None},
    ]
    source = write_jsonl(tmp_path / "bench.jsonl", rows)
    kept, _ = prepared(tmp_path / "a.parquet", source)
    assert columns(kept, "problem", "answer", "rationale", "source") == [
        ("p1", "27", "s1", "bench.jsonl"),
        ("p2", "1, 2", None, "bench.jsonl"),
    ]
    fields = {
        "prompt_field": "question",
        "id_field": "id",
        "rationale_field": "subfield",
        "feature_fields": ["problem"],
    }
    kept, _ = prepared(tmp_path / "b.parquet", source, **{**fields, "feature_fields": ["subfield", "problem"]})
    assert columns(kept, "prompt_id", "problem", "rationale", "subfield", "raw_problem") == [
        ("7", "q1", "Algebra", "Algebra", "p1"),
        ("8", "q2", None, None, "p2"),
    ]


def test_a_feature_with_the_name_of_a_column_gets_another(tmp_path: Path) -> None:
    rows = [{"problem": "p", "answer": 1, "source": 3}, {"problem": "q", "answer": 2, "source": "amc"}]
    source = write_jsonl(tmp_path / "a.jsonl", rows)
    kept, _ = prepared(tmp_path / "a.parquet", source, feature_fields=["source", "answer"])
    assert columns(kept, "source", "raw_source", "raw_answer") == [("a.jsonl", "3", 1), ("amc", "amc", 2)]
    with pytest.raises(
        ConfigError, match="feature_fields: the output has 'source' as 'raw_source', which is a feature"
    ):
        prepared(tmp_path / "b.parquet", source, feature_fields=["source", "raw_source"])


def test_nested_fields_and_problems_in_several(tmp_path: Path) -> None:
    """verl's rows, with the columns that they have and the ones that its preprocessing started from."""
    source = write_parquet(tmp_path / "verl.parquet", VERL)
    kept, _ = prepared(
        tmp_path / "a.parquet",
        source,
        prompt_field="prompt",
        answer_field="reward_model.ground_truth",
        id_field="extra_info.index",
        feature_fields=["extra_info.split"],
    )
    assert columns(kept, "prompt_id", "problem", "answer", "extra_info.split") == [
        ("0", "How many are 70 and 2?", "72", "train"),
        ("1", "How many are 1,000 and 234?", "1234", "train"),
    ]
    raw, _ = prepared(
        tmp_path / "b.parquet",
        source,
        layout="gsm8k",
        prompt_field="extra_info.question",
        answer_field="extra_info.answer",
    )
    assert columns(raw, "answer", "rationale") == [
        ("72", "70+2=72\n#### 72"),
        ("1234", "1000+234=1234\n#### 1,234"),
    ]
    with pytest.raises(
        DataError, match=r"no field 'extra_info.gold'; set --answer-field to one of its fields: .*, ext"
    ):
        prepared(tmp_path / "c.parquet", source, answer_field="extra_info.gold")
    svamp = write_jsonl(
        tmp_path / "svamp.jsonl", [{"Body": "Ann has 8 pens.", "Question": "Half of them?", "Answer": 4.0}]
    )
    joined, _ = prepared(tmp_path / "d.parquet", svamp, prompt_field=["Body", "Question"], answer_field="Answer")
    assert columns(joined, "problem", "answer") == [("Ann has 8 pens. Half of them?", "4")]


def test_an_optional_nested_field_may_be_left_out_later(tmp_path: Path) -> None:
    rows = [{"problem": "p", "answer": 1, "info": {"level": 3}}, {"problem": "q", "answer": 2}]
    kept, _ = prepared(tmp_path / "a.parquet", write_jsonl(tmp_path / "a.jsonl", rows), feature_fields=["info.level"])
    assert [row["info.level"] for row in kept] == [3, None]


def test_a_layout_that_is_named_is_taken(tmp_path: Path) -> None:
    source = write_jsonl(
        tmp_path / "a.jsonl", [{"problem": "p", "solution": "\\boxed{1}", "level": "Level 1", "type": "x"}]
    )
    rows, _ = prepared(tmp_path / "out.parquet", source, layout="numina_math")
    assert columns(rows, "answer", "source") == [("1", "a.jsonl")]
    assert "level" not in rows[0]
    with pytest.raises(
        DataError, match=r"line 1 \(layout 'gsm8k'\): no field 'question'; set --prompt-field to one of"
    ):
        prepared(tmp_path / "out.parquet", source, layout="gsm8k", overwrite=True)
    with pytest.raises(
        DataError, match=r"\(layout 'plain'\): no field 'answer'; set --answer-field to one of its fields: l"
    ):
        prepared(tmp_path / "out.parquet", source, layout="plain", overwrite=True)


def test_csv_and_json_sources_go_together(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('problem,answer\n"1, 2 or 3?",3\n')
    (tmp_path / "b.json").write_text(json.dumps([{"problem": "4?", "answer": 4}], indent=2))
    rows, report = prepared(tmp_path / "out.parquet", tmp_path / "a.csv", tmp_path / "b.json")
    assert columns(rows, "problem", "answer", "source") == [("1, 2 or 3?", "3", "a.csv"), ("4?", "4", "b.json")]
    assert report.num_read == 2


def test_columns_of_several_types_become_text(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "a.jsonl", [{"problem": "p", "answer": 1, "tag": 1}, {"problem": "q", "answer": 1}])
    two = write_jsonl(tmp_path / "b.jsonl", [{"problem": "r", "answer": 1, "tag": "x"}])
    rows, _ = prepared(tmp_path / "out.parquet", one, two, feature_fields=["tag"])
    assert [row["tag"] for row in rows] == ["1", None, "x"]


def test_a_subset_of_a_folder_is_a_folder_in_it(tmp_path: Path) -> None:
    for subset, number in (("main", 0), ("socratic", 1)):
        write_parquet(tmp_path / "gsm8k" / subset / "train-00000-of-00001.parquet", [GSM8K[number]])
    rows, _ = prepared(tmp_path / "out.parquet", tmp_path / "gsm8k", subset="socratic")
    assert [row["answer"] for row in rows] == ["-2"]
    with pytest.raises(DataError, match="has no folder 'maine'; write as --subset one of its folders: main, socratic"):
        prepared(tmp_path / "other.parquet", tmp_path / "gsm8k", subset="maine")


def test_datasets_by_id_and_as_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(GSM8K)
    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, *, name: str | None, split: str) -> Any:
        asked.append((path, name, split))
        return dataset

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    by_id, report = prepared(tmp_path / "a.parquet", "openai/gsm8k", subset="main", split="test")
    assert asked == [("openai/gsm8k", "main", "test")]
    assert [row["answer"] for row in by_id] == ["1234", "-2"]
    assert report.inputs[0].path == "openai/gsm8k"
    dataset.save_to_disk(tmp_path / "saved")
    as_saved, _ = prepared(tmp_path / "b.parquet", tmp_path / "saved")
    assert as_saved == by_id
