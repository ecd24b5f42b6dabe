"""Fixtures that every kind of test shares: one local Ray cluster for the whole session, a tiny base model."""

import os
from collections.abc import Iterator

import hypothesis  # its plugin would import it when the session ends, where Python 3.11 can fail to parse it
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)  # no test depends on how long it takes
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)  # for `make test`
hypothesis.settings.load_profile("untimed")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster of this test session; CPUs are logical, so more actors than cores can run, and GPUs made up."""
    import ray

    for last in (False, True):  # Ray gives itself 15 s to start, which on a busy machine may be too little once
        try:
            ray.init(
                address="local",
                num_cpus=32,
                num_gpus=4,
                include_dashboard=False,
                object_store_memory=2 * 2**30,  # the weights of a real model, twice
                namespace="gvm_ray",
                log_to_driver=True,
            )
            break
        except Exception:  # Ray raises no narrower one
            ray.shutdown()
            if last:
                raise
    yield
    ray.shutdown()
