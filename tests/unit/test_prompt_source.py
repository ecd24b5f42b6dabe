"""Sources: every layout that the benchmarks have, and every kind of bad row with its line and field named."""

import json
from pathlib import Path

import pytest

from gvm_ray.config.prompts import FileSourceConfig, HuggingFaceSourceConfig, ReasoningGymSourceConfig
from gvm_ray.exceptions import DataError
from gvm_ray.tasks.prompt_set import load_tasks


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def file_source(path, **settings):
    return FileSourceConfig(path=str(path), **settings)


@pytest.mark.parametrize(
    ("row", "settings", "expected"),
    [
        ({"id": 60, "problem": "p", "solution": "s", "answer": "204"}, {"id_field": "id"}, ("60", "204")),
        ({"id": 0, "question": "p", "answer": 27.0}, {"prompt_field": "question", "id_field": "id"}, ("0", "27")),
        (
            {"unique_id": "test/algebra/7.json", "problem": "p", "solution": "s", "answer": "\\frac12", "level": 2},
            {"id_field": "unique_id", "rationale_field": "solution", "feature_fields": ("level",)},
            ("test/algebra/7.json", "\\frac12"),
        ),
        (
            {"problem": "p", "answer": "It is \\boxed{1.6}.", "idx": 0},
            {"id_field": "idx"},
            ("0", "It is \\boxed{1.6}."),
        ),
        (
            {"id": 1606, "context": None, "problem": "p", "solution": ["s"], "answer": ["2"]},
            {"id_field": "id", "rationale_field": "solution"},
            ("1606", "2"),
        ),
    ],
    ids=["aime24", "amc23", "math500", "minerva_math", "olympiad_bench"],
)
def test_rows_of_benchmarks_load(tmp_path, row, settings, expected):
    """Each as the published file has it; `test_benchmark_files` reads the files themselves, where they are."""
    (task,) = load_tasks(file_source(write_lines(tmp_path / "a.jsonl", row), **settings))
    assert (task.prompt_id, task.answer, task.problem) == (*expected, "p")
    assert task.rationale == ("s" if "rationale_field" in settings else None)
    assert task.features == ({"level": 2} if "feature_fields" in settings else {})


@pytest.mark.parametrize(
    ("answer", "text"),
    [(27.0, "27"), (-3, "-3"), (0.5, "0.5"), (["2"], "2"), ([1, 2.5], "1, 2.5"), ("So \\boxed{1}", "So \\boxed{1}")],
)
def test_answers_become_text(tmp_path, answer, text):
    path = write_lines(tmp_path / "a.jsonl", {"problem": "p", "answer": answer})
    assert load_tasks(file_source(path))[0].answer == text


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"answer": "1"}, "no field 'problem'; set prompt_field to one of its fields: answer"),
        ({"problem": "p", "solution": "1"}, "no field 'answer'; set answer_field to one of its fields: problem, solu"),
        ({"problem": " ", "answer": "1"}, "field 'problem' is str"),
        ({"problem": 3, "answer": "1"}, "field 'problem' is int 3; the problem must be text"),
        ({"problem": "p", "answer": ""}, "field 'answer' is empty"),
        ({"problem": "p", "answer": None}, "field 'answer' is null"),
        ({"problem": "p", "answer": True}, "field 'answer' is bool true"),
        ({"problem": "p", "answer": []}, "field 'answer' is list"),
        ({"problem": "p", "answer": [["1"]]}, "field 'answer' is list"),
        ({"problem": "p", "answer": float("nan")}, "field 'answer' is float NaN"),
        (["p", "1"], "a JSON list, not an object"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, row, complaint):
    path = write_lines(tmp_path / "a.jsonl", {"problem": "p", "answer": "1"}, row)
    with pytest.raises(DataError) as error:
        load_tasks(file_source(path))
    assert f"{path}, line 2: " in str(error.value)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("settings", "row", "complaint"),
    [
        ({"id_field": "id"}, {"id": 1.5}, "field 'id' is float 1.5; an id must be text or a whole number"),
        ({"id_field": "id"}, {}, "set id_field"),
        ({"rationale_field": "solution"}, {"solution": 3}, "field 'solution' is int 3; a rationale must be text"),
        ({"feature_fields": ("level",)}, {}, "no field 'level'; set feature_fields"),
    ],
)
def test_bad_optional_fields_are_named(tmp_path, settings, row, complaint):
    path = write_lines(tmp_path / "a.jsonl", {"problem": "p", "answer": "1", **row})
    with pytest.raises(DataError, match=complaint):
        load_tasks(file_source(path, **settings))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"problem": "p", "answer": "1"}\n{"problem": \n', "line 2: not valid JSON"),
        (b'{"problem": "p\xe9", "answer": "1"}\n', "line 1: byte 14 is not UTF-8"),
        (b"\n \n", "has no rows"),
        (b"", "has no rows"),
    ],
)
def test_files_that_are_not_jsonl(tmp_path, content, complaint):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        load_tasks(file_source(path))


def test_a_byte_order_mark_and_blank_lines_are_no_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"problem": "p\xc3\xa9", "answer": "1"}\n\n{"problem": "q", "answer": "2"}\n')
    assert [task.problem for task in load_tasks(file_source(path))] == ["pé", "q"]


def test_missing_files_folders_and_other_formats(tmp_path):
    with pytest.raises(DataError, match="doesn't exist; write the path"):
        load_tasks(file_source(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match="is a folder"):
        load_tasks(file_source(tmp_path))
    (tmp_path / "a.txt").write_text("problem,answer\n")
    with pytest.raises(DataError, match=r"neither .jsonl nor .parquet nor .csv"):
        load_tasks(file_source(tmp_path / "a.txt"))


def test_csv_files_load_and_name_what_is_wrong(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeffproblem,answer,level\n"1, 2\nor ""3""?",007,x\nq,0.5,\n', encoding="utf-8")
    tasks = load_tasks(file_source(path, feature_fields=("level",)))
    assert [(task.problem, task.answer) for task in tasks] == [('1, 2\nor "3"?', "007"), ("q", "0.5")]
    assert [task.features["level"] for task in tasks] == ["x", ""]
    with pytest.raises(
        DataError, match=r"line 3: no field 'solution'; set answer_field to one of its fields: answer, "
    ):
        load_tasks(file_source(path, answer_field="solution"))
    for content, complaint in (
        (b"problem,answer\np,1\np,1,2\n", "line 3: not as many values as the first line has names \\(2\\)"),
        (b"problem,answer\np,1\np\n", "line 3: not as many values"),
        (b"problem,answer\np,1\nq\xe9,1\n", "not UTF-8"),
        (b'problem,answer\np,1\n"q,1\n', "after line 2: not valid CSV"),
        (b"problem,answer\n", "has no rows"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=complaint):
            load_tasks(file_source(path))


@pytest.mark.parametrize("indent", [None, 2])
def test_json_files_hold_an_object_an_array_or_lines(tmp_path, indent):
    path = tmp_path / "a.json"
    rows = [{"problem": "p", "answer": 1}, {"problem": "q", "answer": 2}]
    path.write_text(json.dumps(rows, indent=indent))
    assert [task.problem for task in load_tasks(file_source(path))] == ["p", "q"]
    path.write_text(json.dumps(rows[0], indent=indent))
    assert [task.problem for task in load_tasks(file_source(path))] == ["p"]
    assert [task.problem for task in load_tasks(file_source(write_lines(path, *rows)))] == ["p", "q"]
    path.write_text(json.dumps([rows[0], {"problem": 3, "answer": 1}], indent=indent))
    with pytest.raises(DataError, match="entry 2: field 'problem' is int 3"):
        load_tasks(file_source(path))


def test_ids_come_from_the_data_or_else_from_the_content(tmp_path):
    rows = [{"problem": "p", "answer": "1", "id": 7}, {"problem": "p", "answer": "2", "id": "x"}]
    path = write_lines(tmp_path / "a.jsonl", *rows)
    assert [task.prompt_id for task in load_tasks(file_source(path, id_field="id"))] == ["7", "x"]
    by_content = [task.prompt_id for task in load_tasks(file_source(path))]
    assert by_content[0] == "948ba18a3b2fa3cb"  # of sha256 over p, a zero byte, 1: the same in every run
    assert by_content[0] != by_content[1]


def test_limit_features_and_rationales(tmp_path):
    rows = [{"problem": f"p{i}", "answer": i, "level": i, "solution": s} for i, s in enumerate([["a", "b"], None, "c"])]
    path = write_lines(tmp_path / "a.jsonl", *rows)
    tasks = load_tasks(file_source(path, rationale_field="solution", feature_fields=("level",)))
    assert [task.rationale for task in tasks] == ["a", None, "c"]
    assert [task.features for task in tasks] == [{"level": 0}, {"level": 1}, {"level": 2}]
    assert len(load_tasks(file_source(path, limit=2))) == 2


def test_parquet_files_load_and_name_what_is_wrong(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"problem": ["p", "q"], "answer": [[1.0], [None]], "other": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert load_tasks(file_source(tmp_path / "a.parquet", limit=1))[0].answer == "1"
    with pytest.raises(DataError, match="row 2: field 'answer' is null"):
        load_tasks(file_source(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match="no field 'question'; set prompt_field to one of its fields: answer, other, p"):
        load_tasks(file_source(tmp_path / "a.parquet", prompt_field="question"))
    (tmp_path / "b.parquet").write_text("not parquet")
    with pytest.raises(DataError, match="is not valid Parquet"):
        load_tasks(file_source(tmp_path / "b.parquet"))


@pytest.fixture
def dataset_cache(tmp_path, monkeypatch):
    """Keeps what `datasets` prepares inside the test's folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def test_a_local_folder_of_data_files_is_a_dataset(tmp_path, dataset_cache):
    folder = tmp_path / "data"
    folder.mkdir()
    write_lines(folder / "train.jsonl", {"problem": "p", "answer": 27.0, "level": 1}, {"problem": "q", "answer": 1.5})
    tasks = load_tasks(HuggingFaceSourceConfig(path=str(folder), feature_fields=("level",)))
    assert [(task.problem, task.answer) for task in tasks] == [("p", "27"), ("q", "1.5")]
    assert tasks[0].features == {"level": 1}
    with pytest.raises(DataError, match="no field 'x'; set answer_field to one of its fields: answer, level, problem"):
        load_tasks(HuggingFaceSourceConfig(path=str(folder), answer_field="x"))
    with pytest.raises(DataError, match="split 'test'"):
        load_tasks(HuggingFaceSourceConfig(path=str(folder), split="test"))


def test_what_save_to_disk_wrote_is_a_dataset(tmp_path, dataset_cache):
    train = dataset_cache.Dataset.from_dict({"problem": ["p", ""], "answer": ["1", "2"]})
    train.save_to_disk(tmp_path / "one")
    dataset_cache.DatasetDict({"train": train, "empty": train.select([])}).save_to_disk(tmp_path / "splits")
    for folder in ("one", "splits"):
        path = str(tmp_path / folder)
        assert load_tasks(HuggingFaceSourceConfig(path=path, limit=1))[0].answer == "1"
        with pytest.raises(DataError, match="split 'train', row 2: field 'problem' is empty"):
            load_tasks(HuggingFaceSourceConfig(path=path))
    with pytest.raises(DataError, match="its splits are train, empty"):
        load_tasks(HuggingFaceSourceConfig(path=str(tmp_path / "splits"), split="dev"))
    with pytest.raises(DataError, match="it has no rows"):
        load_tasks(HuggingFaceSourceConfig(path=str(tmp_path / "splits"), split="empty"))


def test_an_unreachable_dataset_says_what_to_write(tmp_path, dataset_cache):
    with pytest.raises(
        DataError, match=r"can't be loaded.*write a hub id or a local folder.*hf download --repo-type dataset"
    ):
        load_tasks(HuggingFaceSourceConfig(path="owner/nowhere"))


def test_reasoning_gym_tasks_carry_the_entry_that_their_scorer_needs():
    reasoning_gym = pytest.importorskip("reasoning_gym")
    config = ReasoningGymSourceConfig(task="chain_sum", size=5, seed=1, parameters={"min_terms": 2, "max_terms": 2})
    tasks = load_tasks(config)
    assert len(tasks) == 5
    assert tasks == load_tasks(config)
    score = reasoning_gym.get_score_answer_fn("chain_sum")
    for task in tasks:
        entry = task.features["reasoning_gym"]
        assert entry["task"] == "chain_sum"
        assert task.problem == entry["question"]
        assert score(task.answer, entry) == 1.0
        json.dumps(entry)


@pytest.mark.parametrize(
    ("task", "parameters", "complaint"),
    [
        ("chain_summ", {}, "no task 'chain_summ'; did you mean 'chain_sum'"),
        ("chain_sum", {"bogus": 1}, "refuses parameters {'bogus': 1}.*it knows min_terms, max_terms"),
        ("chain_sum", {"min_terms": -1}, "min_terms must be positive"),
        ("chain_sum", {"size": 3}, r"contain \['size'\]; write them beside parameters"),
    ],
)
def test_reasoning_gym_mistakes(task, parameters, complaint):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(DataError, match=complaint):
        load_tasks(ReasoningGymSourceConfig(task=task, size=2, parameters=parameters))


def test_a_misspelt_data_file_is_told_with_what_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"problem": "1 + 1", "answer": "2"}\n')
    with pytest.raises(DataError, match=r"trian\.jsonl' doesn't exist; write .*; did you mean '.*/train\.jsonl'\?"):
        load_tasks(FileSourceConfig(path=str(tmp_path / "trian.jsonl")))
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"there is no folder '.*/trian'; write .*; did you mean '.*/train'\?"):
        load_tasks(HuggingFaceSourceConfig(path=str(tmp_path / "trian")))
