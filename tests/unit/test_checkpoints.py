"""Checkpoints are complete or absent, few, and refuse what they don't fit."""

import asyncio
import errno
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gvm_ray.checkpoints import CheckpointFolder, RestoredCheckpoint
from gvm_ray.config import RunConfig, parse_config
from gvm_ray.exceptions import CheckpointError, SystemFailure
from gvm_ray.types import CheckpointState


def run_config(**changes: Any) -> RunConfig:
    values = {"name": "t", "model": {"type": "scratch"}, "prompts": {"train": {"type": "arithmetic"}}, **changes}
    return parse_config(values)


def state(step: int) -> CheckpointState:
    return CheckpointState(
        step=step,
        policy_version=step,
        cursor={"epoch": 1, "window": [3, 4]},
        allocator={"stats": {"a": [1.5, 0.25]}},
        costs={"cost/generated_samples": 8.0 * step},
        prompt_states={
            "ids": np.array(["a", "é"]),
            "steps": np.array([step, 0]),
            "states": np.array([[0.1, 2], [3, 4]], dtype=np.float32),
        },
    )


@dataclass
class FakeLearners:
    """Writes one file; dies half way through where it is told to."""

    dies: bool = False
    folders: list[Path] = field(default_factory=list)
    complete: list[str] = field(default_factory=list)

    async def save(self, folder: str) -> None:
        self.folders.append(Path(folder))
        Path(folder).mkdir(parents=True)
        (Path(folder) / "shard").write_text("half")
        if self.dies:
            raise SystemFailure("the learner died while saving")
        (Path(folder) / "shard").write_text("whole")

    def checkpointed(self, folder: str) -> None:
        assert (Path(folder) / "shard").read_text() == "whole"
        self.complete.append(folder)


def save(folder: CheckpointFolder, step: int, learners: Any = None) -> None:
    asyncio.run(folder.save(state(step), learners or FakeLearners()))


def latest(folder: CheckpointFolder) -> RestoredCheckpoint:
    restored = folder.latest()
    assert restored is not None
    return restored


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    learners = FakeLearners()
    save(folder, 10, learners)
    assert learners.complete == [str(tmp_path / "step_000010" / "learner")]
    restored = latest(folder)
    np.testing.assert_equal(vars(restored.state), vars(state(10)))
    assert restored.state.prompt_states["states"].dtype == np.float32
    assert (restored.learner / "shard").read_text() == "whole"
    assert json.loads((tmp_path / "step_000010" / "config.json").read_text())["name"] == "t"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config(checkpoint={"keep": 2}))
    for step in (8, 9, 10, 11):
        save(folder, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000010", "step_000011"]
    assert latest(folder).state.step == 11


def test_a_crash_while_saving_leaves_the_last_good_one(tmp_path: Path) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    save(folder, 1)
    dying = FakeLearners(dies=True)
    with pytest.raises(SystemFailure, match="died while saving"):
        save(folder, 2, dying)
    assert dying.folders[0].exists()  # something was half written
    assert dying.complete == []
    assert [path.name for path in folder.complete()] == ["step_000001"]
    assert latest(folder).state.step == 1
    save(folder, 2)  # and what it left is no hindrance
    assert latest(folder).state.step == 2
    assert not dying.folders[0].exists()


def test_a_step_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    save(folder, 1)
    (tmp_path / "step_000001" / "left over").touch()
    save(folder, 1)
    assert sorted(path.name for path in (tmp_path / "step_000001").iterdir()) == [
        "config.json",
        "learner",
        "manifest.json",
        "prompt_states.npz",
        "state.json",
    ]


@pytest.mark.parametrize("text", ["", '{"step": 1', '{"step": 1}', "[]", '{"unknown": 1}'])
def test_a_damaged_state_is_named(tmp_path: Path, text: str) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    save(folder, 1)
    (tmp_path / "step_000001" / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"step_000001' is damaged"):
        folder.latest()


def test_a_missing_state_is_named(tmp_path: Path) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    save(folder, 1)
    (tmp_path / "step_000001" / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"step_000001' is damaged"):
        folder.latest()


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    save(folder, 1)
    (tmp_path / "step_000001" / "config.json").write_text('{"name": ')
    with pytest.raises(CheckpointError, match=r"step_000001' is damaged"):
        folder.latest()


@pytest.mark.parametrize("name", ["learner/shard", "prompt_states.npz", "state.json", "config.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_file_that_is_not_what_was_written_is_named_and_the_older_checkpoint_offered(
    tmp_path: Path, name: str, harm: str
) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    save(folder, 1)
    save(folder, 2)
    file = tmp_path / "step_000002" / name
    content = file.read_bytes()
    match harm:
        case "flip":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "cut":
            file.write_bytes(content[:-1])
        case _:
            file.unlink()
    with pytest.raises(CheckpointError, match=rf"step_000002' is damaged \({name} .*'step_000001', the one before"):
        folder.latest()
    shutil.rmtree(tmp_path / "step_000002")
    assert latest(folder).state.step == 1


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    save(folder, 1)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", full)
        with pytest.raises(CheckpointError, match=r"after step 2 can't be written .* No space left on device"):
            save(folder, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]
    assert latest(folder).state.step == 1


def test_there_may_be_no_checkpoint_yet(tmp_path: Path) -> None:
    assert CheckpointFolder(folder=tmp_path, config=run_config()).latest() is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"type": "scratch", "num_layers": 3}}, "model"),
        ({"prompts": {"train": {"type": "arithmetic", "size": 99}}}, "prompts"),
        ({"seed": 5}, "seed"),
        ({"prompts_per_step": 3, "seed": 5}, "seed, prompts_per_step"),
    ],
)
def test_settings_that_a_resumed_run_may_not_change(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    save(CheckpointFolder(folder=tmp_path, config=run_config()), 1)
    with pytest.raises(CheckpointError, match=f"other settings in {named}; resume with"):
        CheckpointFolder(folder=tmp_path, config=run_config(**changes)).latest()


def test_settings_that_a_resumed_run_may_change(tmp_path: Path) -> None:
    save(CheckpointFolder(folder=tmp_path, config=run_config()), 1)
    longer = run_config(num_steps=500, max_staleness=2, learner={"num_workers": 2})
    assert latest(CheckpointFolder(folder=tmp_path, config=longer)).state.step == 1
