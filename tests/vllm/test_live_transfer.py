"""A learner group that sends its weights to vLLM generators over gloo, through a generator's and a rank's death."""

from pathlib import Path

import pytest

from tests.live_transfer import check_live_transfer

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.ray, pytest.mark.faults, pytest.mark.slow]


@pytest.mark.timeout(1200)
def test_generators_sample_from_what_the_ranks_send_whatever_dies(tmp_path: Path) -> None:
    check_live_transfer("gloo", tmp_path, tolerance=1e-4)
