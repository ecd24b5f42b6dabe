"""A learner of a real model, and batches as an algorithm makes them of its samples."""

from collections.abc import Mapping, Sequence
from typing import Any

from gvm_ray.algorithms import create_algorithm, token_loss
from gvm_ray.config import RunConfig
from gvm_ray.learner.learner import Learner
from gvm_ray.types import EstimatorTerms, GroupOutcome, GroupRef, RolloutGroup, TrainBatch
from tests.learner_cases import OPTIMIZER, learner_config


def config_of(folder: str, *, algorithm: Mapping[str, Any], **learner: Any) -> RunConfig:
    """A run from this model with settings of the learner."""
    return learner_config(
        model={"type": "pretrained", "path": folder},
        sampling={"temperature": 1.0},
        algorithm=dict(algorithm),
        learner={"optimizer": OPTIMIZER, **learner},
        warm_start=None,
    )


def learner_of(config: RunConfig, folder: str) -> Learner:
    """One rank with all of the model."""
    return Learner(config, base_path=folder, token_loss=token_loss(config.algorithm))


def batch_of(config: RunConfig, groups: Sequence[RolloutGroup]) -> TrainBatch:
    """The run's first batch."""
    outcomes = [GroupOutcome.of(group, ref=GroupRef(ref=None, index=i)) for i, group in enumerate(groups)]
    algorithm = create_algorithm(config.algorithm, accept_threshold=config.rewards.accept_threshold)
    return algorithm.build_batch(outcomes, step=0, terms=EstimatorTerms(num_prompts=len(groups)))
