"""The resources of a run, before it starts: its actors, those that share a GPU, and the contents of its memory.

Arithmetic on settings and the model's widths: no cluster is asked and no large library imported. Whether the cluster
has as many CPUs and GPUs is seen when the run connects to it.
"""

from gvm_ray.resources.hardware import Hardware, Memory, find_hardware, generator_bundles, rank_gpus
from gvm_ray.resources.parts import sizes_of_settings
from gvm_ray.resources.plan import ActorGroup, Device, ResourcePlan, actor_groups, plan_resources

__all__ = [
    "ActorGroup",
    "Device",
    "Hardware",
    "Memory",
    "ResourcePlan",
    "actor_groups",
    "find_hardware",
    "generator_bundles",
    "plan_resources",
    "rank_gpus",
    "sizes_of_settings",
]
