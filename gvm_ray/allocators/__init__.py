"""Who gets how many samples: one file per strategy, made from its settings by `create_allocator`."""

from gvm_ray.allocators.cures import CurESAllocator
from gvm_ray.allocators.dapo import DAPOAllocator
from gvm_ray.allocators.greso import GRESOAllocator
from gvm_ray.allocators.gvm import GVMAllocator
from gvm_ray.allocators.gvm_online import GVMOnlineAllocator
from gvm_ray.allocators.gvm_pool import GVMPoolAllocator
from gvm_ray.allocators.knapsack import KnapsackAllocator
from gvm_ray.allocators.mopps import MoPPSAllocator
from gvm_ray.allocators.neyman import NeymanAllocator
from gvm_ray.allocators.offline_filter import OfflineFilterAllocator
from gvm_ray.allocators.pods import PODSAllocator
from gvm_ray.allocators.reinforce_ada_est import ReinforceAdaEstAllocator
from gvm_ray.allocators.reinforce_ada_seq import ReinforceAdaSeqAllocator
from gvm_ray.allocators.speed import SPEEDAllocator
from gvm_ray.allocators.steps import AllocatorSteps
from gvm_ray.allocators.uniform import UniformAllocator
from gvm_ray.allocators.vip import VIPAllocator
from gvm_ray.config.allocators import (
    AllocatorSettings,
    CustomAllocatorConfig,
    GVMAllocatorConfig,
    UniformAllocatorConfig,
)
from gvm_ray.config.history_allocators import (
    CurESAllocatorConfig,
    KnapsackAllocatorConfig,
    ReinforceAdaEstAllocatorConfig,
    ReinforceAdaSeqAllocatorConfig,
    VIPAllocatorConfig,
)
from gvm_ray.config.predictive_allocators import (
    GVMOnlineAllocatorConfig,
    GVMPoolAllocatorConfig,
    NeymanAllocatorConfig,
)
from gvm_ray.config.selecting_allocators import (
    DAPOAllocatorConfig,
    GRESOAllocatorConfig,
    MoPPSAllocatorConfig,
    OfflineFilterAllocatorConfig,
    PODSAllocatorConfig,
    SPEEDAllocatorConfig,
)
from gvm_ray.exceptions import ConfigError
from gvm_ray.functional.import_path import create_from_path
from gvm_ray.protocols import AllocatorStrategy

__all__ = ["AllocatorSteps", "GVMAllocator", "UniformAllocator", "create_allocator"]


def create_allocator(config: AllocatorSettings, *, accept_threshold: float, seed: int = 0) -> AllocatorStrategy:
    """The strategy that `config` names.

    Args:
        config: its settings.
        accept_threshold: a sample is accepted (a success) when its reward is at least this.
        seed: of what the strategy draws at random.

    Raises:
        ConfigError: a custom allocator can't be imported or made.
    """
    match config:
        case UniformAllocatorConfig():
            return UniformAllocator(accept_threshold=accept_threshold)
        case GVMAllocatorConfig():
            return GVMAllocator(config, accept_threshold=accept_threshold)
        case GVMPoolAllocatorConfig():
            return GVMPoolAllocator(config, accept_threshold=accept_threshold, seed=seed)
        case GVMOnlineAllocatorConfig():
            return GVMOnlineAllocator(config, accept_threshold=accept_threshold, seed=seed)
        case NeymanAllocatorConfig():
            return NeymanAllocator(config, accept_threshold=accept_threshold, seed=seed)
        case ReinforceAdaEstAllocatorConfig():
            return ReinforceAdaEstAllocator(config, accept_threshold=accept_threshold)
        case ReinforceAdaSeqAllocatorConfig():
            return ReinforceAdaSeqAllocator(config, accept_threshold=accept_threshold)
        case VIPAllocatorConfig():
            return VIPAllocator(config, accept_threshold=accept_threshold)
        case KnapsackAllocatorConfig():
            return KnapsackAllocator(config, accept_threshold=accept_threshold)
        case CurESAllocatorConfig():
            return CurESAllocator(config, accept_threshold=accept_threshold, seed=seed)
        case DAPOAllocatorConfig():
            return DAPOAllocator(config, accept_threshold=accept_threshold)
        case SPEEDAllocatorConfig():
            return SPEEDAllocator(config, accept_threshold=accept_threshold)
        case GRESOAllocatorConfig():
            return GRESOAllocator(config, accept_threshold=accept_threshold, seed=seed)
        case MoPPSAllocatorConfig():
            return MoPPSAllocator(config, accept_threshold=accept_threshold, seed=seed)
        case PODSAllocatorConfig():
            return PODSAllocator(config, accept_threshold=accept_threshold)
        case OfflineFilterAllocatorConfig():
            return OfflineFilterAllocator(config, accept_threshold=accept_threshold)
        case CustomAllocatorConfig():
            return _custom_allocator(config, accept_threshold=accept_threshold)


def _custom_allocator(config: CustomAllocatorConfig, *, accept_threshold: float) -> AllocatorStrategy:
    parameters = {"accept_threshold": accept_threshold, **config.parameters}
    try:
        return create_from_path(config.path, parameters=parameters, protocol=AllocatorStrategy)
    except ImportError as error:
        raise ConfigError(f"allocator.path: {error}") from error
