"""What learner ranks and generators ask of Ray's account of GPUs; memory isn't parted by it.

Ray gives out a part of a GPU where the least is left that suffices. Of these two parts, a generator's takes a GPU on
which no other generator's fits, and a rank's then what a generator left: each GPU holds one of both, also where the
cluster has more GPUs than the run needs. So generators are to be placed first.
"""

from gvm_ray.config import RunConfig

_COLOCATED_GENERATOR = 0.6
_COLOCATED_RANK = 0.4


def rank_gpus(config: RunConfig) -> float:
    """GPUs of one learner rank."""
    return _COLOCATED_RANK if config.cluster.placement == "colocated" else config.learner.gpus_per_worker


def generator_bundles(config: RunConfig) -> tuple[float, ...]:
    """GPUs of each bundle of resources that one generator needs, all of them on one node; empty without GPUs.

    A bundle that is a part of a GPU, of which more than one can't be had as one, is that of a tensor-parallel part.
    """
    engine = config.engine
    if config.cluster.placement == "colocated":
        return (_COLOCATED_GENERATOR,) * engine.tensor_parallel_size
    return (engine.gpus_per_generator,) if engine.gpus_per_generator else ()
