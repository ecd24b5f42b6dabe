"""The page that follows runs: what it tells, when it is drawn anew, and that its server gives away nothing else."""

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_runs import NUM_STEPS, write_run

from gvm_ray.cli import main
from gvm_ray.exceptions import DataError, ResourceError
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.reporting import RunFolder
from gvm_ray.reporting.html_report.follow import LivePage, PageServer, last_failures
from gvm_ray.reporting.present import Present, PresentFile


class Hand:
    """A clock that stands still until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run under way, with a failure and work in two phases."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "mine", num_steps=3)
    (folder / "ray.log").write_text(
        "2026-11-30 12:00:40,100 WARNING ray: something else\n"
        "2026-11-30 12:00:41,100 INFO gvm_ray.failure_log.details: generator-1 failed: it <b>died</b>\nits stack\n"
        "2026-11-30 12:00:42,100 INFO gvm_ray.failure_log.details: reward-0 failed: it hung\n",
        encoding="utf-8",
    )
    (folder / "present.json").write_text('{"phases": ["sampling", "gradient_norms"]}', encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[PageServer]:
    with PageServer(LivePage([run])) as server:
        thread = threading.Thread(target=server.serve)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: PageServer, path: str = "/", *, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(*server.server_address[:2])
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), text


def test_the_present_step_and_the_failures_are_on_top(server: PageServer) -> None:
    _, _, text = ask(server)
    top = text[text.index('<div id="now">') : text.index("<main>")]
    for fact in ("<dd>4 of 6</dd>", "<dd>sampling, gradient norms</dd>", "<dt>step 3 ended</dt>", "<dd>3</dd>"):
        assert fact in top
    newest, older = re.findall(r"<li>(.*)</li>", top)
    assert newest == "2026-11-30 12:00:42 reward-0 failed: it hung"
    assert older == "2026-11-30 12:00:41 generator-1 failed: it &lt;b&gt;died&lt;/b&gt;"


def test_only_its_own_script_may_run_and_nothing_is_fetched_from_elsewhere(server: PageServer) -> None:
    _, headers, text = ask(server)
    policy = headers["Content-Security-Policy"]
    (nonce,) = re.findall(r"script-src 'nonce-([^']+)'", policy)
    assert text.count("<script") == text.count(f'<script nonce="{nonce}">') == 1
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|@import", text)


def test_an_unchanged_page_isnt_sent_again(server: PageServer) -> None:
    _, headers, _ = ask(server)
    status, _, text = ask(server, If_None_Match=headers["ETag"])
    assert (status, text) == (304, "")


@pytest.mark.parametrize(
    "path", ["/config.json", "/report/report.html", "/../../etc/passwd", "//etc/passwd", "/%2e%2e/config.json", "/x/"]
)
def test_there_is_nothing_but_the_page(server: PageServer, path: str) -> None:
    status, _, text = ask(server, path)
    assert (status, text) == (404, "there is nothing but the page at /\n")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("localhost:9000", 200),
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("evil.example:80", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("evil.example:localhost", 403),
        ("", 403),
    ],
)
def test_a_name_that_points_at_this_machine_doesnt_get_the_page(server: PageServer, host: str, status: int) -> None:
    found, _, text = ask(server, Host=host)
    assert found == status
    assert ("<html" in text) == (status == 200)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_takes_nothing(server: PageServer, method: str) -> None:
    assert ask(server, method=method)[0] == 501


def test_it_listens_on_loopback_alone(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_figures_are_drawn_anew_only_for_new_files_and_after_a_rest(tmp_path: Path) -> None:
    folder, hand = write_run(tmp_path / "run", num_steps=2), Hand()
    page = LivePage([folder], clock=hand)
    hand.now += 60
    page.text()
    assert page.num_drawn == 1
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**row, "step": 2}) + "\n")
    assert b"<dd>4 of 6</dd>" in page.text()  # the number at once
    assert page.num_drawn == 2
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**row, "step": 3}) + "\n")
    hand.now += 2
    assert b"<dd>5 of 6</dd>" in page.text()
    assert page.num_drawn == 2  # it rests
    hand.now += 60
    page.text()
    assert page.num_drawn == 3


def test_a_file_that_is_damaged_meanwhile_leaves_the_page_from_before(tmp_path: Path) -> None:
    folder, hand = write_run(tmp_path / "run", num_steps=2), Hand()
    page = LivePage([folder], clock=hand)
    (folder / "metrics.jsonl").write_text("{\n")
    hand.now += 60
    text = page.text().decode()
    assert "The figures are those from before: " in text
    assert 'id="learning"' in text
    with pytest.raises(DataError, match="is damaged"):
        LivePage([folder])


def test_it_ends_by_itself_some_time_after_the_last_run_has_ended(tmp_path: Path) -> None:
    page = LivePage([write_run(tmp_path / "done")])
    assert page.is_over()
    with PageServer(page) as server:
        server.serve(linger_s=0.01, every_s=0.01)  # returns
    folder = write_run(tmp_path / "going", num_steps=NUM_STEPS - 1)
    assert not LivePage([folder]).is_over()


def test_failures_are_the_last_lines_of_the_log_and_none_without_one(tmp_path: Path) -> None:
    assert last_failures(tmp_path / "ray.log") == []
    lines = [f"2026-11-30 12:00:{i:02},1 INFO gvm_ray.failure_log.details: part failed: {i}" for i in range(50)]
    (tmp_path / "ray.log").write_text("\n".join(lines) + "\n")
    assert last_failures(tmp_path / "ray.log", number=2) == [
        "2026-11-30 12:00:49 part failed: 49",
        "2026-11-30 12:00:48 part failed: 48",
    ]


# --- the file of a run's phases ---------------------------------------------------------------------------------------
def test_a_run_says_what_it_does_and_takes_it_back_at_its_end(tmp_path: Path) -> None:
    folder, clock = RunFolder(tmp_path), PhaseClock()

    def until(phases: tuple[str, ...]) -> None:
        while (present := Present.read(folder)) is None or present.phases != phases:
            pass

    with PresentFile(folder, clock, every_s=0.001):
        until(())
        with clock.phase("update"), clock.phase("sampling"):
            until(("sampling", "update"))
        until(())
    assert list(tmp_path.iterdir()) == []
    assert Present.read(folder) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"phases": 3}'])
def test_a_damaged_file_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "present.json").write_text(text)
    assert Present.read(RunFolder(tmp_path)) is None


# --- the command ------------------------------------------------------------------------------------------------------
def test_the_command_serves_until_an_interrupt(run: Path) -> None:
    program = (  # a process that a shell has put into the background has no handler
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from gvm_ray.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, "report", str(run), "--follow"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        port = int(re.findall(r"^http://127\.0\.0\.1:(\d+)/ follows ", said)[0])
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
    assert not (run / "report" / "report.html").exists()


def test_a_port_that_is_taken_is_refused(server: PageServer) -> None:
    with pytest.raises(ResourceError, match=r"can't be listened on .* leave out --port, which takes a free one"):
        PageServer(server.page, port=server.server_address[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "8000"], "--port and --until-done are for a page that is served; add --follow"),
        (["--until-done"], "--port and --until-done are for a page that is served; add --follow"),
        (["--follow", "--output", "x.html"], "--follow serves the page and writes no file; leave out --output"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    run: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "8000.5"])
def test_what_is_no_port_is_refused(run: Path, port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", str(run), "--follow", f"--port={port}"])
    assert f"{port!r} is no port; write a number from 1 to 65535" in capsys.readouterr().err
