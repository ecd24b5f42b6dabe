"""vLLM's transfers between a learner and a generator on GPUs, through a generator's and a rank's death."""

from pathlib import Path

import pytest
import torch

from tests.live_transfer import check_live_transfer

pytest.importorskip("vllm")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.ray,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that PyTorch can use"),
]

TOLERANCE = 5e-3  # of float32 on a GPU against float32 on a CPU


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs a GPU for the learner and one for the generator")
def test_nccl(tmp_path: Path) -> None:
    check_live_transfer("nccl", tmp_path, tolerance=TOLERANCE)


def test_ipc(tmp_path: Path) -> None:
    check_live_transfer("ipc", tmp_path, tolerance=TOLERANCE)
