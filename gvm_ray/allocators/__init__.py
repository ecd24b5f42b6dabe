"""Who gets how many samples: one file per strategy, made from its settings by `create_allocator`."""

from gvm_ray.allocators.base import Allocator, Report, Rounds, Step
from gvm_ray.allocators.driver import AllocationDriver
from gvm_ray.allocators.gvm import GVMAllocator
from gvm_ray.allocators.gvm_pool import GVMOnlineAllocator, GVMPoolAllocator
from gvm_ray.allocators.rivals.cures import CurESAllocator
from gvm_ray.allocators.rivals.dapo import DAPOAllocator
from gvm_ray.allocators.rivals.greso import GRESOAllocator
from gvm_ray.allocators.rivals.knapsack import KnapsackAllocator
from gvm_ray.allocators.rivals.mopps import MoPPSAllocator
from gvm_ray.allocators.rivals.offline_filter import OfflineFilterAllocator
from gvm_ray.allocators.rivals.pods import PODSAllocator
from gvm_ray.allocators.rivals.reinforce_ada_est import ReinforceAdaEstAllocator
from gvm_ray.allocators.rivals.reinforce_ada_seq import ReinforceAdaSeqAllocator
from gvm_ray.allocators.rivals.speed import SPEEDAllocator
from gvm_ray.allocators.rivals.vip import VIPAllocator
from gvm_ray.allocators.uniform import UniformAllocator
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
from gvm_ray.functional.import_path import import_object

__all__ = [
    "AllocationDriver",
    "Allocator",
    "GVMAllocator",
    "Report",
    "Rounds",
    "Step",
    "UniformAllocator",
    "create_allocator",
]


def create_allocator(config: AllocatorSettings, *, accept_threshold: float, seed: int = 0) -> Allocator:
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
            return UniformAllocator()
        case GVMAllocatorConfig():
            return GVMAllocator(config)
        case GVMPoolAllocatorConfig():
            return GVMPoolAllocator(config, accept_threshold=accept_threshold, seed=seed)
        case GVMOnlineAllocatorConfig():
            return GVMOnlineAllocator(config, accept_threshold=accept_threshold, seed=seed)
        case NeymanAllocatorConfig():
            return GVMOnlineAllocator(config, accept_threshold=accept_threshold, seed=seed)
        case ReinforceAdaEstAllocatorConfig():
            return ReinforceAdaEstAllocator(config)
        case ReinforceAdaSeqAllocatorConfig():
            return ReinforceAdaSeqAllocator(config, accept_threshold=accept_threshold)
        case VIPAllocatorConfig():
            return VIPAllocator(config)
        case KnapsackAllocatorConfig():
            return KnapsackAllocator(config)
        case CurESAllocatorConfig():
            return CurESAllocator(config)
        case DAPOAllocatorConfig():
            return DAPOAllocator(config)
        case SPEEDAllocatorConfig():
            return SPEEDAllocator(config)
        case GRESOAllocatorConfig():
            return GRESOAllocator(config, accept_threshold=accept_threshold)
        case MoPPSAllocatorConfig():
            return MoPPSAllocator(config)
        case PODSAllocatorConfig():
            return PODSAllocator(config)
        case OfflineFilterAllocatorConfig():
            return OfflineFilterAllocator(config)
        case CustomAllocatorConfig():
            return _custom_allocator(config)


_SHAPE = """
    from gvm_ray.allocators import Allocator

    class MyAllocator(Allocator):
        def rounds(self, step):  # step.ids, .budget, .memory, .samples, .states, .rng
            outcomes = yield {prompt_id: step.budget // len(step.ids) for prompt_id in step.ids}"""


def _custom_allocator(config: CustomAllocatorConfig) -> Allocator:
    try:
        made = import_object(config.path)(**config.parameters)
    except ImportError as error:
        raise ConfigError(f"allocator.path: {error}") from error
    except TypeError as error:
        raise ConfigError(
            f"allocator.path: {config.path!r} can't be called with {sorted(config.parameters)}: {error}; "
            f"an allocator has this shape:{_SHAPE}"
        ) from error
    if not isinstance(made, Allocator):
        raise ConfigError(f"allocator.path: {config.path!r} makes no Allocator; write{_SHAPE}")
    return made
