"""The Ray Train worker group whose workers are the learner ranks."""

import os
from pathlib import Path
from typing import Any

from gvm_ray.actors.learner_rank import RankSetup, run_rank
from gvm_ray.learner.process_group import process_group_backend


def rank_trainer(setup: RankSetup, *, run_dir: str) -> Any:
    """A Ray Train v2 trainer whose workers are the ranks. It doesn't retry: the ranks' state would be lost."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
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
    learner = config.learner
    use_gpu = learner.gpus_per_worker > 0
    resources = {"CPU": learner.cpus_per_worker} | ({"GPU": learner.gpus_per_worker} if use_gpu else {})
    return Trainer(
        run_rank,
        train_loop_config={"rank": setup},
        torch_config=TorchConfig(
            backend=process_group_backend("cuda" if use_gpu else "cpu"), timeout_s=int(config.deadlines.update_s)
        ),
        scaling_config=ScalingConfig(num_workers=learner.num_workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name="learners",
            storage_path=str(Path(run_dir).absolute()),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
