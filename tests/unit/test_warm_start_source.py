"""A warm start from a file of its own: checked before the start, learned, and cached for every run that begins so."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from gvm_ray.config import RunConfig, parse_config
from gvm_ray.exceptions import ConfigError
from gvm_ray.lab.estimator.pool import warm_started_path
from gvm_ray.prepare import prepare, report_lines
from tests.data_files import write_jsonl
from tests.learner_cases import build_tiny_model

DEMONSTRATIONS = [
    {"problem": "1+1=", "answer": 2.0, "how": "\\boxed{2}"},
    {"problem": "2+1=", "answer": 3.0, "how": "\\boxed{3}"},
    {"problem": "2+2=", "answer": 4.0, "how": "\\boxed{5}"},  # wrong, and learned all the same
]


def run_config(folder: Path, model: str, **warm_start: Any) -> RunConfig:
    source = {"type": "file", "path": str(folder / "warm.jsonl"), "rationale_field": "how"}
    values = {
        "name": "warm",
        "prompts_per_step": 2,
        "model": {"type": "pretrained", "path": model},
        "prompts": {"train": {"type": "arithmetic", "size": 32}, "max_tokens": 32},
        "sampling": {"max_tokens": 16},
        "engine": {"type": "transformers"},
        "warm_start": {
            "source": source,
            "num_updates": 60,
            "batch_size": 3,
            "num_demonstrations": 6,
            "optimizer": {"learning_rate": 1e-2},
            **warm_start,
        },
    }
    return parse_config(values)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GVM_RAY_CACHE", str(tmp_path / "cache"))
    write_jsonl(tmp_path / "warm.jsonl", DEMONSTRATIONS)
    return build_tiny_model(tmp_path / "model")


def test_it_is_learned_and_cached(tmp_path: Path, model: str) -> None:
    config = run_config(tmp_path, model)
    prepared = prepare(config, run_dir=tmp_path / "run")
    lines = report_lines(prepared)
    assert "warm start: 3 rationales to learn from" in lines
    assert sum("1 don't give the gold answer" in line for line in lines) == 1
    path = warm_started_path(config, prepared, say=lambda _: None)
    causal_lm, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    for row in DEMONSTRATIONS:
        ids = tokenizer(str(row["problem"]), return_tensors="pt")
        output = causal_lm.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(output, skip_special_tokens=True) == row["how"]

    other = config.model_dump(exclude_unset=True)
    other["prompts"]["train"]["size"] = 16  # begins from the same weights
    again = prepare(parse_config(other), run_dir=tmp_path / "other")
    assert (again.base.path, again.base.warm_start_folder, again.rationales) == (path, None, None)
    write_jsonl(tmp_path / "warm.jsonl", DEMONSTRATIONS[:2])
    changed = prepare(config, run_dir=tmp_path / "changed")
    assert changed.base.path == model
    assert changed.base.warm_start_folder not in (None, Path(path))


def test_a_source_without_rationales_is_refused_by_its_name(tmp_path: Path, model: str) -> None:
    source = {"type": "file", "path": str(tmp_path / "warm.jsonl")}
    with pytest.raises(ConfigError, match=r"write warm_start\.source\.rationale_field"):
        run_config(tmp_path, model, source=source)


def test_the_files_of_the_warm_start_alone_decide(tmp_path: Path, model: str) -> None:
    """The key of a run that learns from its training prompts is what it was before there was a source."""
    train = {"type": "file", "path": str(tmp_path / "warm.jsonl"), "rationale_field": "how"}
    values = run_config(tmp_path, model).model_dump(exclude_unset=True)
    folders = []
    for source in (None, train):
        values["warm_start"]["source"] = source
        values["prompts"]["train"] = train
        folders.append(prepare(parse_config(values), run_dir=tmp_path / "run").base.warm_start_folder)
    assert folders[0] == folders[1] is not None
