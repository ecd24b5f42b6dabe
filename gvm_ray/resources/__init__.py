"""The resources of a run, before it starts: its actors, those that share a GPU, and the contents of its memory.

Arithmetic on settings and the model's widths: no cluster is asked and no large library imported. Whether the cluster
has as many CPUs and GPUs is seen when the run connects to it.
"""

from gvm_ray.resources.hardware import (
    Hardware,
    Memory,
    find_hardware,
    generator_bundles,
    logical_cpus,
    rank_gpus,
    this_machine,
)
from gvm_ray.resources.parts import sizes_of_settings
from gvm_ray.resources.plan import ActorGroup, Device, ResourcePlan, actor_groups, plan_resources
from gvm_ray.resources.threads import Machines, Threads, plan_threads, thread_variables

__all__ = [
    "ActorGroup",
    "Device",
    "Hardware",
    "Machines",
    "Memory",
    "ResourcePlan",
    "Threads",
    "actor_groups",
    "find_hardware",
    "generator_bundles",
    "logical_cpus",
    "plan_resources",
    "plan_threads",
    "rank_gpus",
    "sizes_of_settings",
    "this_machine",
    "thread_variables",
]
