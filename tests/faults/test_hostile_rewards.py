"""What a reward process may not do, and that trying it costs one sample: limits, network, secrets, forged results."""

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gvm_ray.actors.reward_env import make_reward_sandbox
from gvm_ray.config.rewards import FunctionRewardConfig, RewardsConfig
from gvm_ray.exceptions import SystemFailure
from gvm_ray.rewards.sandbox import Sandbox, Scored, Unscored
from gvm_ray.rewards.sandbox_child import MAX_FILE_BYTES
from tests.builders import completion, prompt
from tests.faults.hostile_rewards import GARBAGE

pytestmark = pytest.mark.faults

PROMPT = prompt("p7", answer="4")
HOSTILE = (FunctionRewardConfig(path="tests.faults.hostile_rewards:hostile"),)


def make_sandbox(*, timeout_s: float = 60.0, allow_network: bool = False, pass_env: tuple[str, ...] = ()) -> Sandbox:
    config = RewardsConfig(
        terms=HOSTILE, timeout_s=timeout_s, memory_mb=512, allow_network=allow_network, pass_env=pass_env
    )
    return make_reward_sandbox(config, max_tokens=10)


def results(box: Sandbox, *texts: str) -> list[Scored | Unscored]:
    return box.score([(PROMPT, completion(text)) for text in texts])


def score(box: Sandbox, *texts: str) -> list[float | str]:
    """Rewards, and reasons of the unscored."""
    return [r.reward if isinstance(r, Scored) else r.reason for r in results(box, *texts)]


@pytest.fixture(scope="module")
def patient() -> Iterator[Sandbox]:
    """A sandbox in which nothing runs out of time."""
    box = make_sandbox()
    yield box
    box.close()


@pytest.fixture(scope="module")
def hasty() -> Iterator[Sandbox]:
    """A sandbox in which what hangs runs out of time."""
    box = make_sandbox(timeout_s=1.0)
    yield box
    box.close()


@pytest.fixture(scope="module")
def isolated() -> None:
    """Skips where the system lets no process leave the network."""
    script = (
        "import os\n"
        "from gvm_ray.rewards.sandbox_child import close_network\n"
        "before = os.readlink('/proc/self/ns/net')\n"
        "close_network()\n"
        "print(before != os.readlink('/proc/self/ns/net'))\n"
    )
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    if answer.stdout.strip() != "True":
        pytest.skip("the system lets an ordinary process make no network namespace")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("eat_memory", "memory"),
        ("recurse", "error"),
        ("exit:0", "crash"),
        ("signal_itself:SIGKILL", "crash"),
        ("signal_itself:SIGSEGV", "crash"),
        (f"write:{MAX_FILE_BYTES + 1}", "error"),
        ("open_many", "error"),
        *((f"return:{name}", "error") for name in GARBAGE),
    ],
)
def test_a_fault_leaves_one_sample_unscored(patient: Sandbox, text: str, reason: str):
    assert score(patient, "a", text, "bb", text, "ccc") == [1.0, reason, 2.0, reason, 3.0]


@pytest.mark.parametrize(
    "text", ["hang", "swallow_and_hang", "signal_itself:SIGSTOP", "print_forever", "fork_and_exit"]
)
def test_a_hanging_reward_is_killed(hasty: Sandbox, capfd: pytest.CaptureFixture[str], text: str):
    assert score(hasty, "a", text, "bb") == [1.0, "timeout", 2.0]
    assert capfd.readouterr() == ("", "")


def test_a_fork_that_comes_back_answers_nothing(patient: Sandbox):
    assert score(patient, "fork", "bb", "fork", "cccc", "fork", "dddddd") == [1.0, 2.0, 1.0, 4.0, 1.0, 6.0]


def test_a_small_file_is_written(patient: Sandbox):
    assert score(patient, "write:1000") == [1000.0]


def test_an_error_is_told_in_printable_words_of_bounded_length(patient: Sandbox):
    for length in (10, 10**7):
        (result,) = results(patient, f"raise_long:{length}")
        assert isinstance(result, Unscored)
        assert result.detail.rstrip().endswith("the end")
        assert len(result.detail) <= 4000
        assert result.detail.replace("\n", "").isprintable()
    (result,) = results(patient, "raise_long:10")
    assert isinstance(result, Unscored)
    assert r"\x1b[2J\ud800" in result.detail


@pytest.mark.usefixtures("isolated")
def test_limits_and_the_parent_are_out_of_reach(patient: Sandbox):
    assert score(patient, "raise_limits", "parents_environment", "a") == ["error", "error", 1.0]


@pytest.mark.usefixtures("isolated")
def test_the_network_is_closed_unless_allowed(patient: Sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = f"connect:{server.getsockname()[1]}"
        (refused,) = results(patient, text)
        assert isinstance(refused, Unscored)
        assert "Network is unreachable" in refused.detail
        box = make_sandbox(allow_network=True)
        try:
            assert score(box, text) == [1.0]
        finally:
            box.close()


def test_secrets_are_passed_by_name_only(monkeypatch: pytest.MonkeyPatch):
    secrets = ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SESSION", "wandb_api_key", "DB_PASSWORD", "MY_SECRETS", "TOKEN")
    harmless = ("HOME_PAGE", "TOKENIZERS_PARALLELISM", "MONKEY", "SECRETARY")
    for name in (*secrets, *harmless):
        monkeypatch.setenv(name, "x")
    box = make_sandbox(pass_env=("OPENAI_API_KEY", "NOT_SET"))
    try:
        seen = score(box, *(f"variable:{name}" for name in (*secrets, *harmless, "NOT_SET")))
    finally:
        box.close()
    assert seen == [float(name == "OPENAI_API_KEY") for name in secrets] + [1.0] * len(harmless) + [0.0]


class Touch:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_what_a_process_sends_is_not_unpickled(patient: Sandbox, tmp_path: Path):
    folder = tmp_path / "made"
    pickled = pickle.dumps(Touch(folder))
    assert score(patient, "a", f"send:{pickled.hex()}", "bb") == [1.0, "crash", 2.0]
    assert not folder.exists()
    pickle.loads(pickled)
    assert folder.exists()


@pytest.mark.parametrize(
    "packet", [b"\0", b"{", b"[" * 60_000, b'{"failure": ""}', b'{"reward": 1, "terms": {"a": null}}']
)
def test_what_is_no_result_leaves_one_sample_unscored(patient: Sandbox, packet: bytes):
    assert score(patient, "a", f"send:{packet.hex()}", "bb") == [1.0, "crash", 2.0]


def lie_at_start() -> None:
    """Send what is no report, in place of making an environment."""
    os.write(int(sys.argv[2]), b"ready")


def test_what_is_no_report_of_the_start_fails_the_start():
    box = Sandbox(lie_at_start, timeout_s=1.0, memory_mb=512)
    with pytest.raises(SystemFailure, match="an invalid report of its start"):
        box.start()
    assert box.pid is None
