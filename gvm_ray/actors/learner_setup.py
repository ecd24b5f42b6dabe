"""What the ranks of a learner group are made of, and what a reset of theirs can't change."""

from pathlib import Path

from gvm_ray.actors.learner_rank import LearnerSetup
from gvm_ray.config import RunConfig
from gvm_ray.config.model import LearnerConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.learner.token_loss import TokenLoss
from gvm_ray.types import WeightTransfer


def learner_setup(
    config: RunConfig, *, base_path: str, token_loss: TokenLoss, transfer: WeightTransfer
) -> LearnerSetup:
    """With a path that holds in the ranks too."""
    path = absolute(base_path) if Path(base_path).is_dir() else base_path  # else a hub id
    return LearnerSetup(config=config, base_path=path, token_loss=token_loss, transfer=transfer)


def check_ranks_fit(wanted: LearnerConfig, present: LearnerConfig) -> None:
    """Raises:
    ConfigError: a run asks for other ranks than these.
    """
    for name in ("num_workers", "cpus_per_worker", "gpus_per_worker"):
        new, old = getattr(wanted, name), getattr(present, name)
        if new != old:
            raise ConfigError(
                f"learner.{name}={new} differs from the {old} that the learners were started with, and a reset keeps "
                f"the ranks; write {name}={old}, or start other learners"
            )


def absolute(folder: str) -> str:
    """The ranks have another working directory than the driver."""
    return str(Path(folder).absolute())
