"""The learner on a GPU: each way it can compute there, against float32 on the same device or the CPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers.utils.import_utils import is_flash_attn_2_available

from gvm_ray.config.model import LearnerConfig
from gvm_ray.learner.kernels import process_group_backend
from gvm_ray.learner.learner import BatchUpdate, Learner
from gvm_ray.learner.policy import load_policy
from tests.learner_cases import (
    OPTIMIZER,
    SurrogateLoss,
    batch_of,
    build_tiny_model,
    learner_config,
    ragged_groups,
    with_training_norms,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that PyTorch can use"),
]

FLASH = {"dtype": "bfloat16", "attention": "flash_attention_2"}
needs_flash = pytest.mark.skipif(not is_flash_attn_2_available(), reason="flash-attn isn't installed: make flash-attn")


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    """With NCCL, whichever device the first learner is on."""
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(process_group_backend("cuda"), store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("base"), tied=request.param)


def _learner(base: str, *, device: str = "cuda", **settings: Any) -> Learner:
    values = {"optimizer": OPTIMIZER, "gpus_per_worker": 1, "micro_batch_tokens": 60, "attention": "sdpa"} | settings
    loss = SurrogateLoss(kl_coefficient=0.1, needs_entropy=True)
    config = with_training_norms(learner_config(learner=values))
    return Learner(config, base_path=base, token_loss=loss, device=torch.device(device))


def _assert_close(learner: Learner, expected: Learner, *, rtol: float, atol: float) -> None:
    """Gradient norms and prompt states of the same weights, then an update's metrics, norms and weights."""
    groups = ragged_groups()
    prompts = [group.prompt.token_ids for group in groups]
    results: list[tuple[Any, Any, BatchUpdate, dict[str, torch.Tensor]]] = []
    for rank in (learner, expected):
        norms, (states, _) = rank.gradient_norms(groups), rank.prompt_states(prompts, pooling="both")
        update = rank.update(batch_of(groups), groups)
        results.append((norms, states, update, {name: t.clone() for name, t in rank.named_full_tensors()}))
    (norms, states, update, weights), (their_norms, their_states, their_update, their_weights) = results
    np.testing.assert_allclose(np.concatenate(norms), np.concatenate(their_norms), rtol=rtol, atol=atol)
    np.testing.assert_allclose(states, their_states, rtol=rtol, atol=10 * atol)
    np.testing.assert_allclose(
        np.concatenate(update.gradient_norms), np.concatenate(their_update.gradient_norms), rtol=rtol, atol=atol
    )
    assert update.metrics == pytest.approx(their_update.metrics, rel=rtol, abs=atol)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, their_weights[name], rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("packing", ["padded", "packed"])
def test_float32_equals_the_cpu(base: str, packing: str) -> None:
    _assert_close(_learner(base, packing=packing), _learner(base, device="cpu"), rtol=1e-3, atol=1e-4)


@needs_flash
@pytest.mark.parametrize("packing", ["padded", "packed"])
@pytest.mark.parametrize("extra", [{}, {"activation_checkpointing": True}, {"compile": True}], ids=str)
def test_flash_attention_equals_sdpa_in_bfloat16(base: str, packing: str, extra: dict[str, Any]) -> None:
    learner = _learner(base, **FLASH, packing=packing, **extra)
    _assert_close(learner, _learner(base, dtype="bfloat16"), rtol=0.1, atol=0.02)


@pytest.mark.parametrize("extra", [{}, {"activation_checkpointing": True}, {"compile": True}], ids=str)
def test_varlen_attention_equals_sdpa_in_bfloat16(base: str, extra: dict[str, Any]) -> None:
    learner = _learner(base, dtype="bfloat16", attention="varlen", **extra)
    _assert_close(learner, _learner(base, dtype="bfloat16"), rtol=0.1, atol=0.02)


@needs_flash
def test_a_gpu_packs_by_itself(base: str) -> None:
    groups = ragged_groups()
    chosen = _learner(base, dtype="bfloat16", attention="auto").update(batch_of(groups), groups)
    asked = _learner(base, **FLASH, packing="packed").update(batch_of(groups), groups)
    assert chosen.metrics == pytest.approx(asked.metrics, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_blocks(base: str, dtype: str) -> None:
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == "float32" else {"rtol": 0.1, "atol": 0.02}
    _assert_close(_learner(base, dtype=dtype, compile=True), _learner(base, dtype=dtype), **tolerance)


def test_offloaded_parameters_train_as_the_others_do_and_survive_a_checkpoint(base: str, tmp_path: Path) -> None:
    settings = LearnerConfig(gpus_per_worker=1, cpu_offload=True)
    mesh = init_device_mesh("cuda", (1,))
    policy = load_policy(base, mesh=mesh, settings=settings, attention="sdpa", temperature=1.0)
    assert {parameter.device.type for parameter in policy.parameters()} == {"cpu"}

    learner, expected = _learner(base, cpu_offload=True), _learner(base)
    _assert_close(learner, expected, rtol=1e-4, atol=1e-5)
    learner.save(str(tmp_path / "shards"))
    expected.load(str(tmp_path / "shards"))
    theirs = dict(expected.named_full_tensors())
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in learner.named_full_tensors())
