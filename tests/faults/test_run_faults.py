"""Whole runs whose processes are killed: what they leave behind is what an undisturbed run leaves, to the bit."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray_processes import processes_named
from tiny_runs import TINY_TOML, largest_change, timeless_rows, tiny_config

from gvm_ray.exceptions import ActorDied
from gvm_ray.reporting import Reporter, RunFolder, read_rows
from gvm_ray.run import train

pytestmark = [pytest.mark.ray, pytest.mark.faults]

NUM_STEPS = 5
STORE = {"object_store_memory": 128 * 2**20}


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, runs_dir: Path) -> RunFolder:
    train(tiny_config(runs_dir, name="undisturbed", num_steps=NUM_STEPS))
    return RunFolder(runs_dir / "undisturbed")


def assert_same_run(folder: RunFolder, other: RunFolder) -> None:
    rows = [{name: v for name, v in row.items() if name != "faults/total"} for row in timeless_rows(folder)]
    assert rows == timeless_rows(other)
    assert read_rows(folder.histograms) == read_rows(other.histograms)
    assert largest_change(folder.model, other.model) == 0


def num_rows(folder: RunFolder) -> int:
    return folder.metrics.read_text().count("\n") if folder.metrics.exists() else 0


@contextmanager
def disturbed(folder: RunFolder, *actions: tuple[int, Callable[[], None]]) -> Iterator[list[int]]:
    """Each action once there are so many rows of metrics; gives the numbers of rows at which they were done."""
    done: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        for rows, action in actions:
            while num_rows(folder) < rows and not ended.wait(0.01):
                pass
            if not ended.is_set():
                action()
                done.append(num_rows(folder))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield done
    finally:
        ended.set()
        thread.join()


def kill_named(name: str, namespace: str) -> Callable[[], None]:
    return lambda: ray.kill(ray.get_actor(name, namespace=namespace), no_restart=name == "allocator")


def kill_learners() -> None:
    workers = processes_named("ray::RayTrainWorker")
    assert workers
    for process in workers:
        process.kill()


def test_actors_of_every_kind_are_killed(undisturbed: RunFolder, runs_dir: Path) -> None:
    folder, namespace = RunFolder(runs_dir / "killed"), "gvm_ray"
    actions = [
        (1, kill_named("allocator", namespace)),
        (2, kill_named("generator-0", namespace)),
        (3, kill_learners),
        (4, kill_named("reward-0", namespace)),
    ]
    with disturbed(folder, *actions) as done:
        train(tiny_config(runs_dir, name="killed", num_steps=NUM_STEPS))
    assert len(done) == len(actions)
    assert_same_run(folder, undisturbed)
    assert read_rows(folder.metrics)[-1]["faults/total"] >= 3  # nobody may miss the last one


@pytest.mark.slow
def test_a_full_object_store_slows_a_run_down_and_does_not_end_it(undisturbed: RunFolder, runs_dir: Path) -> None:
    size = int(ray.cluster_resources()["object_store_memory"])
    held = [ray.put(np.ones(size // 4, dtype=np.uint8)) for _ in range(5)]  # more than it holds
    train(tiny_config(runs_dir, name="crowded", num_steps=NUM_STEPS))
    assert all(ray.get(ref)[-1] == 1 for ref in held)
    assert_same_run(RunFolder(runs_dir / "crowded"), undisturbed)


@pytest.mark.slow
def test_what_cannot_be_mended_from_within_goes_on_from_the_last_checkpoint(
    undisturbed: RunFolder, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_step, failed = Reporter.log_step, list[int]()

    def failing(self: Reporter, step: int, *args: Any, **kwargs: Any) -> None:
        if step == 3 and not failed:
            failed.append(step)
            raise ActorDied("the node is gone")
        log_step(self, step, *args, **kwargs)

    monkeypatch.setattr(Reporter, "log_step", failing)
    train(tiny_config(runs_dir, name="restarted", num_steps=NUM_STEPS))
    assert failed
    assert_same_run(RunFolder(runs_dir / "restarted"), undisturbed)


@contextmanager
def command_line(
    runs_dir: Path, name: str, *arguments: str, address: str | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`gvm-ray train` of the tiny run, on a cluster, or else with a Ray of its own."""
    config = runs_dir / "tiny.toml"
    config.write_text(TINY_TOML)
    settings = [f"name={name}", f"runs_dir={runs_dir}", f"num_steps={NUM_STEPS}", "cluster.dashboard=false"]
    overrides = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "gvm_ray", "train", str(config), *overrides, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {} if address is None else {"RAY_ADDRESS": address}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as run:
        try:
            yield run
        finally:
            run.kill()


def wait_for_rows(folder: RunFolder, rows: int, run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while num_rows(folder) < rows:
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline, f"{num_rows(folder)} rows after 300 s"
        time.sleep(0.01)


def working_processes(of: int) -> list[psutil.Process]:
    """A process's descendants but Ray's agents, which look only once a minute whether their raylet still lives."""
    agents = [p for name in ("ray::DashboardAgent", "ray::RuntimeEnvAgent") for p in processes_named(name, of=of)]
    return [process for process in psutil.Process(of).children(recursive=True) if process not in agents]


def wait_until_gone(those: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(those, timeout=180)
    assert not alive


@pytest.mark.slow
def test_a_driver_that_is_ended_again_and_again_is_resumed_as_if_nothing_had_happened(
    undisturbed: RunFolder, runs_dir: Path
) -> None:
    folder = RunFolder(runs_dir / "ended")
    with command_line(runs_dir, "ended") as run:  # at the end of the warm start
        assert run.stdout is not None
        assert any(line.startswith("warm start") for line in run.stdout)
        family = working_processes(run.pid)
        run.kill()
    wait_until_gone(family)
    with command_line(runs_dir, "ended", "--resume") as run:
        wait_for_rows(folder, 1, run)
        family = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGTERM)
        output = run.communicate(timeout=120)[0]
        assert run.returncode == 143, output
    wait_until_gone(family)
    assert "the run starts from the beginning" in output
    assert "continue with --resume" in output
    rows = num_rows(folder)
    assert rows < NUM_STEPS
    assert max(path.name for path in folder.checkpoints.iterdir()) == f"step_{rows:06d}"
    with command_line(runs_dir, "ended", "--resume") as run:
        wait_for_rows(folder, rows + 1, run)
        family = working_processes(run.pid)
        run.kill()
    wait_until_gone(family)
    with command_line(runs_dir, "ended", "--resume") as run:
        output = run.communicate(timeout=300)[0]
        assert run.returncode == 0, output
    assert_same_run(folder, undisturbed)


@pytest.mark.slow
def test_a_killed_actor_is_one_sentence_on_the_console(runs_dir: Path) -> None:
    folder = RunFolder(runs_dir / "told")
    with command_line(runs_dir, "told") as run:
        wait_for_rows(folder, 1, run)
        for process in processes_named("ray::AllocatorActor", of=run.pid):
            process.kill()
        output = run.communicate(timeout=300)[0]
        assert run.returncode == 0, output
    told = [line for line in output.splitlines() if line.startswith("allocator failed and is replaced: ")]
    assert len(told) == 1
    assert len(told[0]) < 400
    assert "(raylet)" not in output
    assert "Some common causes" not in output
    kept = folder.ray_log.read_text()
    assert "A worker died or was killed while executing a task" in kept
    assert "allocator failed: " in kept


@pytest.mark.slow
def test_a_driver_that_is_killed_within_a_block_and_after_an_epoch(ray_cluster: None, runs_dir: Path) -> None:
    """Two steps share one pilot round, and the first epoch ends in the step before the one in which it is killed."""
    changes = ("allocator.block_steps=2", "allocator.reuse_pilots=false", "prompts.train.size=20")
    blocks = {"allocator__block_steps": 2, "allocator__reuse_pilots": False, "prompts__train__size": 20}
    train(tiny_config(runs_dir, name="blocks", num_steps=NUM_STEPS, **blocks))
    folder = RunFolder(runs_dir / "killed-in-block")
    arguments = [part for change in changes for part in ("--set", change)]
    with command_line(runs_dir, folder.path.name, *arguments) as run:
        wait_for_rows(folder, 3, run)
        family = working_processes(run.pid)
        run.kill()
    wait_until_gone(family)
    assert 3 <= num_rows(folder) < NUM_STEPS
    with command_line(runs_dir, folder.path.name, *arguments, "--resume") as run:
        output = run.communicate(timeout=300)[0]
        assert run.returncode == 0, output
    assert_same_run(folder, RunFolder(runs_dir / "blocks"))


@pytest.mark.slow
def test_a_node_goes_away_and_another_comes(undisturbed: RunFolder, runs_dir: Path) -> None:
    """Neither node has room for the whole run, so each holds a part of it."""
    folder = RunFolder(runs_dir / "moved")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, **STORE})
    try:
        going = cluster.add_node(num_cpus=2, **STORE)
        with command_line(runs_dir, "moved", address=cluster.address) as run:
            wait_for_rows(folder, 3, run)
            cluster.remove_node(going, allow_graceful=False)
            cluster.add_node(num_cpus=2, **STORE)
            output = run.communicate(timeout=400)[0]
            assert run.returncode == 0, output
    finally:
        cluster.shutdown()
    assert_same_run(folder, undisturbed)
    assert read_rows(folder.metrics)[-1]["faults/total"] >= 1
