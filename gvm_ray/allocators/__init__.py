"""Who gets how many samples: one file per strategy, made from its settings by `create_allocator`."""

from gvm_ray.allocators.gvm import GVMAllocator
from gvm_ray.allocators.uniform import UniformAllocator
from gvm_ray.config.strategy import AllocatorSettings, GVMAllocatorConfig, UniformAllocatorConfig
from gvm_ray.protocols import AllocatorStrategy

__all__ = ["GVMAllocator", "UniformAllocator", "create_allocator"]


def create_allocator(config: AllocatorSettings, *, accept_threshold: float) -> AllocatorStrategy:
    """The strategy that `config` names.

    Args:
        config: its settings.
        accept_threshold: a sample is accepted (a success) when its reward is at least this.
    """
    match config:
        case UniformAllocatorConfig():
            return UniformAllocator(accept_threshold=accept_threshold)
        case GVMAllocatorConfig():
            return GVMAllocator(config, accept_threshold=accept_threshold)
