"""The policy as vLLM's transfer sees it: what is announced comes, in order, whole, and in the engine's dtype."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gvm_ray.learner.learner import Learner
from gvm_ray.learner.transfer import PolicyWeights
from gvm_ray.maths.checksum import TensorChecksum
from tests.learner_cases import OPTIMIZER, SurrogateLoss, build_tiny_model, learner_config

CPU = torch.device("cpu")


def learner_of(folder: Path, *, tied: bool, **settings: Any) -> Learner:
    config = learner_config(learner={"optimizer": OPTIMIZER, **settings})
    return Learner(config, base_path=build_tiny_model(folder, tied=tied), token_loss=SurrogateLoss(), device=CPU)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"lora": {"rank": 2}}], ids=["full", "lora"])
def test_what_is_announced_is_what_comes(
    tmp_path: Path, tied: bool, dtype: torch.dtype, settings: dict[str, Any]
) -> None:
    learner = learner_of(tmp_path, tied=tied, **settings)
    weights = PolicyWeights(lambda: learner.policy, dtype=dtype, device=CPU)
    sent = list(weights)
    assert [(meta.name, meta.dtype, meta.shape) for meta in weights.metadata()] == [
        (name, tensor.dtype, tuple(tensor.shape)) for name, tensor in sent
    ]
    assert [meta.num_bytes for meta in weights.metadata()] == [tensor.nbytes for _, tensor in sent]
    stored = dict(learner.named_full_tensors())
    if tied:
        stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    assert {name for name, _ in sent} == stored.keys()
    assert all(torch.equal(tensor, stored[name].to(dtype)) for name, tensor in sent)
    expected = TensorChecksum()
    assert len(list(expected.following(sent))) == len(sent)
    assert weights.checksum == expected.hexdigest()


def test_a_round_that_was_broken_off_is_gone_through_to_its_end(tmp_path: Path) -> None:
    learner = learner_of(tmp_path, tied=True)
    given = 0

    def policy() -> Any:
        nonlocal given
        given += 1  # once a round
        return learner.policy

    weights = PolicyWeights(policy, dtype=torch.float32, device=CPU)
    whole = len(list(weights))
    checksum = weights.checksum
    weights.finish_round()  # nothing is left of it
    assert given == 1
    for _ in zip(range(3), weights, strict=False):
        pass
    assert weights.checksum != checksum
    weights.finish_round()
    assert (given, weights.checksum) == (2, checksum)
    weights.finish_round()  # one that never began: the other ranks gather all of it
    assert (given, weights.checksum) == (3, checksum)
    assert len(list(weights)) == whole
