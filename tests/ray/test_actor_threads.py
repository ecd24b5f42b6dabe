"""Threads that generators and learner ranks really compute with."""

from pathlib import Path

import pytest

from gvm_ray.actors.cluster import chosen_variables, find_machines
from gvm_ray.resources import Machines
from gvm_ray.run import train
from tests.tiny_runs import tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.parametrize(("max_staleness", "expected"), [(0, "6"), (1, "3")])
def test_a_runs_actors_have_the_planned_threads(
    max_staleness: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("gvm_ray.actors.cluster.find_machines", lambda: Machines(number=1, cores=6))
    of_rank = tmp_path / "rank-threads"
    config = tiny_config(
        tmp_path,
        num_steps=1,
        max_staleness=max_staleness,
        warm_start=None,
        engine__type="custom",
        engine__path="tests.thread_counts:ThreadCountingEngine",
        allocator={"type": "uniform"},
        rewards__terms=[
            {"type": "function", "path": "tests.real.word_problems:even_length"}
        ],  # so that there are updates
        algorithm={
            "type": "grpo",
            "loss": {"path": "tests.thread_counts:surrogate", "parameters": {"file": str(of_rank)}},
        },
    )
    train(config)
    assert (tmp_path / "tiny" / "generator-threads").read_text() == expected
    assert of_rank.read_text() == expected


def test_a_machine_has_no_more_cores_than_it_has_whatever_its_logical_cpus() -> None:
    machines = find_machines()  # of the tests' cluster, which has 32 logical CPUs
    assert machines.number == 1
    assert 1 <= machines.cores < 32


def test_the_variable_that_ray_gives_a_jobs_driver_is_not_the_users_choice() -> None:
    environment = {"OMP_NUM_THREADS": "1", "HOME": "/"}
    assert chosen_variables(environment, of_job=None) == environment
    assert chosen_variables(environment, of_job={}) == {"HOME": "/"}
    assert chosen_variables(environment, of_job={"OMP_NUM_THREADS": "4"}) == {"OMP_NUM_THREADS": "4", "HOME": "/"}
