"""Runs `live_transfer_run`, and checks what every kind of transfer must give."""

import json
import os
import subprocess
import sys
from pathlib import Path


def check_live_transfer(kind: str, folder: Path, *, tolerance: float) -> None:
    """A publish, an update, a generator's death, an update, and a rank's death; log-probs agree after each."""
    root = str(Path(__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-m", "tests.live_transfer_run", str(folder), kind],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    steps = json.loads(result.stdout.splitlines()[-1])
    start, update, death, later, ranks = steps
    for version, step in enumerate(steps):
        assert set(step["versions"]) == {version}
        assert step["error"] < tolerance
    assert [step["world"] for step in (start, update, later, ranks)] == [1, 1, 2, 2]
    assert [step["stored"] for step in (start, update, death, later)] == [False, False, True, False]
    generator = f"generator-{len(start['versions']) - 1}"
    assert set(start["faults"]) == set(update["faults"]) == set()
    assert set(death["faults"]) == set(later["faults"]) == {generator}
    assert set(ranks["faults"]) == {generator, "learners"}
