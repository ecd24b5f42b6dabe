"""A Ray cluster for the parts that need one and are no whole run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def local_cluster(*, num_cpus: int = 4, object_store_mb: int = 512) -> Iterator[None]:
    """A local cluster for as long as this lasts; the one that this process is connected to, where it is.

    Args:
        num_cpus: logical CPUs.
        object_store_mb: MiB of shared memory.
    """
    if ray.is_initialized():
        yield
        return
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=object_store_mb * 2**20,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()
