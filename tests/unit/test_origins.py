"""What a run and a sample folder are made of is kept with them: another model or other prompts are never mixed in."""

import datetime
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_tiny_model
from tiny_runs import tiny_config

import gvm_ray.prepare
import gvm_ray.run
from gvm_ray.benchmarks.evaluate import checked_model
from gvm_ray.benchmarks.samples import find_benchmarks
from gvm_ray.checkpoints import CheckpointFolder, RestoredCheckpoint, differences
from gvm_ray.config import RunConfig
from gvm_ray.exceptions import CheckpointError, ConfigError
from gvm_ray.lab.compare.slot import warm_key
from gvm_ray.prepare import check_date, prepare, with_date
from gvm_ray.tasks.prompt_set import prompt_digest, prompts_digest
from gvm_ray.types import CheckpointState
from tests.builders import prompt

DATED = "{{ strftime_now('%d %b %Y') }}: {% for m in messages %}{{ m.content }}{% endfor %}"
STARTED = datetime.date(2026, 11, 30)
OVERNIGHT = datetime.date(2026, 12, 1)


class Connected(Exception):
    """Everything was found right, and the cluster would come next."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(build_tiny_model(tmp_path / "model", tied=True))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    write_rows(file)
    return file


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def connect(*_: Any, **__: Any) -> Iterator[str]:
        raise Connected
        yield ""

    monkeypatch.setattr(gvm_ray.run, "connected", connect)


def write_rows(file: Path, *, first_problem: str = "0+1=", first_answer: str = "1") -> None:
    rows = [{"id": "p0", "problem": first_problem, "answer": first_answer}]
    rows += [{"id": f"p{n}", "problem": f"{n}+1=", "answer": str(n + 1)} for n in range(1, 8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_config(tmp_path: Path, model: Path, rows: Path, **changes: Any) -> RunConfig:
    """A run that trains a tiny chat model on the rows."""
    return tiny_config(
        tmp_path / "runs",
        model={"type": "pretrained", "path": str(model)},
        warm_start=None,
        prompts__train={"type": "file", "path": str(rows), "id_field": "id"},
        prompts__eval=None,
        prompts__max_tokens=64,
        prompts__template={"type": "chat"},
        **changes,
    )


def on(monkeypatch: pytest.MonkeyPatch, day: datetime.date) -> None:
    """Let it be this day."""

    class Date(datetime.date):
        @classmethod
        def today(cls) -> datetime.date:
            return day

    class Clock:
        date = Date

    monkeypatch.setattr(gvm_ray.prepare, "datetime", Clock)


def begin(config: RunConfig) -> None:
    """A run up to where its cluster would be started."""
    with pytest.raises(Connected):
        gvm_ray.run.train(config)


def go_on(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for its resume from a checkpoint."""
    state = CheckpointState(step=1, policy_version=1, cursor={}, allocator={}, costs={})
    restored = RestoredCheckpoint(state=state, learner=Path("learner"))
    monkeypatch.setattr(CheckpointFolder, "latest", lambda self: restored)
    gvm_ray.run.train(config, resume=True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda model, rows: (model / "chat_template.jinja").write_text("{{ messages[0].content }}"),
            "model.chat_temp",
        ),
        (lambda model, rows: (model / "generation_config.json").write_text('{"eos_token_id": 40}'), "model.generation"),
        (lambda model, rows: (model / "model.safetensors").write_bytes(swapped(model)), "model.model.safetensors was"),
        (lambda model, rows: write_rows(rows, first_problem="1+0="), "prompts.train was"),
        (lambda model, rows: write_rows(rows, first_answer="7"), "prompts.train was"),
    ],
)
def test_a_run_is_not_resumed_with_another_model_or_other_prompts(
    change: Callable[[Path, Path], object],
    expected: str,
    tmp_path: Path,
    model: Path,
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = run_config(tmp_path, model, rows)
    begin(config)
    with pytest.raises(Connected):
        go_on(config, monkeypatch)
    before = {file: file.read_bytes() for file in (tmp_path / "runs" / "tiny").glob("*.json")}
    change(model, rows)
    with pytest.raises(
        CheckpointError, match=rf"began with another model or other prompts: .*{expected}.*Put the files"
    ):
        go_on(config, monkeypatch)
    assert {file: file.read_bytes() for file in (tmp_path / "runs" / "tiny").glob("*.json")} == before


def swapped(model: Path) -> bytes:
    """The content of another model's weights file, as many bytes."""
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-4:] = bytes(byte ^ 1 for byte in content[-4:])
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "message"),
    [("config.json", "is damaged .* can't know the run's settings"), ("origins.json", "isn't what the run wrote")],
)
@pytest.mark.parametrize("content", ["", '{"model": {', "[1]"])
def test_a_damaged_record_is_named(
    name: str, message: str, content: str, tmp_path: Path, model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(tmp_path, model, rows)
    begin(config)
    (tmp_path / "runs" / "tiny" / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{name}' {message}"):
        go_on(config, monkeypatch)


def test_a_run_that_begins_anew_may_have_another_model(tmp_path: Path, model: Path, rows: Path) -> None:
    config = run_config(tmp_path, model, rows)
    begin(config)
    (model / "generation_config.json").write_text('{"eos_token_id": 40}')
    with pytest.raises(CheckpointError, match=r"model.generation_config.json was .* or start over with --overwrite"):
        gvm_ray.run.train(config, resume=True)  # without a checkpoint, but its warm start may be done
    begin(config)
    with pytest.raises(Connected):
        gvm_ray.run.train(config, resume=True)


def first_prompt(config: RunConfig, tmp_path: Path) -> str:
    return prepare(config, run_dir=tmp_path).prompts.train[0].text


def test_a_resumed_run_keeps_the_day_that_its_prompts_show(
    tmp_path: Path, model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "chat_template.jinja").write_text(DATED)
    config = run_config(tmp_path, model, rows)
    on(monkeypatch, STARTED)
    begin(config)
    kept = json.loads((tmp_path / "runs" / "tiny" / "config.json").read_text())
    assert kept["prompts"]["template"]["date"] == "2026-11-30"
    on(monkeypatch, OVERNIGHT)
    with pytest.raises(Connected):
        go_on(config, monkeypatch)
    assert json.loads((tmp_path / "runs" / "tiny" / "config.json").read_text()) == kept
    begin(config)  # a new run of the same name shows the new day
    kept = json.loads((tmp_path / "runs" / "tiny" / "config.json").read_text())
    assert kept["prompts"]["template"]["date"] == "2026-12-01"


def test_the_day_is_fixed_where_prompts_depend_on_it_and_no_setting_names_one(
    tmp_path: Path, model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, OVERNIGHT)
    config = run_config(tmp_path, model, rows)
    assert with_date(config) == config  # this template prints no day
    (model / "chat_template.jinja").write_text(DATED)
    assert first_prompt(with_date(config), tmp_path) == "01 Dec 2026: 0+1="
    assert first_prompt(with_date(config, earlier=STARTED), tmp_path) == "30 Nov 2026: 0+1="
    named = run_config(tmp_path, model, rows, prompts__template__date="2024-07-26")
    assert with_date(named, earlier=STARTED) == named
    assert first_prompt(named, tmp_path) == "26 Jul 2024: 0+1="
    tokenizer = prepare(config, run_dir=tmp_path).tokenizer
    check_date(named, tokenizer)
    with pytest.raises(ConfigError, match=r"prints today's date, .*: prompts.template.date='2026-12-01'"):
        check_date(config, tokenizer)


def test_actors_stay_up_for_another_base_only_if_its_responses_end_alike(
    tmp_path: Path, model: Path, rows: Path
) -> None:
    config = run_config(tmp_path, model, rows)

    def key() -> str:
        return warm_key(config, prepare(config, run_dir=tmp_path))

    first = key()
    (model / "model.safetensors").write_bytes(swapped(model))
    assert key() == first
    (model / "generation_config.json").write_text('{"eos_token_id": 40}')
    assert key() != first


def checked(tmp_path: Path, model: Path, rows: Path, **changes: Any) -> Any:
    """The model with its sample file, as an evaluation finds it before it samples."""
    config = run_config(tmp_path, model, rows, **changes)
    return checked_model(
        "m", str(model), find_benchmarks([str(rows)], folder=None), config=config, folder=tmp_path / "out"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pytorch_model.bin", b"other weights"),
        ("chat_template.jinja", b"{{ messages[0].content }}"),
        ("additional_chat_templates/rag.jinja", b"{{ messages[0].content }}"),
        ("generation_config.json", b'{"eos_token_id": 40}'),
    ],
)
def test_samples_of_a_model_are_not_those_of_its_changed_files(
    name: str, content: bytes, tmp_path: Path, model: Path, rows: Path
) -> None:
    (model / "pytorch_model.bin").write_bytes(b"some weights")
    (model / "additional_chat_templates").mkdir()
    checked(tmp_path, model, rows)
    assert len(checked(tmp_path, model, rows).work["rows"].missing) == 8
    (model / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"drawn otherwise: model\.{name} was .* and is .*another --output"):
        checked(tmp_path, model, rows)


def test_samples_depend_on_the_environment_and_on_the_arguments_of_the_template(
    tmp_path: Path, model: Path, rows: Path
) -> None:
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}{{ thinking }}")
    checked(tmp_path, model, rows)
    with pytest.raises(ConfigError, match=r"environment\.type was 'single_turn' and is 'calculator'"):
        checked(tmp_path, model, rows, environment={"type": "calculator"})
    with pytest.raises(ConfigError, match=r"template\.arguments\.thinking was None and is False"):
        checked(tmp_path, model, rows, prompts__template__arguments={"thinking": False})


def test_an_evaluation_goes_on_with_the_day_of_its_first_samples(
    tmp_path: Path, model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "chat_template.jinja").write_text(DATED)
    on(monkeypatch, STARTED)
    first = checked(tmp_path, model, rows)
    on(monkeypatch, OVERNIGHT)
    again = checked(tmp_path, model, rows)
    texts = {each.work["rows"].prompts[0].text for each in (first, again)}
    assert texts == {"30 Nov 2026: 0+1="}
    with pytest.raises(ConfigError, match=r"template\.date was '2026-11-30' and is '2026-12-01'"):
        checked(tmp_path, model, rows, prompts__template__date="2026-12-01")


def test_prompts_are_told_apart_by_id_text_tokens_and_answer() -> None:
    assert prompt_digest(prompt()) == prompt_digest(prompt())
    others = [prompt("b"), prompt(text="1+2="), prompt(answer="3"), prompt(token_ids=(3, 5)), prompt(text="\ud800")]
    assert len({prompt_digest(each) for each in (prompt(), *others)}) == 6
    assert prompts_digest([prompt(), others[0]]) != prompts_digest([others[0], prompt()])
    assert len(prompts_digest([])) == 16


def test_differences_have_names() -> None:
    before = {"a": {"x": 1, "y": {"z": [1]}}, "b": 2}
    assert differences(before, before) == []
    assert differences(before, {"a": {"x": 1, "y": {"z": [1, 2]}, "w": 3}}) == [
        "a.w was None and is 3",
        "a.y.z was [1] and is [1, 2]",
        "b was 2 and is None",
    ]
