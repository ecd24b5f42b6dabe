"""The whole measurement on a tiny policy, the gradients behind it, and settings that are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gvm_ray.cli import main
from gvm_ray.config import load_estimator
from gvm_ray.exceptions import ConfigError
from gvm_ray.lab.estimator.arms import planned_arms
from gvm_ray.lab.estimator.pool import ScoreGradients
from gvm_ray.learner.policy import PolicyModule, load_causal_lm
from gvm_ray.learner.sequences import TrainSample
from tests.learner_cases import build_tiny_model
from tests.tiny_runs import TINY_TOML

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "estimator").glob("*.toml"))
ARMS = """\
name = "tiny-estimator"
config = "tiny.toml"
num_prompts = 6
num_samples = 24
num_repeats = 6
num_warm_up_prompts = 12
warm_up_steps = 2
projection_size = 128

[[algorithms]]
name = "raft"

[[algorithms]]
name = "grpo"
set = { algorithm = { type = "grpo" } }
"""


def write_settings(folder: Path, *arms: str) -> Path:
    """An estimator's TOML beside the tiny run's, with uniform and these arms."""
    (folder / "tiny.toml").write_text(TINY_TOML, encoding="utf-8")
    path = folder / "estimator.toml"
    tables = ['name = "uniform"', *arms]
    path.write_text(ARMS + "".join(f"\n[[arms]]\n{arm}\n" for arm in tables), encoding="utf-8")
    return path


def arm(name: str, **settings: Any) -> str:
    """An arm's table; settings are in TOML already."""
    return f'name = "{name}"\nset = {{ {", ".join(f"{key} = {value}" for key, value in settings.items())} }}'


def test_tiny_policy_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_settings(
        tmp_path,
        arm("gvm", allocator='{ type = "gvm", pilot_samples = 2 }'),
        arm("gvm_pool", allocator='{ type = "gvm_pool", group_size = 6 }'),
    )
    output = tmp_path / "out"
    assert main(["estimator", str(path), "--output", str(output), "--set", f"runs_dir={tmp_path}"]) == 0
    text = (output / "estimator.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    results = json.loads((output / "estimator.json").read_text(encoding="utf-8"))
    assert results["settings"]["num_samples"] == 24
    rows = {(row["algorithm"], row["arm"], row["variant"]): row for row in results["rows"]}
    for algorithm in ("raft", "grpo"):
        assert f"## {algorithm}" in text
        assert rows[algorithm, "gvm", "measured"]["num_samples"] == 36
        assert rows[algorithm, "oracle", "exact"]["error_ratio"] < 1
        for row in rows.values():
            assert row["variance"] > 0
            assert row["mean_squared_error"] == pytest.approx(row["variance"] + row["bias_squared"])


def test_projected_gradients_and_norms_are_those_of_the_model(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path)
    rng = np.random.default_rng(0)
    samples = [
        TrainSample(
            prompt_ids=rng.integers(3, 90, size=5).astype(np.int32),
            response_ids=rng.integers(3, 90, size=size).astype(np.int32),
            engine_logprobs=np.zeros(size, dtype=np.float32),
        )
        for size in (1, 4)
    ]
    policy = PolicyModule(
        load_causal_lm(path, revision=None, trust_remote_code=False), temperature=0.7, chunk_tokens=64
    ).eval()
    whole = ScoreGradients(policy, size=None, seed=0)
    model = AutoModelForCausalLM.from_pretrained(path)
    expected, embedding_norms = [], []
    for sample in samples:
        ids = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids]).astype(np.int64))
        logprobs = (model(ids[None]).logits[0, 4:-1] / 0.7).log_softmax(-1).gather(-1, ids[5:, None])
        model.zero_grad()
        logprobs.sum().backward()
        expected.append(torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()]).numpy())
        embedding_norms.append(float(model.get_input_embeddings().weight.grad.norm()))
    np.testing.assert_allclose(whole.projected(samples), np.stack(expected), rtol=1e-3, atol=1e-5)
    norms = whole.pilot_norms(samples, parameters="embed_tokens")
    np.testing.assert_allclose(norms, embedding_norms, rtol=1e-4)
    assert (whole.training_norms(samples) > 0).all()
    projected = ScoreGradients(policy, size=4096, seed=0).projected(samples)
    assert projected.shape == (2, 4096)
    squares = (np.stack(expected) ** 2).sum(axis=1)
    np.testing.assert_allclose((projected**2).sum(axis=1), squares, rtol=0.2)  # 9 standard errors, sqrt(2 / 4096)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_settings_load_and_every_arm_is_valid(path: Path) -> None:
    estimator = load_estimator(path)
    arms = planned_arms(estimator, folder=path.parent)
    assert len(arms) == len(estimator.arms) * len(estimator.algorithms)
    assert estimator.name == f"estimator-{path.stem}"
    assert {arm.config.prompts_per_step for arm in arms} == {estimator.step_prompts}


def test_the_budget_of_a_step_can_be_split_over_more_prompts() -> None:
    path = next(path for path in SHIPPED if path.stem == "list_programs_groups_of_4")
    for arm in planned_arms(load_estimator(path), folder=path.parent):
        assert (arm.config.prompts_per_step, arm.config.samples_per_prompt) == (64, 4)  # 32 x 8 in the run's own file


def test_an_arm_is_measured_with_the_algorithms_it_names_alone(tmp_path: Path) -> None:
    path = write_settings(tmp_path, 'name = "half"\nalgorithms = ["grpo"]\nset = { allocator = { type = "gvm_pool" } }')
    planned = planned_arms(load_estimator(path), folder=tmp_path)
    assert [(each.algorithm, each.name) for each in planned] == [
        ("raft", "uniform"),
        ("grpo", "uniform"),
        ("grpo", "half"),
    ]
    path.write_text(path.read_text().replace('["grpo"]', '["gripo"]'))
    with pytest.raises(ConfigError, match="arm 'half' names the algorithm 'gripo'; write one of raft, grpo"):
        load_estimator(path)


def test_a_dry_run_lists_the_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_settings(tmp_path)
    assert main(["estimator", str(path), "--dry-run", "--prompts", "4", "--repeats", "9"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[:2] == ["raft/uniform", "grpo/uniform"]
    assert "9 repeats of each, on 24 samples of 4 prompts and of 12 to warm up on" in printed


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            arm("hot", sampling="{ temperature = 2.0 }"),
            "arm 'hot' with algorithm 'raft' changes sampling, but all share",
        ),
        (arm("token", algorithm='{ weighting = "token_mean" }'), "changes algorithm, but all share"),
        (arm("more", samples_per_prompt="9"), "changes samples_per_prompt, but all share one policy"),
        (arm("few", allocator='{ type = "gvm", pilot_samples = 6 }'), "write pilot_samples=3"),
        (arm("pairs", allocator='{ type = "poise" }'), "arm 'pairs' predicts from hidden states of responses"),
        (arm("typo", allocator='{ type = "gvm", pilots = 6 }'), "unknown setting"),
    ],
)
def test_an_arm_that_cannot_be_compared_is_refused(tmp_path: Path, table: str, expected: str) -> None:
    path = write_settings(tmp_path, table)
    with pytest.raises(ConfigError, match=expected):
        planned_arms(load_estimator(path), folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"baseline": "gvm"}, "baseline='gvm' is not an arm; write one of uniform"),
        ({"prompts_per_step": 9}, "prompts_per_step=9 is above num_prompts=6; write num_prompts=9 or more"),
        ({"num_repeats": 1}, "num_repeats: takes an integer ≥ 2"),
    ],
)
def test_wrong_settings_say_what_to_write(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    path = write_settings(tmp_path)
    with pytest.raises(ConfigError, match=expected):
        load_estimator(path, [f"{name}={value}" for name, value in change.items()])


def test_too_small_a_training_set_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_settings(tmp_path)
    arguments = ["estimator", str(path), "--prompts", "40", "--set", f"runs_dir={tmp_path}"]
    assert main(arguments) == 2
    assert (
        "num_prompts=40 and num_warm_up_prompts=12 need 52 training prompts, but there are" in capsys.readouterr().err
    )
