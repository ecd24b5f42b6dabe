"""Disks that are full or can't be written: said before anything starts, or with the folder's name and nothing lost."""

import asyncio
import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gvm_ray.checkpoints import CheckpointFolder
from gvm_ray.config import RunConfig, parse_config
from gvm_ray.exceptions import CheckpointError, ConfigError, ResourceError, StorageFailure
from gvm_ray.learner.learner import Learner
from gvm_ray.reporting import RunFolder, read_rows
from gvm_ray.types import CheckpointState
from tests.learner_cases import SurrogateLoss, batch_of, build_tiny_model, learner_config, ragged_groups

pytestmark = pytest.mark.faults


def run_config(runs_dir: Path | str, **settings: Any) -> RunConfig:
    return parse_config(
        {
            "name": "t",
            "runs_dir": str(runs_dir),
            "model": {"type": "scratch"},
            "prompts": {"train": {"type": "arithmetic"}},
            **settings,
        }
    )


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def under_file_limit(code: str, folder: Path, *, limit: int) -> str:
    """Output of a program that may write no file larger than `limit` bytes, which fails as a full disk does."""
    prelude = f"import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(code), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- before the run ---------------------------------------------------------------------------------------------------
def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    for path in (tmp_path / "runs", tmp_path / "runs" / "t"):
        with pytest.raises(ResourceError, match=r"run folder .* can't be written .* MiB are free.*--set runs_dir="):
            RunFolder(path).create()


def test_a_name_that_no_folder_can_have() -> None:
    with pytest.raises(ResourceError, match="File name too long"):
        RunFolder(Path("x" * 300)).create()
    with pytest.raises(ConfigError, match="runs_dir"):
        run_config("a\0b")


def test_a_disk_that_takes_folders_but_no_data(tmp_path: Path) -> None:
    code = """
        from pathlib import Path
        from gvm_ray.exceptions import ResourceError
        from gvm_ray.reporting import RunFolder
        try:
            RunFolder(Path(sys.argv[1]) / "t").create()
        except ResourceError as error:
            print(error)
    """
    assert "can't be written ([Errno 27] File too large" in under_file_limit(code, tmp_path, limit=4096)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    assert under_file_limit(code, tmp_path, limit=2**21) == ""


def test_nothing_heavy_starts_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gvm_ray import run

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    monkeypatch.setattr(run, "prepare", lambda *_, **__: pytest.fail("the model was built"))
    with pytest.raises(ResourceError, match="No space left on device"):
        run.train(run_config(tmp_path))


# --- during the run ---------------------------------------------------------------------------------------------------
def test_metrics_have_whole_rows_after_the_disk_was_full(tmp_path: Path) -> None:
    code = """
        from pathlib import Path
        from gvm_ray.config import parse_config
        from gvm_ray.exceptions import StorageFailure
        from gvm_ray.reporting import REQUIRED_KEYS, Reporter, RunFolder
        config = parse_config({
            "name": "t", "model": {"type": "scratch"}, "prompts": {"train": {"type": "arithmetic"}},
            "reporting": {"tensorboard": False, "progress": False},
        })
        folder = RunFolder(Path(sys.argv[1]))
        metrics = dict.fromkeys([*sorted(REQUIRED_KEYS), "x" * 600], 1.0)  # rows of 900 to 1000 bytes
        start = int((folder.path / "start").read_text())
        try:
            with folder.disk_errors(), Reporter(config, folder.path, start_step=start) as reporter:
                for step in range(start, 20):
                    reporter.log_step(step, metrics)
        except StorageFailure as error:
            print("FAILED", error)
    """
    (tmp_path / "start").write_text("0")
    output = under_file_limit(code, tmp_path, limit=2300)
    failure = output[output.index("FAILED") :]
    assert f"{str(tmp_path)!r} can't be written" in failure
    assert "MiB are free there" in failure
    steps = [row["step"] for row in read_rows(RunFolder(tmp_path).metrics)]
    assert steps == [0, 1]
    assert not RunFolder(tmp_path).metrics.read_bytes().endswith(b"\n")  # the last row was cut

    (tmp_path / "start").write_text(str(len(steps)))
    assert "FAILED" not in under_file_limit(code, tmp_path, limit=2**20)
    lines = RunFolder(tmp_path).metrics.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(20))


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_an_error_of_the_disk_names_the_folder(tmp_path: Path, error: int) -> None:
    expected = rf"t' can't be written \(\[Errno {error}\].*--resume"
    with pytest.raises(StorageFailure, match=expected), RunFolder(tmp_path / "t").disk_errors():
        raise OSError(error, os.strerror(error))


def test_other_errors_keep_their_names(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError), RunFolder(tmp_path).disk_errors():
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")


class DiskLearners:
    """What checkpoints ask of learners, by one learner in this process."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    async def save(self, folder: str) -> None:
        self._learner.save(folder)

    def checkpointed(self, folder: str) -> None:
        pass


def fail_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.checkpoint import filesystem

    monkeypatch.setattr(filesystem.FileSystemWriter, "write_data", full)


def fail_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", full)


@pytest.mark.parametrize("fail", [fail_learner, fail_driver])
def test_the_last_checkpoint_outlives_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[pytest.MonkeyPatch], None]
) -> None:
    base, groups = build_tiny_model(tmp_path / "base"), ragged_groups()
    config = learner_config()
    learner = Learner(config, base_path=base, token_loss=SurrogateLoss())
    folder = RunFolder(tmp_path / "t")
    folder.create()
    checkpoints = CheckpointFolder(folder=folder.checkpoints, config=config)

    def save(step: int) -> None:
        state = CheckpointState(step=step, policy_version=step, cursor={}, allocator={}, costs={})
        with folder.disk_errors():
            asyncio.run(checkpoints.save(state, DiskLearners(learner)))  # pyright: ignore[reportArgumentType]

    save(1)
    saved = {name: tensor.clone() for name, tensor in learner.named_full_tensors()}
    learner.update(batch_of(groups), groups)
    with monkeypatch.context() as broken:
        fail(broken)
        with pytest.raises((StorageFailure, CheckpointError), match=r"can't be written .*No space left on device"):
            save(2)

    restored = checkpoints.latest()
    assert restored.state.step == 1
    learner.load(str(restored.learner))
    assert all((tensor == saved[name]).all() for name, tensor in learner.named_full_tensors())
    save(2)  # there is room again
    assert checkpoints.latest().state.step == 2


def test_an_export_to_a_full_disk_names_its_folder(tmp_path: Path) -> None:
    learner = Learner(learner_config(), base_path=build_tiny_model(tmp_path / "base"), token_loss=SurrogateLoss())
    (tmp_path / "model").write_text("a file where the folder should be")
    with pytest.raises(StorageFailure, match=r"model' can't be written"):
        learner.export(str(tmp_path / "model"))
