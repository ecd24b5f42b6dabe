"""What learner ranks and generators ask of Ray's account of GPUs; memory isn't parted by it.

Ray gives out a part of a GPU where the least is left that suffices. Of these two parts, a generator's takes a GPU on
which no other generator's fits, and a rank's then what a generator left: each GPU holds one of both, also where the
cluster has more GPUs than the run needs. So generators are to be placed first.
"""

from gvm_ray.config import RunConfig
from gvm_ray.config.run import EngineConfig, Placement

_COLOCATED_GENERATOR = 0.6
_COLOCATED_RANK = 0.4


def rank_gpus(config: RunConfig) -> float:
    """GPUs of one learner rank."""
    return _COLOCATED_RANK if config.cluster.placement == "colocated" else config.learner.gpus_per_worker


def generator_bundles(engine: EngineConfig, *, placement: Placement) -> tuple[float, ...]:
    """GPUs of each bundle of resources that one generator needs, all of them on one node; empty without GPUs.

    Whole GPUs are one bundle. Parts of several GPUs can't be one, and so are one for each tensor-parallel part.
    """
    if placement == "colocated":
        return (_COLOCATED_GENERATOR,) * engine.tensor_parallel_size
    return (engine.gpus_per_generator,) if engine.gpus_per_generator else ()
