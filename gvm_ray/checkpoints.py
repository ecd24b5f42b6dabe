"""Checkpoints on disk: one folder each, complete or absent.

``step_000010/`` holds ``state.json`` (step, prompt cursor, allocator memory, costs), ``config.json`` and ``learner/``
(sharded model and optimizer). It is written under another name and renamed when complete, so that a crash while saving
leaves the last good one.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from gvm_ray.config import RunConfig
from gvm_ray.exceptions import CheckpointError
from gvm_ray.protocols import Learners
from gvm_ray.types import CheckpointState

# What a resumed run may not change, because the saved tensors or the saved cursor would not fit.
_FIXED_SECTIONS = ("model", "prompts", "seed", "prompts_per_step")


@dataclass(frozen=True, kw_only=True)
class RestoredCheckpoint:
    """What a resumed run starts from."""

    state: CheckpointState
    learner: Path  # folder of the sharded model and optimizer


@dataclass(frozen=True, kw_only=True)
class CheckpointFolder:
    """The checkpoints of one run."""

    folder: Path
    config: RunConfig

    async def save(self, state: CheckpointState, learners: Learners) -> None:
        """Write a complete checkpoint, then drop the oldest ones beyond `checkpoint.keep`."""
        target = self.folder / f"step_{state.step:06d}"
        incomplete = self.folder / f".incomplete-{target.name}"
        shutil.rmtree(incomplete, ignore_errors=True)
        incomplete.mkdir(parents=True)
        await learners.save(str(incomplete / "learner"))
        (incomplete / "config.json").write_text(self.config.model_dump_json(indent=2), encoding="utf-8")
        (incomplete / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(incomplete, target)
        for old in self.complete()[: -self.config.checkpoint.keep]:
            shutil.rmtree(old)

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step_*"))

    def latest(self) -> RestoredCheckpoint:
        """The newest checkpoint.

        Raises:
            CheckpointError: there is none, it is damaged, or it belongs to another configuration.
        """
        found = self.complete()
        if not found:
            raise CheckpointError(f"--resume: no checkpoint in {str(self.folder)!r}; start without --resume")
        newest = found[-1]
        try:
            state = CheckpointState(**json.loads((newest / "state.json").read_text(encoding="utf-8")))
            saved = json.loads((newest / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"checkpoint {str(newest)!r} is damaged ({error}); remove that folder to resume from the one before"
            ) from error
        self._check_same(saved, newest)
        return RestoredCheckpoint(state=state, learner=newest / "learner")

    def _check_same(self, saved: dict[str, object], origin: Path) -> None:
        present = json.loads(self.config.model_dump_json())
        changed = [name for name in _FIXED_SECTIONS if saved.get(name) != present[name]]
        if changed:
            raise CheckpointError(
                f"checkpoint {str(origin)!r} was made with other settings in {', '.join(changed)}; resume with the "
                "run's own config, or start a new run with --set name=..."
            )


class NoCheckpoints:
    """Protocol `Checkpoints` of a run that is never resumed."""

    async def save(self, state: CheckpointState, learners: Learners) -> None: ...
