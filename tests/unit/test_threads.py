"""Threads of each actor, by the machine's cores, the actors there, and whether sampling and learning overlap."""

from typing import Any

import pytest

from gvm_ray.config import RunConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.resources import Hardware, Machines, Memory, Threads, plan_resources, plan_threads, sizes_of_settings
from tests.resource_plans import GIB, run_config

TWO_CORES = Machines(number=1, cores=2)


def on_cpu(**changes: Any) -> RunConfig:
    return run_config(
        **{
            **changes,
            "learner": {"gpus_per_worker": 0, "dtype": "float32"} | changes.get("learner", {}),
            "engine": {"gpus_per_generator": 0, "dtype": "float32"} | changes.get("engine", {}),
        }
    )


def threads(config: RunConfig, machines: Machines = TWO_CORES, *, environment: dict[str, str] | None = None) -> Threads:
    return plan_threads(config, machines, environment=environment or {})


def test_alternating_phases_have_all_cores_and_overlapping_ones_share_them() -> None:
    alternating, overlapping = threads(on_cpu()), threads(on_cpu(max_staleness=1))
    assert (alternating.rank, alternating.generator) == (2, 2)
    assert (overlapping.rank, overlapping.generator) == (1, 1)


@pytest.mark.parametrize(
    ("ranks", "generators", "machines", "max_staleness", "expected"),
    [
        (1, 1, (1, 16), 0, (16, 16)),
        (2, 3, (1, 16), 0, (8, 5)),
        (2, 3, (1, 16), 2, (3, 3)),
        (4, 1, (1, 2), 0, (1, 2)),  # more ranks than cores
        (4, 6, (2, 16), 0, (8, 5)),  # two and three on each machine
        (3, 1, (2, 16), 0, (8, 16)),  # at most two on a machine
        (3, 1, (2, 16), 1, (5, 5)),
        (1, 1, (1, 1), 1, (1, 1)),
    ],
)
def test_a_machines_cores_are_divided_among_what_computes_there(
    ranks: int, generators: int, machines: tuple[int, int], max_staleness: int, expected: tuple[int, int]
) -> None:
    config = on_cpu(max_staleness=max_staleness, learner={"num_workers": ranks}, engine={"num_generators": generators})
    number, cores = machines
    planned = threads(config, Machines(number=number, cores=cores))
    assert (planned.rank, planned.generator) == expected


def test_evaluation_beside_training_overlaps_with_both_phases() -> None:
    config = on_cpu(evaluation={"num_generators": 1}, learner={"num_workers": 3})
    planned = threads(config, Machines(number=1, cores=12))
    assert planned == Threads(rank=3, generator=6, evaluation_generator=3)


def test_settings_win_over_the_variable_and_the_variable_over_the_plan() -> None:
    config = on_cpu(engine={"cpus_per_generator": 3})
    assert threads(config, environment={"OMP_NUM_THREADS": "1"}) == Threads(rank=1, generator=3, evaluation_generator=3)
    fractions = on_cpu(engine={"cpus_per_generator": 0.01}, learner={"cpus_per_worker": 2.5})
    assert threads(fractions) == Threads(rank=2, generator=1, evaluation_generator=1)
    assert threads(on_cpu(), environment={"OMP_NUM_THREADS": "4,1"}).rank == 4
    assert threads(on_cpu(), environment={"OMP_NUM_THREADS": " "}).rank == 2
    for wrong in ("all", "0", "-1", "1.5"):
        with pytest.raises(ConfigError, match=rf"OMP_NUM_THREADS='{wrong}' is not a number of threads; write 1"):
            threads(config, environment={"OMP_NUM_THREADS": wrong})


def test_what_has_a_gpu_takes_no_cores_from_the_others() -> None:
    config = on_cpu(engine={"gpus_per_generator": 1, "num_generators": 4}, max_staleness=1)
    assert threads(config, Machines(number=1, cores=8)) == Threads(rank=8, generator=1, evaluation_generator=1)
    both = run_config(learner={"cpus_per_worker": 4})
    assert threads(both, Machines(number=1, cores=8)) == Threads(rank=4, generator=1, evaluation_generator=1)


def test_without_learners_or_among_several_runs() -> None:
    config = on_cpu(max_staleness=1, evaluation={"num_generators": 2})
    sixteen = Machines(number=1, cores=16)
    assert plan_threads(config, sixteen, learners=False, environment={}).generator == 16
    assert plan_threads(on_cpu(), sixteen, num_runs=3, environment={}) == Threads(
        rank=5, generator=5, evaluation_generator=5
    )


def test_the_plan_shows_each_parts_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = on_cpu(engine={"num_generators": 3})
    memory = Memory(num_bytes=16 * GIB, source="of a test")
    hardware = Hardware(gpu=memory, machine=memory, machines=Machines(number=1, cores=16))
    lines = "\n".join(plan_resources(config, sizes_of_settings(config.model), hardware).lines())
    assert "1 x learner rank   1 CPUs, 0 GPUs, 16 thread(s) each" in lines
    assert "3 x generator      1 CPUs, 0 GPUs, 5 thread(s) each" in lines
    assert "1 x reward actor   0.5 CPUs, 0 GPUs, 1 thread(s) each" in lines
    unknown = Hardware(gpu=memory, machine=memory)
    lines = "\n".join(plan_resources(config, sizes_of_settings(config.model), unknown).lines())
    assert "1 x learner rank   1 CPUs, 0 GPUs, ? thread(s) each" in lines
    assert "the cluster's nodes decide" in lines
