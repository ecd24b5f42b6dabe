"""What a local cluster shows to others: the dashboard on the loopback address only, and nothing without Ray's token."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.slow]

HOST = """
import json, sys
from pathlib import Path
import ray
from gvm_ray.actors.cluster import connected
from tests.tiny_runs import tiny_config

with connected(tiny_config(Path(sys.argv[1]), cluster={"dashboard": True})) as dashboard:
    print(json.dumps({"gcs": ray.get_runtime_context().gcs_address, "dashboard": dashboard}), flush=True)
    sys.stdin.read()
"""
STRANGER = """
import sys
import time
import ray

ray.init(address=sys.argv[1], log_to_driver=False)
print(ray.cluster_resources())
"""


@dataclass(frozen=True)
class Host:
    """A process that started a local cluster as a run does."""

    pid: int
    gcs: str
    dashboard: str


def environment(home: Path) -> dict[str, str]:
    """Of a user whose home folder this is, and who has set nothing."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture(scope="module")
def usual_port_in_use() -> Iterator[None]:
    """Something listens on the dashboard's usual port: this, or whatever was there before."""
    with socket.socket() as taken:
        with suppress(OSError):
            taken.bind(("127.0.0.1", 8265))
            taken.listen()
        yield


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, usual_port_in_use: None) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("host")
    with subprocess.Popen(
        [sys.executable, "-c", HOST, str(folder)],
        env=environment(folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        answer = next((line for line in process.stdout if line.startswith("{")), "")
        assert answer, "no cluster came up"
        yield Host(pid=process.pid, **json.loads(answer))
        process.communicate()  # closes its standard input, which ends it


def dashboard_address(host: Host) -> tuple[str, int]:
    """Where the dashboard of the cluster listens."""
    for process in psutil.Process(host.pid).children(recursive=True):
        if "dashboard/dashboard.py" in " ".join(process.cmdline()):
            listening = [c.laddr for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
            (address,) = [each for each in listening if 8265 <= each.port < 8365]
            return address.ip, address.port
    raise AssertionError("there is no dashboard")


def test_the_dashboard_is_on_the_loopback_address_and_asks_for_the_token(host: Host) -> None:
    address, port = dashboard_address(host)
    assert address == "127.0.0.1"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{address}:{port}/api/jobs/", timeout=60)
    assert refused.value.code in (401, 403)


def test_where_the_usual_port_is_in_use_the_dashboard_has_another_that_is_told(host: Host) -> None:
    address, port = dashboard_address(host)
    assert port != 8265
    assert host.dashboard == f"{address}:{port}"


def test_who_has_no_token_cannot_join(host: Host, tmp_path: Path) -> None:
    stranger = subprocess.run(
        [sys.executable, "-c", STRANGER, host.gcs],
        env={**environment(tmp_path), "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert stranger.returncode != 0
    assert "CPU" not in stranger.stdout
    assert "token" in stranger.stderr.lower()


def test_workers_of_a_local_cluster_are_as_nice_as_their_driver(host: Host) -> None:
    driver = psutil.Process(host.pid)
    deadline = time.monotonic() + 60
    while not (workers := [each for each in driver.children(recursive=True) if each.name().startswith("ray::")]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert {worker.nice() for worker in workers} == {driver.nice()}
