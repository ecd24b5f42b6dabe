"""The walkthrough with real steps, of a tiny run."""

import importlib
from pathlib import Path

import pytest
from tiny_runs import TINY_TOML

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_the_walkthrough_trains_and_plots(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    walkthrough = importlib.import_module("walkthrough")
    (tmp_path / "tiny.toml").write_text(TINY_TOML)
    monkeypatch.setattr(walkthrough, "CONFIG", tmp_path / "tiny.toml")
    monkeypatch.setattr(walkthrough, "NUM_STEPS", 2)
    monkeypatch.setattr(walkthrough, "RUNS", {"alpha = 0.3": ("allocator.alpha=0.3",)})
    walkthrough.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("step 0:", "step 1:", "alpha"))]
    assert len(lines) == 3
    rates, counts = walkthrough.allocations(walkthrough.RunFolder(tmp_path / "runs" / "walkthrough-0"))
    assert len(rates) == len(counts) == 2 * 8
    assert counts.sum() == 2 * 48
    assert (tmp_path / "walkthrough.png").exists()
