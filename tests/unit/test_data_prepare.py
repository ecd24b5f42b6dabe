"""`gvm-ray data prepare` from raw files to prompts: what is written, that it is repeatable, and every refusal."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from gvm_ray.cli import main
from gvm_ray.config.prompts import FileSourceConfig, PromptsConfig
from gvm_ray.learner.scratch_model import build_character_tokenizer
from gvm_ray.tasks import load_prompts
from gvm_ray.tasks.prompt_set import load_tasks
from tests.data_files import GSM8K, MATH, numina, prepared, reasons, write_jsonl
from tests.tiny_models import build_tiny_model

LONG = "In a far country there are ten towns and every two of them have a road"


def raw(folder: Path) -> Path:
    """One row for each reason to drop one, in their order, and two to keep."""
    rows = [
        numina("1+1=?", "\\boxed{2}"),
        {**numina("", "\\boxed{1}")},
        numina("Prove it.", "Done."),
        numina("An arc?", "\\boxed{np.arcsin(10/13)}"),
        numina("1+1=?", "\\boxed{2}"),
        numina("$1 + 1$ = ?", "\\boxed{3}"),
        numina(f"{LONG}. How many roads?", "\\boxed{45}"),
        numina("1" + "+1" * 50 + "=?", "\\boxed{51}"),
        numina("2+2=?", "\\boxed{4}"),
    ]
    return write_jsonl(folder / "raw.jsonl", rows)


def command(*arguments: object) -> int:
    return main(["data", "prepare", *map(str, arguments)])


def test_every_reason_for_dropping_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = raw(tmp_path), tmp_path / "out" / "train.parquet"
    evaluation = write_jsonl(tmp_path / "eval.jsonl", [{"question": f"{LONG}. Why?", "answer": 1}])
    model = build_tiny_model(tmp_path / "model", tied=True)
    options = ["--output", output, "--decontaminate", evaluation, "--tokenizer", model, "--max-tokens", 80]
    assert command(source, *options) == 0
    rows = pyarrow.parquet.read_table(output).to_pylist()
    assert [row["problem"] for row in rows] == ["1+1=?", "2+2=?"]
    assert list(rows[0]) == ["prompt_id", "problem", "answer", "source", "rationale"]
    report = json.loads((tmp_path / "out" / "train.report.json").read_text())
    assert [(row["where"], row["reason"]) for row in report["dropped"]] == [
        (f"{source}, line 2", "bad_row"),
        (f"{source}, line 3", "no_answer"),
        (f"{source}, line 4", "unverified"),
        (f"{source}, line 5", "duplicate"),
        (f"{source}, line 6", "near_duplicate"),
        (f"{source}, line 7", "contaminated"),
        (f"{source}, line 8", "too_long"),
    ]
    assert (report["num_read"], report["num_kept"]) == (9, 2)
    assert report["dropped"][5]["detail"].startswith(f"13 words of {evaluation}, line 1: in a far country")
    assert report["options"]["max_tokens"] == 80
    assert report["versions"]["math-verify"]
    printed = capsys.readouterr().out
    assert printed.startswith(f"{output}: 2 of 9 problems\n  2  kept     olympiads\n  1  dropped  bad_row: ")
    assert len(printed.splitlines()) == 10
    assert {path.name for path in output.parent.iterdir()} == {"train.parquet", "train.report.json"}


def test_unverified_answers_may_be_kept_and_are_still_listed(tmp_path: Path) -> None:
    rows, report = prepared(tmp_path / "out.parquet", raw(tmp_path), verify=True, keep_unverified=True)
    assert "np.arcsin(10/13)" in [row["answer"] for row in rows]
    assert [row.where.rsplit(" ", 1)[1] for row in report.kept_unverified] == ["4"]
    assert "kept anyway" in report.table()
    assert ("raw.jsonl, line 4", "unverified") not in reasons(report)


def test_of_two_copies_the_one_with_a_usable_answer_stays(tmp_path: Path) -> None:
    copies = [numina("Which?", "\\boxed{np.arcsin(10/13)}"), numina("Which?", "\\boxed{5}")]
    rows, _ = prepared(tmp_path / "out.parquet", write_jsonl(tmp_path / "a.jsonl", copies), verify=True)
    assert [row["answer"] for row in rows] == ["5"]


def test_a_second_call_has_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [write_jsonl(tmp_path / "g.jsonl", GSM8K), write_jsonl(tmp_path / "m.jsonl", MATH)]
    output = tmp_path / "train.parquet"
    arguments = [*sources, "--no-verify", "--output", output]
    assert command(*arguments) == 0
    first, written = output.read_bytes(), output.stat().st_mtime_ns
    assert "nothing to do" not in capsys.readouterr().out
    assert command(*arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert output.stat().st_mtime_ns == written
    assert command(*arguments, "--overwrite") == 0
    assert "nothing to do" not in capsys.readouterr().out
    assert output.stat().st_mtime_ns > written
    assert output.read_bytes() == first
    other = tmp_path / "elsewhere" / "other.parquet"
    assert command(*sources, "--no-verify", "--output", other) == 0
    assert other.read_bytes() == first


@pytest.mark.parametrize("change", ["source", "option", "output", "report"])
def test_an_output_made_otherwise_is_not_replaced_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    source, output = write_jsonl(tmp_path / "g.jsonl", GSM8K), tmp_path / "train.parquet"
    arguments: list[object] = [source, "--no-verify", "--output", output]
    assert command(*arguments) == 0
    match change:
        case "source":
            write_jsonl(source, GSM8K[:1])
        case "option":
            arguments += ["--limit", 1]
        case "output":
            output.write_bytes(output.read_bytes() + b"x")
        case "report":
            output.with_suffix(".report.json").write_text("{}")
    before = output.read_bytes()
    assert command(*arguments) == 2
    assert "was made from other sources or with other options" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert command(*arguments, "--overwrite") == 0
    assert command(*arguments) == 0


def test_a_run_reads_the_output_as_it_is(tmp_path: Path) -> None:
    output = tmp_path / "train.parquet"
    rows, _ = prepared(output, write_jsonl(tmp_path / "m.jsonl", MATH))
    tokenizer = build_character_tokenizer()
    sets = load_prompts(PromptsConfig(train=FileSourceConfig(path=str(output))), tokenizer)
    assert [(prompt.prompt_id, prompt.answer) for prompt in sets.train] == [
        (row["prompt_id"], row["answer"]) for row in rows
    ]
    assert sets.report.train.loaded == sets.report.train.kept == 2
    named = FileSourceConfig(
        path=str(output),
        id_field="prompt_id",
        rationale_field="rationale",
        feature_fields=("level", "subject", "source"),
    )
    task = load_tasks(named)[0]
    assert task.rationale == MATH[0]["solution"]
    assert task.features == {"level": 2, "subject": "Algebra", "source": "math"}


def test_a_problem_in_several_fields_from_the_command_line(tmp_path: Path) -> None:
    rows = [
        {"Body": "Ann has 8 pens", "Question": "and gives 3 away. How many are left?", "Answer": 5.0, "Type": "-"},
        {"Body": LONG, "Question": "How many roads?", "Answer": 45.0, "Type": "*"},
    ]
    source = write_jsonl(tmp_path / "raw.jsonl", rows)
    evaluation = write_jsonl(tmp_path / "eval.jsonl", [{"Body": f"{LONG},", "Question": "so what?", "Answer": 1}])
    fields = ["--prompt-fields", "Body", "Question", "--answer-field", "Answer", "--feature-fields", "Type"]
    output = tmp_path / "train.parquet"
    assert command(source, "--output", output, *fields, "--decontaminate", evaluation) == 0
    (row,) = pyarrow.parquet.read_table(output).to_pylist()
    assert (row["problem"], row["answer"], row["Type"]) == (
        "Ann has 8 pens and gives 3 away. How many are left?",
        "5",
        "-",
    )


def test_numbers_too_large_for_a_column_become_text(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [{"problem": "p", "answer": "1", "seed": 2**70}])
    rows, _ = prepared(tmp_path / "a.parquet", source, feature_fields=["seed"])
    assert rows[0]["seed"] == str(2**70)


def test_what_is_prepared_can_be_prepared_again(tmp_path: Path) -> None:
    rows, _ = prepared(tmp_path / "a.parquet", write_jsonl(tmp_path / "n.jsonl", [numina("p", "\\boxed{1}")]))
    again, _ = prepared(tmp_path / "b.parquet", tmp_path / "a.parquet")
    assert again == rows


def test_limit_counts_the_rows_of_all_sources(tmp_path: Path) -> None:
    sources = [write_jsonl(tmp_path / "g.jsonl", GSM8K), write_jsonl(tmp_path / "m.jsonl", MATH)]
    rows, report = prepared(tmp_path / "out.parquet", *sources, limit=3)
    assert report.num_read == len(rows) == 3


def test_a_folder_may_hold_the_output_itself(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "g.jsonl", GSM8K)
    for overwrite in (False, True):
        _, report = prepared(tmp_path / "data" / "all.parquet", tmp_path / "data", overwrite=overwrite)
        assert [read.path for read in report.inputs] == [str(tmp_path / "data" / "g.jsonl")]


def test_an_interrupted_preparation_leaves_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = write_jsonl(tmp_path / "g.jsonl", GSM8K), tmp_path / "out" / "train.parquet"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    with pytest.raises(ValueError, match=r"train.parquet' can't be written \(.*No space left"):
        prepared(output, source)
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["gone.jsonl"], "data file 'gone.jsonl' doesn't exist; write the path of a .jsonl, .parquet or .csv file"),
        (["/gone/train"], "data file '/gone/train' doesn't exist"),
        (["text.txt"], "data file 'text.txt' is neither .jsonl nor .parquet nor .csv"),
        (["empty.jsonl"], "'empty.jsonl' has no rows"),
        (["nothing"], "'nothing' has no data file; write a file, a folder or a glob"),
        (["gone*.jsonl"], "'gone*.jsonl' has no data file"),
        (
            ["nobody/nothing"],
            "there is no file or folder 'nobody/nothing' here, and it can't be loaded as a dataset",
        ),
        (["nobody/nothing"], "hf download --repo-type dataset nobody/nothing --local-dir FOLDER"),
        (
            ["g.jsonl", "--answer-field", "gold"],
            "no field 'gold'; set --answer-field to one of its fields: answer, que",
        ),
        (
            ["g.jsonl", "--layout", "gsm9k"],
            "layout: takes one of 'auto', 'numina_math', 'gsm8k', 'math', 'svamp', 'mawps', 'plain'",
        ),
        (["g.jsonl", "--output", "train.csv"], "output 'train.csv' isn't a .parquet file"),
        (["train.parquet"], "'train.parquet' is both a source and the output"),
        (["g.jsonl", "--decontaminate", "gone.jsonl"], "data file 'gone.jsonl' doesn't exist"),
        (
            ["g.jsonl", "--decontaminate", "odd.jsonl"],
            "odd.jsonl, line 1: field 'problem', to compare with the training",
        ),
        (["g.jsonl", "--tokenizer", "./gone", "--max-tokens", "9"], "write --tokenizer as a folder with config.json"),
        (["g.jsonl", "--max-tokens", "9"], "--max-tokens is of no use without --tokenizer; write both"),
        (["g.jsonl", "--tokenizer", "x"], "--tokenizer is of no use without --max-tokens; write both"),
        (["g.jsonl", "--ngram", "0"], "ngram: takes an integer ≥ 1 (got '0')"),
        (["same.jsonl", "--id-field", "id"], "field 'id' is '1', the id of another problem (same.jsonl, line 1)"),
        (
            ["g.jsonl", "--decontaminate", "g.jsonl"],
            "no problem is left of 2, so nothing is written:\n  2  dropped  cont",
        ),
    ],
)
def test_what_is_wrong_is_named_with_what_to_write(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "g.jsonl", GSM8K)
    write_jsonl(tmp_path / "odd.jsonl", [{"text": "p"}])
    write_jsonl(tmp_path / "same.jsonl", [{"id": 1, "problem": p, "answer": 1} for p in ("p", "q")])
    write_jsonl(tmp_path / "empty.jsonl", [])
    (tmp_path / "text.txt").write_text("p")
    (tmp_path / "nothing").mkdir()
    assert main(["data", "prepare", "--output", "train.parquet", "--no-verify", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert complaint in captured.err
    assert not (tmp_path / "train.parquet").exists()
    assert not list(tmp_path.glob("*.incomplete"))


def test_a_change_of_the_tokenizers_files_is_a_change_of_the_request(tmp_path: Path) -> None:
    source, model = write_jsonl(tmp_path / "g.jsonl", GSM8K), build_tiny_model(tmp_path / "model", tied=True)
    options: dict[str, Any] = {"tokenizer": model, "max_tokens": 500}
    _, report = prepared(tmp_path / "a.parquet", source, **options)
    settings = Path(model) / "tokenizer_config.json"
    settings.write_text(settings.read_text() + "\n")
    _, changed = prepared(tmp_path / "b.parquet", source, **options)
    assert report.request != changed.request
    assert report.sha256 == changed.sha256
