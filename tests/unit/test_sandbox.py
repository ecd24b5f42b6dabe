"""The reward process: faults cost one sample each, neighbours are scored, limits hold."""

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gvm_ray.actors.reward_env import make_reward_env
from gvm_ray.config.rewards import ExactRewardConfig, FunctionRewardConfig, RewardsConfig
from gvm_ray.exceptions import ConfigError, SystemFailure
from gvm_ray.rewards.sandbox import Sandbox, Scored, Unscored
from tests.builders import completion, prompt

FAULTY = RewardsConfig(terms=(FunctionRewardConfig(path="tests.faulty_rewards:faulty"),))
PROMPT = prompt("p7", answer="4")


def sandbox(config: RewardsConfig = FAULTY, *, timeout_s: float = 60.0, memory_mb: int = 1024) -> Sandbox:
    return Sandbox(functools.partial(make_reward_env, config, max_tokens=10), timeout_s=timeout_s, memory_mb=memory_mb)


def score(box: Sandbox, *texts: str) -> list[float | str]:
    """Rewards, and reasons of the unscored."""
    results = box.score([(PROMPT, completion(text)) for text in texts])
    return [result.reward if isinstance(result, Scored) else result.reason for result in results]


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie doesn't."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def dies(pid: int) -> bool:
    """Whether the process ends within ten seconds."""
    for _ in range(100):
        if not is_alive(pid):
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="module")
def patient() -> Iterator[Sandbox]:
    """A sandbox in which nothing runs out of time."""
    box = sandbox()
    yield box
    box.close()


@pytest.mark.parametrize(
    ("text", "reason"),
    [("exit", "crash"), ("raise", "error"), ("quit", "error"), ("nan", "error"), ("hog", "memory")],
)
def test_a_fault_leaves_one_sample_unscored(patient: Sandbox, text: str, reason: str):
    assert score(patient, "a", text, "bb") == [1.0, reason, 2.0]


@pytest.mark.parametrize("text", ["hang", "hang in C"])
def test_a_hanging_reward_is_killed(text: str):
    box = sandbox(timeout_s=1.0)
    try:
        assert score(box, text, "bb", "ccc") == ["timeout", 2.0, 3.0]
    finally:
        box.close()


def test_faults_one_after_the_other_and_at_the_ends(patient: Sandbox):
    assert score(patient, "exit", "exit", "a", "raise", "exit") == ["crash", "crash", 1.0, "error", "crash"]
    assert score(patient) == []


def test_an_error_says_where_it_came_from(patient: Sandbox):
    (result,) = patient.score([(PROMPT, completion("raise"))])
    assert isinstance(result, Unscored)
    assert "p7" in result.detail
    assert "RuntimeError: a fault" in result.detail
    assert "faulty_rewards.py" in result.detail


def test_one_process_serves_many_calls_and_batches(patient: Sandbox):
    first = score(patient, "pid")
    results = score(patient, *["pid"] * 200)
    assert set(results) == set(first)
    assert first == [float(patient.pid or 0)]


def test_terms_come_with_the_reward():
    box = sandbox(RewardsConfig(terms=(ExactRewardConfig(weight=2.0), FAULTY.terms[0])))
    try:
        (result,) = box.score([(PROMPT, completion(r"\boxed{4}"))])
        assert result == Scored(reward=11.0, terms={"exact": 1.0, "function": 9.0})
    finally:
        box.close()


def test_what_the_reward_started_is_killed_with_it():
    box = sandbox()
    (process,) = score(box, "process")
    pid = box.pid
    assert pid is not None
    assert is_alive(pid)
    assert is_alive(int(process))
    box.close()
    assert box.pid is None
    assert dies(pid)
    assert dies(int(process))


def test_the_process_dies_with_its_parent():
    script = (
        "import functools, os, signal\n"
        "from gvm_ray.rewards.sandbox import Sandbox\n"
        "box = Sandbox(functools.partial(dict), timeout_s=1, memory_mb=1024)\n"
        "box.start()\n"
        "print(box.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    assert dies(int(parent.stdout))


def test_an_unimportable_reward_is_a_config_error():
    box = sandbox(RewardsConfig(terms=(FunctionRewardConfig(path="os:no_such_function"),)))
    with pytest.raises(ConfigError, match=r"os:no_such_function.*module:name"):
        box.start()
    assert box.pid is None


def test_a_process_that_cannot_start_says_so():
    with pytest.raises(SystemFailure, match=r"couldn't start.*rewards\.memory_mb=2048.*ZeroDivisionError"):
        Sandbox(functools.partial(divmod, 1, 0), timeout_s=1, memory_mb=1024).start()
    with pytest.raises(SystemFailure, match=r"died while it started \(exit code 5\)"):
        Sandbox(functools.partial(os._exit, 5), timeout_s=1, memory_mb=1024).start()


def test_the_least_memory_that_the_configuration_allows_is_enough_for_math():
    box = sandbox(RewardsConfig(), memory_mb=256)
    try:
        assert score(box, r"\boxed{\frac{8}{2}}", r"\boxed{x}") == [1.0, 0.0]
    finally:
        box.close()
