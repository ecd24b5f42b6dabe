"""Allocators: the number of samples of each prompt. One file per strategy, its settings beside it."""

from typing import Annotated

from pydantic import Field

from gvm_ray.allocators.base import Allocator, Report, Rounds, Step
from gvm_ray.allocators.custom import CustomAllocatorConfig
from gvm_ray.allocators.driver import AllocationDriver
from gvm_ray.allocators.gvm import GVMAllocatorConfig
from gvm_ray.allocators.gvm_online import GVMOnlineAllocatorConfig, NeymanAllocatorConfig
from gvm_ray.allocators.gvm_pool import GVMPoolAllocatorConfig
from gvm_ray.allocators.rivals.cures import CurESAllocatorConfig
from gvm_ray.allocators.rivals.dapo import DAPOAllocatorConfig
from gvm_ray.allocators.rivals.dps import DPSAllocatorConfig
from gvm_ray.allocators.rivals.ebpo import EBPOAllocatorConfig
from gvm_ray.allocators.rivals.greso import GRESOAllocatorConfig
from gvm_ray.allocators.rivals.hive import HIVEAllocatorConfig
from gvm_ray.allocators.rivals.knapsack import KnapsackAllocatorConfig
from gvm_ray.allocators.rivals.mopps import MoPPSAllocatorConfig
from gvm_ray.allocators.rivals.offline_filter import OfflineFilterAllocatorConfig
from gvm_ray.allocators.rivals.pods import PODSAllocatorConfig
from gvm_ray.allocators.rivals.poise import POISEAllocatorConfig
from gvm_ray.allocators.rivals.reinforce_ada_est import ReinforceAdaEstAllocatorConfig
from gvm_ray.allocators.rivals.reinforce_ada_seq import ReinforceAdaSeqAllocatorConfig
from gvm_ray.allocators.rivals.speed import SPEEDAllocatorConfig
from gvm_ray.allocators.rivals.spo import SPOAllocatorConfig
from gvm_ray.allocators.rivals.vip import VIPAllocatorConfig
from gvm_ray.allocators.uniform import UniformAllocatorConfig

__all__ = ["AllocationDriver", "Allocator", "AllocatorSettings", "Report", "Rounds", "Step"]

# Add an allocator here: the settings name the strategy, and the contract tests run over them all.
AllocatorSettings = Annotated[
    UniformAllocatorConfig
    | GVMAllocatorConfig
    | GVMPoolAllocatorConfig
    | GVMOnlineAllocatorConfig
    | NeymanAllocatorConfig
    | SPOAllocatorConfig
    | EBPOAllocatorConfig
    | ReinforceAdaEstAllocatorConfig
    | ReinforceAdaSeqAllocatorConfig
    | VIPAllocatorConfig
    | KnapsackAllocatorConfig
    | CurESAllocatorConfig
    | DAPOAllocatorConfig
    | SPEEDAllocatorConfig
    | GRESOAllocatorConfig
    | MoPPSAllocatorConfig
    | DPSAllocatorConfig
    | HIVEAllocatorConfig
    | POISEAllocatorConfig
    | PODSAllocatorConfig
    | OfflineFilterAllocatorConfig
    | CustomAllocatorConfig,
    Field(discriminator="type"),
]
