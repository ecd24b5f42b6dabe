"""Learning algorithms: `create_algorithm` builds the training batches, `token_loss` is the learners' loss."""

from typing import TYPE_CHECKING

from gvm_ray.algorithms.grpo import GRPO, RLOO, ReinforcePlusPlus
from gvm_ray.algorithms.raft import Raft
from gvm_ray.config.strategy import (
    AlgorithmSettings,
    CustomAlgorithmConfig,
    DrGRPOConfig,
    GRPOConfig,
    RaftConfig,
    RaftPlusPlusConfig,
    ReinforcePlusPlusConfig,
    RLOOConfig,
)
from gvm_ray.exceptions import ConfigError
from gvm_ray.protocols import Algorithm
from gvm_ray.settings import create_from_path

if TYPE_CHECKING:
    from gvm_ray.algorithms.loss import AlgorithmLoss

__all__ = ["GRPO", "RLOO", "Raft", "ReinforcePlusPlus", "create_algorithm", "token_loss"]


def create_algorithm(config: AlgorithmSettings, *, accept_threshold: float) -> Algorithm:
    """Create the algorithm that `config` names.

    Args:
        config: the algorithm's settings.
        accept_threshold: a sample is accepted when its reward is at least this.

    Raises:
        ConfigError: a custom algorithm can't be imported or constructed.
    """
    match config:
        case RaftConfig() | RaftPlusPlusConfig():
            return Raft(config, accept_threshold=accept_threshold)
        case GRPOConfig() | DrGRPOConfig():
            return GRPO(config, accept_threshold=accept_threshold)
        case RLOOConfig():
            return RLOO(config, accept_threshold=accept_threshold)
        case ReinforcePlusPlusConfig():
            return ReinforcePlusPlus(config, accept_threshold=accept_threshold)
        case CustomAlgorithmConfig():
            return _custom_algorithm(config, accept_threshold=accept_threshold)


def _custom_algorithm(config: CustomAlgorithmConfig, *, accept_threshold: float) -> Algorithm:
    parameters = {"accept_threshold": accept_threshold, **config.parameters}
    try:
        return create_from_path(config.path, config, parameters=parameters, protocol=Algorithm)
    except ImportError as error:
        raise ConfigError(f"algorithm.path: {error}") from error


def token_loss(config: AlgorithmSettings) -> "AlgorithmLoss":
    """Return the algorithm's loss for the learners. Imports torch, which building batches doesn't need."""
    from gvm_ray.algorithms.loss import AlgorithmLoss

    return AlgorithmLoss.from_settings(config)
