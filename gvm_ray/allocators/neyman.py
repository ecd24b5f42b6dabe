"""Neyman's split of the step's budget: more samples where a prompt's rewards vary more."""

from gvm_ray.allocators.gvm_online import GVMOnlineAllocator


class NeymanAllocator(GVMOnlineAllocator):
    """n ~ sqrt(p (1 - p)), or sqrt((1 - p) / p) for the log pass rate, with predicted p."""
