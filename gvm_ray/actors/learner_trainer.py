"""The Ray Train worker group whose workers are the learner ranks."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gvm_ray.actors.commands import absolute
from gvm_ray.actors.learner_rank import LearnerSetup, RankSetup, run_rank
from gvm_ray.config import RunConfig
from gvm_ray.config.model import LearnerConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.learner.process_group import process_group_backend
from gvm_ray.learner.token_loss import TokenLoss
from gvm_ray.resources import rank_gpus
from gvm_ray.types import WeightTransfer

_NODE_ID = "ray.io/node-id"  # a label that Ray gives every node


def learner_setup(
    config: RunConfig, *, base_path: str, token_loss: TokenLoss, transfer: WeightTransfer
) -> LearnerSetup:
    """What the ranks' learners are made of."""
    path = absolute(base_path) if Path(base_path).is_dir() else base_path  # else a hub id
    return LearnerSetup(config=config, base_path=path, token_loss=token_loss, transfer=transfer)


def check_ranks_fit(wanted: LearnerConfig, present: LearnerConfig) -> None:
    """Raises:
    ConfigError: a run wants other ranks than those that there are.
    """
    for name in ("num_workers", "cpus_per_worker", "gpus_per_worker"):
        new, old = getattr(wanted, name), getattr(present, name)
        if new != old:
            raise ConfigError(
                f"learner.{name}={new} differs from the {old} that the learners were started with, and a reset keeps "
                f"the ranks; write {name}={old}, or start other learners"
            )


def rank_resources(config: RunConfig, *, nodes: Sequence[str] = ()) -> Any:
    """Ray Train's ScalingConfig of the ranks; see `rank_trainer`."""
    from ray.train import ScalingConfig

    learner = config.learner
    use_gpu = learner.gpus_per_worker > 0
    return ScalingConfig(
        num_workers=learner.num_workers,
        use_gpu=use_gpu,
        resources_per_worker={"CPU": learner.cpus_per_worker} | ({"GPU": rank_gpus(config)} if use_gpu else {}),
        label_selector=[{_NODE_ID: node} for node in nodes] or None,
    )


def rank_trainer(setup: RankSetup, *, run_dir: str, nodes: Sequence[str] = ()) -> Any:
    """A Ray Train v2 trainer whose workers are the ranks. It doesn't retry: the ranks' state would be lost.

    Args:
        setup: of each rank.
        run_dir: the run's folder.
        nodes: Ray's id of the node of each rank, where generators that share GPUs with them are; else Ray chooses.
    """
    from ray.train import FailureConfig, LoggingConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    class Trainer(TorchTrainer):
        """Without Ray Train's placement-group cleaner, an actor that asks the dashboard whether the controller lives.

        Where the cluster has no dashboard of its own, and another cluster's listens on that port, the answer is that
        there is no such actor, and the cleaner then takes the ranks' placement group away. Nothing is lost with it: a
        placement group ends with the actor that made it.
        """

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]

    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nothing here acts on its notices
    config = setup.learner.config
    use_gpu = config.learner.gpus_per_worker > 0
    return Trainer(
        run_rank,
        train_loop_config={"rank": setup},
        torch_config=TorchConfig(
            backend=process_group_backend("cuda" if use_gpu else "cpu"), timeout_s=int(config.deadlines.update_s)
        ),
        scaling_config=rank_resources(config, nodes=nodes),
        run_config=RunConfig(
            name="learners",
            storage_path=str(Path(run_dir).absolute()),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
