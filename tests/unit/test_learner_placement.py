"""Where a rank keeps its weights, and how it computes: settings that change memory and speed but no result."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gvm_ray.actors.commands import updates_per_command
from gvm_ray.config.model import LearnerConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.learner.kernels import process_group_backend, resolve_attention
from gvm_ray.learner.learner import Learner
from gvm_ray.types import Metrics
from tests.learner_cases import OPTIMIZER, SurrogateLoss, batch_of, build_tiny_model, learner_config, ragged_groups

ON_GPU = {"dtype": "bfloat16", "gpus_per_worker": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("base"))


def _learner(base: str, **settings: Any) -> Learner:
    config = learner_config(learner={"optimizer": OPTIMIZER, "micro_batch_tokens": 60} | settings)
    return Learner(config, base_path=base, token_loss=SurrogateLoss(kl_coefficient=0.1))


def _trained(learner: Learner) -> tuple[list[Metrics], dict[str, torch.Tensor]]:
    groups = ragged_groups()
    metrics = [learner.update(batch_of(groups, step=step), groups).metrics for step in range(2)]
    return metrics, {name: tensor.clone() for name, tensor in learner.named_full_tensors()}


def test_offloaded_parameters_train_as_the_others_do(base: str, tmp_path: Path) -> None:
    learner = _learner(base, cpu_offload=True)
    metrics, weights = _trained(learner)
    expected_metrics, expected_weights = _trained(_learner(base))
    assert metrics == expected_metrics
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected_weights.items())

    learner.save(str(tmp_path / "shards"))
    resumed = _learner(base)
    resumed.load(str(tmp_path / "shards"))
    assert all(torch.equal(weights[name], tensor) for name, tensor in resumed.named_full_tensors())


def test_compiled_blocks_train_as_the_others_do(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"packing": "packed", "activation_checkpointing": True}
    compiled, compile_with = [], torch.compile

    def without_a_compiler(function: Any, **options: Any) -> Any:
        compiled.append(function)
        return compile_with(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    metrics, weights = _trained(_learner(base, compile=True, **settings))
    assert len(compiled) == 4  # two blocks, and two of the reference
    expected_metrics, expected_weights = _trained(_learner(base, **settings))
    assert metrics == [pytest.approx(expected, abs=1e-4, rel=1e-4) for expected in expected_metrics]
    assert max(float((weights[name] - expected_weights[name]).abs().max()) for name in weights) < 1e-5


class _LogitRows(TorchDispatchMode):
    """The most rows of float32 numbers, one for each token of the vocabulary, that any operation gave."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.ndim > 1:
                rows = value.numel() // self.vocab_size if value.shape[-1] == self.vocab_size else 0
                self.most = max(self.most, rows)
        return result


@pytest.mark.parametrize("packing", ["padded", "packed"])
def test_float32_logits_exist_of_one_chunk_only(base: str, packing: str) -> None:
    learner, groups = _learner(base, dtype="bfloat16", packing=packing, logprob_chunk_tokens=7), ragged_groups()
    (vocab_size,) = {len(t) for name, t in learner.named_full_tensors() if name == "model.embed_tokens.weight"}
    with _LogitRows(vocab_size) as rows:
        learner.update(batch_of(groups), groups)
    assert rows.most == 7


def test_attention_and_packing_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = LearnerConfig.model_validate(ON_GPU)
    asked = LearnerConfig.model_validate(ON_GPU | {"attention": "flash_attention_2"})
    packed = LearnerConfig(packing="packed")
    monkeypatch.setattr("transformers.utils.import_utils.is_flash_attn_2_available", lambda: False)
    assert resolve_attention(on_gpu, device_type="cuda") == ("sdpa", False)
    assert resolve_attention(packed, device_type="cpu") == ("sdpa", True)
    with pytest.raises(ConfigError, match="make flash-attn"):
        resolve_attention(asked, device_type="cuda")

    monkeypatch.setattr("transformers.utils.import_utils.is_flash_attn_2_available", lambda: True)
    assert resolve_attention(on_gpu, device_type="cuda") == ("flash_attention_2", True)
    assert resolve_attention(asked, device_type="cuda") == ("flash_attention_2", True)
    padded = on_gpu.model_copy(update={"packing": "padded"})
    assert resolve_attention(padded, device_type="cuda") == ("flash_attention_2", False)
    assert resolve_attention(LearnerConfig(), device_type="cuda") == ("sdpa", False)  # float32
    assert resolve_attention(on_gpu, device_type="cpu") == ("sdpa", False)
    varlen = LearnerConfig.model_validate(ON_GPU | {"attention": "varlen"})
    assert resolve_attention(varlen, device_type="cuda") == ("varlen", True)
    for config in (asked, varlen):
        with pytest.raises(ConfigError, match="here: cpu"):
            resolve_attention(config, device_type="cpu")


@pytest.mark.parametrize("attention", ["varlen", "flash_attention_2"])
@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"gpus_per_worker": 1}])
def test_gpu_kernels_are_refused_where_they_cannot_run(attention: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="attention='sdpa'"):
        LearnerConfig.model_validate({"attention": attention} | settings)


def test_varlen_is_refused_for_padded_micro_batches() -> None:
    with pytest.raises(ValueError, match="packed micro-batches only"):
        LearnerConfig.model_validate(ON_GPU | {"attention": "varlen", "packing": "padded"})


def test_gloo_stands_beside_nccl() -> None:
    assert process_group_backend("cpu") == "gloo"
    assert process_group_backend("cuda") == "cpu:gloo,cuda:nccl"


@pytest.mark.parametrize(
    ("number", "seconds", "following"),
    [(1, 0.01, 25), (1, 1.0, 5), (1, 12.0, 1), (25, 0.0, 25), (5, 50.0, 1), (5, 2.5, 10)],
)
def test_commands_of_the_warm_start_take_seconds(number: int, seconds: float, following: int) -> None:
    assert updates_per_command(number, seconds=seconds) == following
