"""A learner group that sends its weights to vLLM generators, through a generator's and a rank's death."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.ray, pytest.mark.faults, pytest.mark.slow]


@pytest.mark.timeout(1200)
def test_generators_sample_from_what_the_ranks_send_whatever_dies(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    result = subprocess.run(
        [sys.executable, "-m", "tests.live_transfer_run", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    start, update, death, later, ranks = json.loads(result.stdout.splitlines()[-1])
    for version, step in enumerate((start, update, death, later, ranks)):
        assert step["versions"] == [version, version]
        assert step["error"] < 1e-4
    assert [step["world"] for step in (start, update, later, ranks)] == [1, 1, 2, 2]
    assert [step["stored"] for step in (start, update, death, later)] == [False, False, True, False]
    assert set(start["faults"]) == set(update["faults"]) == set()
    assert set(death["faults"]) == set(later["faults"]) == {"generator-1"}
    assert set(ranks["faults"]) == {"generator-1", "learners"}
