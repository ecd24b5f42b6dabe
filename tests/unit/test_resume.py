"""`--resume` before anything starts: of a run that has ended nothing is touched, and other settings are refused."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import tiny_config

import gvm_ray.run
from gvm_ray.checkpoints import CheckpointFolder
from gvm_ray.exceptions import CheckpointError
from gvm_ray.prepare import Prepared
from gvm_ray.reporting import RunFolder, write_summary
from gvm_ray.run import train
from gvm_ray.trainer import Trainer
from gvm_ray.types import CheckpointState

COSTS = {"cost/generated_samples": 192.0, "cost/generated_tokens": 900.0, "cost/optimizer_updates": 8.0}


class GoesOn(Exception):
    """The run was found to have something left to do."""


class OneShard:
    """Learners that save one file."""

    async def save(self, folder: str) -> None:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "shard").write_text("whole")

    def checkpointed(self, folder: str) -> None: ...


@pytest.fixture(autouse=True)
def _starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(*args: Any, **options: Any) -> Prepared:
        raise GoesOn

    monkeypatch.setattr(gvm_ray.run, "prepare", prepare)


def ended_run(runs_dir: Path, *, steps: int = 4, **changes: Any) -> RunFolder:
    """What a run of the tiny configuration, four steps long, leaves behind."""
    config = tiny_config(runs_dir, **changes)
    folder = RunFolder(runs_dir / config.name)
    folder.create()
    folder.save_config(config)
    state = CheckpointState(step=steps, policy_version=steps, cursor={}, allocator={}, costs=COSTS)
    asyncio.run(CheckpointFolder(folder=folder.checkpoints, config=config).save(state, OneShard()))  # type: ignore[arg-type]
    folder.metrics.write_text("".join(json.dumps({"step": step, "time_s": 1.0}) + "\n" for step in range(steps)))
    folder.model.mkdir()
    (folder.model / "config.json").write_text("{}")
    write_summary(
        folder.path,
        base_accuracy=0.25,
        final_accuracy=None,
        num_steps=steps,
        time_s=9.0,
        steps_s=7.0,
        phases={"sampling": 3.0},
        costs=COSTS,
    )
    return folder


def contents(folder: RunFolder) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of every file, and times of the folders."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder.path, *folder.path.rglob("*")]
    }


def resumed(runs_dir: Path, **changes: Any) -> dict[str, Any]:
    return train(tiny_config(runs_dir, **changes), resume=True)


@pytest.mark.parametrize(
    "changes", [{}, {"num_steps": 3}, {"evaluation__every_steps": 1}, {"num_steps": 9, "token_budget": 900}]
)
def test_a_run_that_has_ended_is_not_touched(
    tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ended_run(tmp_path)
    before = contents(folder)
    summary = resumed(tmp_path, **changes)
    assert contents(folder) == before
    assert summary == json.loads(folder.summary.read_text())
    assert summary["steps_s"] == 7.0
    assert "nothing to do: run 'tiny' ended after 4 steps; a larger num_steps" in capsys.readouterr().out


def test_a_run_that_has_ended_needs_no_checkpoint_to_say_so(tmp_path: Path) -> None:
    folder = ended_run(tmp_path)
    shutil.rmtree(folder.checkpoints)
    before = contents(folder)
    assert resumed(tmp_path)["num_steps"] == 4
    with pytest.raises(CheckpointError, match=r"ended after 4 steps, and none of its checkpoints is left .* --overwr"):
        resumed(tmp_path, num_steps=5)
    assert contents(folder) == before


def test_step_by_step_a_run_that_has_ended_has_no_step_left(tmp_path: Path) -> None:
    ended_run(tmp_path)
    with Trainer(tiny_config(tmp_path), resume=True) as trainer:
        assert list(trainer) == []
    assert trainer.summary is not None
    assert trainer.summary["num_steps"] == 4


@pytest.mark.parametrize("changes", [{"num_steps": 5}, {"token_budget": 901, "num_steps": 5}])
def test_a_run_that_has_steps_left_goes_on(tmp_path: Path, changes: dict[str, Any]) -> None:
    ended_run(tmp_path, token_budget=900 if "token_budget" in changes else None)
    with pytest.raises(GoesOn):
        resumed(tmp_path, **changes)


@pytest.mark.parametrize("lost", ["summary.json", "model/config.json"])
def test_a_run_whose_last_step_is_made_but_not_its_model_goes_on(tmp_path: Path, lost: str) -> None:
    folder = ended_run(tmp_path)
    (folder.path / lost).unlink()
    with pytest.raises(GoesOn):
        resumed(tmp_path)


def test_a_summary_that_was_cut_short_is_written_again(tmp_path: Path) -> None:
    folder = ended_run(tmp_path)
    folder.summary.write_text(folder.summary.read_text()[:40])
    with pytest.raises(GoesOn):
        resumed(tmp_path)


@pytest.mark.parametrize("with_checkpoint", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allocator": {"type": "gvm_pool"}}, r'allocator.type = "gvm" \(not "gvm_pool"\)'),
        ({"samples_per_prompt": 8, "seed": 1}, r"seed = 0 \(not 1\), samples_per_prompt = 6 \(not 8\)"),
        ({"warm_start": None}, r'warm_start = {.*"num_updates": 40, .* \(not none\)'),
    ],
)
def test_other_settings_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str, with_checkpoint: bool
) -> None:
    folder = ended_run(tmp_path)
    folder.summary.unlink()
    if not with_checkpoint:
        shutil.rmtree(folder.checkpoints)
    before = contents(folder)
    with pytest.raises(CheckpointError, match=message):
        resumed(tmp_path, **changes)
    assert contents(folder) == before


CUSTOM = {"type": "custom", "path": "package:Algorithm"}


@pytest.mark.parametrize(
    ("before", "now"), [({}, {"x": 1}), ({"x": 1}, {}), ({"x": 1}, {"y": 1}), ({"x": {"type": 1}}, {"x": {"y": 1}})]
)
def test_free_keywords_are_compared_whole(tmp_path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    ended_run(tmp_path, algorithm={**CUSTOM, "parameters": before})
    with pytest.raises(CheckpointError, match=r"other settings in algorithm\.parameters"):
        resumed(tmp_path, algorithm={**CUSTOM, "parameters": now}, num_steps=5)


def test_a_run_of_damaged_settings_is_named(tmp_path: Path) -> None:
    folder = ended_run(tmp_path)
    shutil.rmtree(folder.checkpoints)
    folder.config.write_text('{"name": ')
    with pytest.raises(CheckpointError, match=r"config.json' is damaged .* with --overwrite"):
        resumed(tmp_path)


def test_a_run_without_a_checkpoint_begins_at_its_beginning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ended_run(tmp_path)
    shutil.rmtree(folder.checkpoints)
    folder.summary.unlink()
    with pytest.raises(GoesOn):
        resumed(tmp_path, num_steps=7)
    assert "no checkpoint was completed yet" in capsys.readouterr().out
