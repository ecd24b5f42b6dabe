"""What every source of prompts must give, wherever its tasks come from."""

import json
from pathlib import Path
from typing import Any

import pytest

from gvm_ray.config.prompts import (
    EnvironmentSourceConfig,
    FileSourceConfig,
    FunctionSourceConfig,
    HuggingFaceSourceConfig,
    PromptsConfig,
    ReasoningGymSourceConfig,
    SourceSettings,
)
from gvm_ray.exceptions import DataError
from gvm_ray.learner.scratch_model import build_character_tokenizer
from gvm_ray.tasks.prompt_set import load_prompts, load_tasks
from tests.contract.union_cases import every_variant
from tests.hosted_environments import GYMNASIUM, VERIFIERS

ROWS = [
    {"problem": "1+1=", "answer": 2, "level": 1},
    {"problem": "What is \u221a16?", "answer": "4", "level": 2},
    {"problem": "Pick one.", "answer": ["\\frac12"], "level": None},
]
FOLDER = "the test's folder"
CONFIGS = every_variant(
    SourceSettings,
    {
        "file": FileSourceConfig(path=FOLDER, feature_fields=("level",)),
        "huggingface": HuggingFaceSourceConfig(path=FOLDER, feature_fields=("level",)),
        "function": FunctionSourceConfig(path="tests.contract.test_source_contract:rows", feature_fields=("level",)),
        "verifiers": EnvironmentSourceConfig(environment=VERIFIERS),
        "gymnasium": EnvironmentSourceConfig(environment=GYMNASIUM),
        "reasoning_gym": ReasoningGymSourceConfig(task="chain_sum", size=20),
    },
)


def rows() -> list[dict[str, Any]]:
    """What the function gives."""
    return ROWS


@pytest.fixture(params=CONFIGS)
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A source's settings, with its files where it needs any, and few tasks where it makes its own."""
    config = CONFIGS[request.param]
    changes: dict[str, Any] = {}
    if "path" in type(config).model_fields and config.path == FOLDER:
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        changes["path"] = str(folder / "train.jsonl" if isinstance(config, FileSourceConfig) else folder)
    if "size" in type(config).model_fields:
        changes["size"] = 20
    return config.model_copy(update=changes)


def test_tasks_have_ids_texts_and_features_that_can_be_saved(source: Any) -> None:
    tasks = load_tasks(source)
    assert tasks
    assert len({task.prompt_id for task in tasks}) == len(tasks)
    for task in tasks:
        assert isinstance(task.prompt_id, str)
        assert task.problem.strip()
        assert isinstance(task.answer, str)
        assert task.answer.strip() or task.has_own_score
        json.dumps(task.features, allow_nan=False)


def test_tasks_are_the_same_in_the_same_order_every_time(source: Any) -> None:
    assert load_tasks(source) == load_tasks(source)


def test_a_run_gets_prompts_of_them_all(source: Any) -> None:
    """Ids, gold answers and features go with the prompt; text is what the tokenizer was given."""
    tokenizer = build_character_tokenizer()
    tasks = {task.prompt_id: task for task in load_tasks(source)}
    sets = load_prompts(PromptsConfig(train=source), tokenizer)
    assert {prompt.prompt_id for prompt in sets.train} <= set(tasks)
    assert sets.report.train.loaded == len(tasks)
    assert len(sets.train) == sets.report.train.kept > 0
    for prompt in sets.train:
        task = tasks[prompt.prompt_id]
        assert (prompt.text, prompt.answer) == (task.problem, task.answer)
        assert dict(prompt.features) == dict(task.features)
        assert len(prompt.token_ids) > 0


def test_the_evaluation_shares_no_problem_with_the_training(source: Any) -> None:
    """With itself as the evaluation nothing is left to train on, and that is said."""
    with pytest.raises(DataError, match="has no prompt left"):
        load_prompts(PromptsConfig(train=source, eval=source), build_character_tokenizer())
