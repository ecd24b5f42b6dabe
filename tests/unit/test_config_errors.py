"""Settings that are refused: the message says which one, its value, and what to write instead."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gvm_ray.cli import main
from gvm_ray.config import EstimatorConfig, RunConfig, load_config, parse_config
from gvm_ray.config.data import DataConfig
from gvm_ray.config.explain import PATTERNS
from gvm_ray.config.lab import ComparisonConfig
from gvm_ray.exceptions import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
MINIMAL = {"name": "t", "model": {"type": "scratch"}, "prompts": {"train": {"type": "arithmetic"}}}


def refusal(*overrides: str, **settings: Any) -> str:
    """The message with which the smallest run is refused when these settings are added."""
    with pytest.raises(ConfigError) as error:
        parse_config(MINIMAL | settings, overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "environment.max_turns=3",
            "environment.max_turns: unknown setting of type = 'single_turn'; environment.type =",
        ),
        ("model.path=x", "model.path: unknown setting of type = 'scratch'; model.type = 'pretrained' has it"),
        ("prompts.train.x=", "prompts.train.x: unknown setting"),
        ("prompts.eval.size=3", "prompts.eval.type: required, but not given; write prompts.eval.type as one of 'file'"),
        ("rewards.terms=[{weight=2}]", "rewards.terms.0.type: required, but not given; write rewards.terms.0.type as "),
        ("rewards.terms.weight=2", "rewards.terms: takes a list, not {'weight': 2}"),
        ("algorithm.loss.y=1", "algorithm.loss.path: required, but not given"),
        (
            "allocator.type=gvmm",
            "allocator.type: unknown type (got 'gvmm'); did you mean 'gvm'? `gvm-ray settings allocator`",
        ),
        ("allocator=gvm", "allocator: takes a table, not 'gvm'; write allocator.type = 'gvm'"),
        ("sampling=3", "sampling: takes a table, not 3; write its settings as sampling.NAME"),
        (
            "rewards.pass_env=KEY",
            "rewards.pass_env: takes a list, not 'KEY'; write it in brackets, e.g. pass_env = ['K",
        ),
        ("rewards.terms=exact", "write it in brackets, e.g. terms = [{ type = 'exact' }]"),
        ("rewards.terms=3", "write it in brackets, e.g. terms = [{ type = 'math_verify' }]"),
        ("modle.path=x", "modle: unknown setting; did you mean 'model'?"),
        ("cluster.dashboard=maybe", "cluster.dashboard: takes true or false (got 'maybe')"),
        ("engine.path=mine", "engine.path: takes 'module:name', e.g. 'my_package.scoring:score' (got 'mine')"),
        ("learner.optimizer.betas=[0.9]", "betas.1: required, but not given; write e.g. betas = [0.9, 0.999]"),
        ("learner.optimizer.betas=[0.9, 2]", "betas.1: takes a number ≤ 1 (got 2)"),
        ("learner.optimizer.lr=1", "learner.optimizer.lr: unknown setting; did you mean 'learning_rate'?"),
        ("learner.lr=1", "learner.lr: unknown setting; did you mean 'learner.optimizer.learning_rate'?"),
        ("learner.learning_rate=1", "did you mean 'learner.optimizer.learning_rate'?"),
        ("learner.lora.r=8", "learner.lora.r: unknown setting; did you mean 'rank'?"),
        ("learner.lora.lora_alpha=8", "learner.lora.lora_alpha: unknown setting; did you mean 'alpha'?"),
        ("lora_alpha=8", "lora_alpha: unknown setting; did you mean 'learner.lora.alpha'?"),
        ("n=8", "n: unknown setting; did you mean 'samples_per_prompt'?"),
        ("sampling.n=8", "sampling.n: unknown setting; did you mean 'samples_per_prompt'?"),
        ("batch_size=8", "batch_size: unknown setting; did you mean 'prompts_per_step'?"),
        ("sampling.max_new_tokens=8", "sampling.max_new_tokens: unknown setting; did you mean 'max_tokens'?"),
        ("lr=1", "lr: unknown setting; did you mean 'learner.optimizer.learning_rate'"),
        ("group_size=4", "group_size: unknown setting; did you mean 'allocator.group_size'?"),
        ("sampling.temp=1", "sampling.temp: unknown setting; did you mean 'temperature'?"),
        ("max_tokens=1", "did you mean 'prompts.max_tokens' or 'sampling.max_tokens'?"),
        ("seed=1#2", "seed: takes an integer ≥ 0 (got '1#2'); write e.g. seed = 0"),
        ("seed=1,", "(got '1,')"),
        ("seed=true", "seed: takes numbers, not true or false; write e.g. seed = 0 (got True)"),
        (
            "token_budget=false",
            "token_budget: takes numbers, not true or false; write e.g. token_budget = 1 (got False",
        ),
        ("learner.optimizer.learning_rate=true", "learner.optimizer.learning_rate: takes numbers, not true or false"),
        ("learner.optimizer.betas=[0.9, true]", "betas = [0.9, 0.999] (got [0.9, True])"),
        ("learner.lora={rank=true}", "learner.lora.rank: takes numbers"),
        ("rewards.terms=[{type='exact', weight=true}]", "rewards.terms.0.weight: takes numbers"),
        ("prompts.train.step_accuracy.+=true", "prompts.train.step_accuracy: takes numbers"),
        ("learner.optimizer.betas=[0.9, 'x']", "betas.1: takes a number (got 'x')"),
        ("evaluation.at_steps=['x']", "at_steps.0: takes an integer (got 'x')"),
        ("rewards.pass_env=[1]", 'pass_env.0: takes text, not 1; write quotes, e.g. "1"'),
        ("num_steps=abc", "num_steps: takes an integer ≥ 1 (got 'abc'); write e.g. num_steps = 100"),
        ("num_steps=1.5", "num_steps: takes an integer ≥ 1 (got 1.5); write e.g. num_steps = 100"),
        ("num_steps=0", "num_steps: takes an integer ≥ 1 (got 0); write e.g. num_steps = 100"),
        ("num_steps=1e400", "num_steps: takes a finite number (got inf); write e.g. num_steps = 100"),
        ("token_budget=-1", "token_budget: takes an integer ≥ 1 or none (got -1)"),
        ("evaluation.top_p=2", "evaluation.top_p: takes a number > 0, ≤ 1 (got 2); write e.g. top_p = 1.0"),
        ("evaluation.temperature=-1", "evaluation.temperature: takes a number ≥ 0, ≤ 2 (got -1)"),
        (
            "evaluation={temperature=0, num_samples=4}",
            "the same response num_samples=4 times; write num_samples=1, or a temperature ab",
        ),
        ("evaluation.at_steps=[0]", "evaluation.at_steps.0: takes a number ≥ 1 (got 0)"),
        ("prompts.template.date=soon", "prompts.template.date: takes a date, e.g. 2026-11-30 or none (got 'soon')"),
        ("learner.dtype=bf16", "takes one of 'float32', 'bfloat16' (got 'bf16'); did you mean 'bfloat16'?"),
        ("cluster.placement=collocated", "(got 'collocated'); did you mean 'colocated'?"),
        ("allocator.type=gvmpool", "allocator.type: unknown type (got 'gvmpool'); did you mean 'gvm_pool'?"),
        ("algorithm.type=GRPO", "did you mean 'grpo'?"),
        ("allocator.type=grpo", "algorithm.type = 'grpo' exists; write allocator.type as one of 'uniform', 'gvm'"),
        ("allocator.type=magic", "unknown type (got 'magic'); write allocator.type as one of 'uniform', 'gvm'"),
        ("rewards.terms=[{type='mathverify'}]", "rewards.terms.0.type: unknown type (got 'mathverify'); did you mean"),
        ("allocator=gvmpol", "write allocator.type = 'gvm_pool'"),
        ("engine=vlm", "engine: takes a table, not 'vlm'; write engine.type = 'vllm'"),
        ("model=Qwen/Qwen3-0.6B", "write model = { type = 'pretrained', path = 'Qwen/Qwen3-0.6B' }"),
        ("learner.lora=true", "takes a table, not True; write learner.lora = {} for its defaults"),
        ("warm_start=false", "takes a table, not False; leave it out, or write --set warm_start=none"),
        ("sampling.top_p=0.9", "log-probs of other samples would need a correction; leave it out (evaluation.top_p is"),
        ("evaluation.top_k=2", "did you mean 'top_p'?"),
        ("algorithm.importance.level=none", "(got 'none'); did you mean 'off'?"),
        ("prompts.eval.type=hf", "unknown type (got 'hf'); did you mean 'huggingface'?"),
        ("learner.attention=flash", "(got 'flash'); did you mean 'flash_attention_2'?"),
        ("allocator.type=custom", "allocator.path: required, but not given; it takes 'module:name', e.g. 'my_package."),
        ("model={type='pretrained', path=''}", "model.path: is empty; write some text\n"),
        ("prompts.train.levels=easy", "takes a list, not 'easy'; write it in brackets, e.g. levels = [{ NAME = ... }]"),
        ("reporting.sinks=my:Sink", "write it in brackets, e.g. sinks = [{ path = 'my:Sink' }]"),
        ("engine.pipeline_parallel_size=2", "is divided by engine.tensor_parallel_size alone"),
        ("engine.data_parallel_size=2", "did you mean 'num_generators'?"),
        ("num_gpus=8", "num_gpus: unknown setting: write learner.gpus_per_worker and engine.gpus_per_generator"),
        ("num_train_epochs=3", "num_train_epochs: unknown setting: write num_steps"),
    ],
)
def test_wrong_setting_is_told_where_it_stands_and_what_to_write(override: str, expected: str) -> None:
    assert expected in refusal(override) + "\n"


def test_every_problem_is_listed_once() -> None:
    message = refusal(num_steps=0, seed=-1, learner={"lora": {"target_modules": 3}})
    assert message.startswith("config: 3 problem(s)\n")
    assert "target_modules: takes 'all-linear' or list of text (got 3)" in message


def test_misspelt_setting_gets_a_suggestion() -> None:
    assert "samples_per_promt: unknown setting; did you mean 'samples_per_prompt'?" in refusal(samples_per_promt=4)


def test_missing_section_is_named() -> None:
    with pytest.raises(ConfigError, match="model: required, but not given"):
        parse_config({"name": "t", "prompts": {"train": {"type": "arithmetic"}}})


def test_every_pattern_of_a_text_has_words_for_it() -> None:
    schemas = [
        json.dumps(model.model_json_schema()) for model in (RunConfig, ComparisonConfig, EstimatorConfig, DataConfig)
    ]
    used = {json.loads(pattern) for schema in schemas for pattern in re.findall(r'"pattern": ("[^"]*")', schema)}
    assert used
    assert used <= set(PATTERNS)


def is_part(path: Path) -> bool:
    """True for a file that holds a run's settings, but not all that a run needs."""
    names = set(re.findall(r"^\[?\[?([a-z_]+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    return not {"name", "model", "prompts"} <= names


PARTS = [path for name in ("word_problems", "numina_math") for path in sorted((CONFIGS / name).glob("*.toml"))]


@pytest.mark.parametrize("path", PARTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_part_of_a_run_alone_is_told_the_files_it_goes_with(path: Path) -> None:
    assert is_part(path)
    with pytest.raises(ConfigError, match="of which this is a part: ") as error:
        load_config(path)
    together = str(error.value).rpartition("gvm-ray train ")[2].split()
    assert str(path) in together
    load_config(together)


def test_a_file_that_lacks_a_table_without_others_beside_it_gets_no_such_hint(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('name = "t"\n', encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text("[model]\n[prompts]\n[tool.x]\n", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "run.toml")
    assert "of which this is a part" not in str(error.value)


def test_a_folder_is_no_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tmp_path), "--dry-run"]) == 2
    assert "is a folder; write the path of a .toml file in it" in capsys.readouterr().err
