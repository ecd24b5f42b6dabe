"""Waiting: deadlines are named, and Ray's errors become the run's own."""

import asyncio
import gc
import logging
import sys
from pathlib import Path

import pytest
from ray._private import worker as ray_worker
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayTaskError

from gvm_ray.actors.cluster import rays_lines_in
from gvm_ray.actors.waiting import wait_for
from gvm_ray.config.run import FaultsConfig
from gvm_ray.exceptions import ActorDied, ActorFailure, ConfigError, DeadlineExceeded, SystemFailure
from gvm_ray.failure_log import FailureLog, in_short


def wait(coroutine, *, timeout_s: float = 30.0):
    async def main():
        return await wait_for(coroutine, timeout_s=timeout_s, what="scoring 3 groups", setting="deadlines.sample_s")

    return asyncio.run(main())


async def value(result: object) -> object:
    return result


async def failure(error: BaseException) -> None:
    raise error


def task_error(cause: BaseException, *, repr_: str = "reward-0") -> RayTaskError:
    """The error that Ray raises for a method that raised `cause`."""
    error = RayTaskError("score", f"Traceback\n\x1b[36min {repr_}\x1b[39m\n{cause!r}", cause, "proc", 1, "10.0.0.1")
    return error.as_instanceof_cause()


def test_gives_the_result():
    assert wait(value(5)) == 5


def test_deadline_names_the_work_and_the_setting():
    cancelled = []

    async def slow():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def main():
        with pytest.raises(DeadlineExceeded) as caught:
            await wait_for(slow(), timeout_s=0.05, what="scoring 3 groups", setting="deadlines.sample_s")
        await asyncio.sleep(0)
        return str(caught.value)

    message = asyncio.run(main())
    assert message == "scoring 3 groups took longer than 0.05 s; give it longer with --set deadlines.sample_s=0.1"
    assert cancelled


def test_work_that_is_given_up_leaves_no_complaint():
    complaints = []

    async def never():
        await asyncio.get_running_loop().create_future()

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
        with pytest.raises(DeadlineExceeded):
            await wait_for(asyncio.gather(never(), never()), timeout_s=0.05, what="scoring", setting="s")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()

    asyncio.run(main())
    assert complaints == []


def test_a_timeout_inside_the_work_is_not_the_deadline():
    with pytest.raises(TimeoutError, match="socket"):
        wait(failure(TimeoutError("socket")))


def test_cancelling_the_wait_cancels_the_work():
    async def main():
        started = asyncio.Event()
        states = []

        async def slow():
            started.set()
            try:
                await asyncio.sleep(60)
            finally:
                states.append("cancelled")

        task = asyncio.create_task(wait_for(slow(), timeout_s=30, what="w", setting="s"))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        return states

    assert asyncio.run(main()) == ["cancelled"]


@pytest.mark.parametrize("error", [ConfigError("bad setting"), SystemFailure("a part failed")])
def test_own_errors_come_out_as_themselves(error: Exception):
    for raised in (error, task_error(error), task_error(task_error(error))):
        with pytest.raises(type(error)) as caught:
            wait(failure(raised))
        assert caught.value is error
        assert type(caught.value) is type(error)


def test_other_errors_of_a_task_are_an_actor_failure_with_its_traceback():
    with pytest.raises(ActorFailure) as caught:
        wait(failure(task_error(KeyError("zz"))))
    message = str(caught.value)
    assert message.startswith("scoring 3 groups failed: KeyError: 'zz'")
    assert "in reward-0" in message
    assert "\x1b" not in message


def dead_actor() -> ActorDiedError:
    error = ActorDiedError()
    error.actor_id = "abc123"
    error.error_msg = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: RewardActor\n\tactor_id: abc123\n"
        "\tpid: 77\n\tname: reward-3\n\tnamespace: gvm_ray\n\tip: 10.0.0.9\nIts worker process has died: out of memory."
    )
    return error


def test_a_dead_actor_is_named_with_node_and_cause():
    for raised in (dead_actor(), task_error(dead_actor())):
        with pytest.raises(ActorFailure) as caught:
            wait(failure(raised))
        assert str(caught.value) == (
            "scoring 3 groups failed: actor reward-3 on node 10.0.0.9 (process 77) died: "
            "Its worker process has died: out of memory."
        )


def test_a_failure_is_one_line_without_rays_guesses() -> None:
    guesses = "End of file. Some common causes include: (1) the process was killed by the OOM killer"
    assert in_short(f"the allocator failed: it died: {guesses}") == "the allocator failed: it died: End of file."
    report = (
        "the learners ended before 'save' was answered: WorkerGroupError: Training failed due to worker errors:\n"
        "[Rank 0 Error Snippet]:\nWorker info: Worker(\n  pid=7,\n)\n\ttask: 3\n"
        f"The actor is dead. {guesses}\n(rank 0 was process 7 on node 10.0.0.9)"
    )
    assert in_short(ActorDied(report)) == (
        "the learners ended before 'save' was answered: WorkerGroupError: Training failed due to worker errors: "
        "The actor is dead. End of file."
    )
    assert in_short("gone") == "gone"
    assert in_short(ActorDied("")) == "ActorDied"


def test_rays_own_lines_go_to_a_file_and_what_processes_print_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path, logger = tmp_path / "ray.log", logging.getLogger("ray")
    before = logger.handlers[:]
    with rays_lines_in(path):
        assert not path.exists()  # where nothing goes wrong there is no file
        printed = {"lines": ["a reward's own words"], "pid": 7, "is_err": False, "ip": "a", "localhost": "a"}
        ray_worker.print_worker_logs(printed, sys.stdout, ignore_prefix=True)
        ray_worker.print_to_stdstream(
            {"lines": ["A worker died or was killed"], "pid": "raylet", "is_err": False}, ignore_prefix=False
        )
        logging.getLogger("ray._private.worker").error("Unhandled error")
        FailureLog(FaultsConfig()).record("reward-0", "it died. Some common causes include: (1) many")
    assert logger.handlers == before
    console = capsys.readouterr()
    assert console.out == "a reward's own words\n"
    assert console.err == ""
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings[-1] == "reward-0 failed and is replaced: it died."
    kept = path.read_text()
    for text in (
        "A worker died or was killed",
        "Unhandled error",
        "reward-0 failed: it died. Some common causes include",
    ):
        assert text in kept
    assert "own words" not in kept


def test_an_unreachable_actor_and_a_killed_worker_are_actor_failures():
    with pytest.raises(ActorFailure, match="network is down"):
        wait(failure(ActorUnavailableError("network is down", b"\x01" * 16)))
    with pytest.raises(ActorFailure, match="OutOfMemoryError"):
        wait(failure(OutOfMemoryError("node is full")))
