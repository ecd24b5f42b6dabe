"""The resource plan: what lies on which GPU, what is refused and why, and what it is planned against."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gvm_ray.cli import main
from gvm_ray.config.model import ScratchModelConfig
from gvm_ray.exceptions import ConfigError, ModelError
from gvm_ray.prepare import find_base_model
from gvm_ray.pretrained import read_model_sizes
from gvm_ray.resources import (
    Memory,
    find_hardware,
    plan_resources,
    sizes_of_settings,
)
from tests.model_shapes import write_shape
from tests.resource_plans import GIB, HARDWARE, parts, plan_of, refusal, run_config


def test_7b_on_four_ranks_and_four_generators_by_hand(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        "qwen2.5-math-7b",
        learner={"num_workers": 4, "activation_checkpointing": True},
        engine={"num_generators": 4},
    )
    plan.check()
    rank, generator = plan.devices
    assert (rank.number, generator.number) == (4, 4)
    # 7.6153 billion parameters of 4 bytes over 4 ranks are 7.09 GiB. Embedding and head are 2 x 152,064 x 3,584, and a
    # block 233.05 million: (1,090 + 2 x 233.05) million x 8 bytes, and 2 more for the reference's embedding and head.
    # A pass of 16,384 tokens keeps 28 x 3,584 inputs and 112,640 values of one block, of 2 bytes each; 1,024 rows of
    # 152,064 logits take 20 bytes each. Of 8 samples with a prompt, one block copies keys and values as wide as queries
    # 1.28 times, and keeps a padded output; a mask has 2,048 keys: 3,584 + 1.28 x 7,168 + 2,048 values a token.
    assert parts(rank) == pytest.approx(
        {
            "master weights": 7.09,
            "gradients": 7.09,
            "optimizer moments": 14.18,
            "reference weights": 7.09,
            "gathered weights": 13.63,
            "activations": 6.50,
            "shared prompts": 0.45,
            "logits": 2.90,
            "learner's CUDA": 2.0,
        },
        abs=0.01,
    )
    assert parts(generator) == pytest.approx(
        {"engine weights": 14.18, "engine's CUDA": 3.0, "key-value cache": 0.9 * 80 - 14.18 - 3.0}, abs=0.01
    )
    # 57,344 bytes a token: 2 x 28 layers x 4 heads x 128 x 2
    assert plan.cache.num_tokens == pytest.approx((0.9 * 80 - 14.18 - 3.0) * GIB / 57_344, rel=1e-3)


def test_tensor_parallel_generators_split_their_weights(tmp_path: Path) -> None:
    two = {"num_generators": 3, "gpus_per_generator": 2, "tensor_parallel_size": 2}
    whole, split = (plan_of(tmp_path, "qwen2.5-math-7b", engine=engine) for engine in ({"num_generators": 6}, two))
    assert whole.devices[-1].number == split.devices[-1].number == 6
    assert parts(split.devices[-1])["engine weights"] == pytest.approx(parts(whole.devices[-1])["engine weights"] / 2)
    assert split.cache.num_tokens > 2 * whole.cache.num_tokens


def test_a_generator_has_a_gpu_for_each_of_its_parts() -> None:
    with pytest.raises(ConfigError, match="write gpus_per_generator=4"):
        run_config(engine={"tensor_parallel_size": 4, "gpus_per_generator": 0.5})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"learner": {"num_workers": 1, "activation_checkpointing": True}},
            "has 80.0 (of a test); the largest part is 56.7 GiB of optimizer moments: spread it over more GPUs "
            "(learner.num_workers=1), or take a smaller model",
        ),
        (
            {"learner": {"num_workers": 8, "micro_batch_tokens": 65536}},
            "activations: lower learner.micro_batch_tokens=65536, or write learner.activation_checkpointing=true",
        ),
        (
            {
                "learner": {
                    "num_workers": 8,
                    "micro_batch_tokens": 32768,
                    "logprob_chunk_tokens": 32768,
                    "activation_checkpointing": True,
                }
            },
            "GiB of logits: lower learner.logprob_chunk_tokens=32768",
        ),
        (
            {
                "learner": {"num_workers": 8, "activation_checkpointing": True},
                "engine": {"gpu_memory_utilization": 0.2},
            },
            "room for 0 tokens, and one sequence of prompts.max_tokens + sampling.max_tokens may have 4096: raise "
            "engine.gpu_memory_utilization=0.2 or engine.tensor_parallel_size=1",
        ),
    ],
    ids=["states", "activations", "logits", "cache"],
)
def test_what_cannot_fit_is_refused_with_the_setting_to_change(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    message = refusal(plan_of(tmp_path, "qwen2.5-math-7b", **changes))
    assert expected in message


def test_actors_without_a_gpu_share_the_machine() -> None:
    config = run_config(
        learner={"gpus_per_worker": 0, "num_workers": 2, "dtype": "float32"},
        engine={"gpus_per_generator": 0, "num_generators": 3, "kv_cache_gib": 4, "dtype": "float32"},
        algorithm={"type": "raft++"},
    )
    plan = plan_resources(config, sizes_of_settings(config.model), HARDWARE)
    plan.check()
    (machine,) = plan.devices
    assert machine.name == "machine with 2 x learner rank + 3 x generator"
    assert parts(machine)["key-value cache"] == 12
    sizes = sizes_of_settings(config.model)
    assert parts(machine)["master weights"] == pytest.approx(4 * sizes.num_parameters / GIB, rel=1e-4)
    assert parts(machine)["engine weights"] == pytest.approx(3 * 2 * 4 * sizes.num_parameters / GIB)
    small = replace(HARDWARE, machine=Memory(num_bytes=12 * GIB, source="of a test"))
    message = refusal(plan_resources(config, sizes, small))
    assert "lower engine.kv_cache_gib=4, or lower engine.num_generators=3" in message
    unknown = replace(HARDWARE, machine=Memory(num_bytes=None, source="of the cluster's nodes"))
    plan_resources(config, sizes, unknown).check()


def test_without_learners_there_are_generators_alone(tmp_path: Path) -> None:
    sizes = read_model_sizes(write_shape(tmp_path, "qwen2.5-math-7b"))
    plan = plan_resources(run_config(), sizes, HARDWARE, learners=False)
    plan.check()
    assert [device.name for device in plan.devices] == ["GPU with generator"]


def test_sizes_of_a_scratch_model_are_those_of_the_model_that_is_built(tmp_path: Path) -> None:
    model = ScratchModelConfig(hidden_size=96, num_heads=6, num_key_value_heads=2, tie_word_embeddings=False)
    config = run_config(model=model.model_dump())
    assert sizes_of_settings(model) == read_model_sizes(find_base_model(config, run_dir=tmp_path).path)


def test_planned_against_the_setting_the_smallest_gpu_or_an_assumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assumed = find_hardware(run_config())
    assert assumed.gpu.num_bytes == 80 * GIB
    assert assumed.gpu.source.startswith("assumed")
    assert (assumed.machine.num_bytes or 0) > GIB
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 143771\necho 81559\n")
    program.chmod(0o755)
    assert find_hardware(run_config()).gpu.num_bytes == 81559 * 2**20
    assert find_hardware(run_config(cluster={"gpu_memory_gib": 141})).gpu.num_bytes == 141 * GIB
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert find_hardware(run_config()).machine.num_bytes is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", r"config\.json of '.*' isn't JSON \(.*\); put the model's own config\.json there"),
        ("[]", r"config\.json of '.*' holds \[\], not an object; put the model's own config\.json there"),
        ('{"hidden_size": 64}', r"has no num_attention_heads at the top level.*use a text model of the Llama"),
        ('{"text_config": {"num_attention_heads": 4}}', r"has no num_attention_heads at the top level"),
        (
            '{"num_attention_heads": 0, "hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 8, '
            '"vocab_size": 9}',
            r"ZeroDivisionError.*write model\.path as a folder with config\.json",
        ),
    ],
)
def test_a_configuration_without_widths_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=expected):
        read_model_sizes(tmp_path)


def test_a_hub_id_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def offline(*_arguments: object, **_options: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    quickstart = str(Path(__file__).parents[2] / "configs" / "quickstart.toml")
    model = ["--set", "model.type=pretrained", "--set", "model.path=Qwen/Qwen2.5-Math-7B"]
    assert main(["train", quickstart, "--dry-run", *model]) == 2
    error = capsys.readouterr().err
    assert "no model configuration can be loaded from 'Qwen/Qwen2.5-Math-7B'" in error
    assert "a hub id that this machine can reach" in error
    assert "fetch it elsewhere (hf download Qwen/Qwen2.5-Math-7B --local-dir FOLDER) and write FOLDER" in error
    assert main(["train", quickstart, "--dry-run", *model[:3], f"model.path={quickstart}/model"]) == 2
    assert "hf download" not in capsys.readouterr().err
    assert main(["eval", "Qwen/None", "--config", quickstart]) == 2
    assert "write MODEL as a folder" in capsys.readouterr().err
