"""A page that follows runs: served on this machine alone, and made anew when the runs' files have changed."""

import hashlib
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import shorten

from gvm_ray.exceptions import DataError, ResourceError
from gvm_ray.failure_log import details, in_short
from gvm_ray.reporting.html_report.page import NOW, all_sections, render, render_now
from gvm_ray.reporting.html_report.run_data import RunData, read_runs
from gvm_ray.reporting.present import Present
from gvm_ray.reporting.progress import short_duration
from gvm_ray.reporting.run_folder import RunFolder

LOOPBACK = "127.0.0.1"
_HOSTS = {LOOPBACK, "localhost", "[::1]"}  # as a browser may name this machine, at either end of a tunnel
_REFUSAL = "open this page as http://127.0.0.1 or http://localhost"
_REST = 10  # times the duration of the work before it
_NUM_FAILURES = 3  # shown on top
_LOG_BYTES = 2**17  # of the end of ray.log
_LATEST_STEPS = 20  # whose mean duration is told
_MAX_FAILURE = 200  # letters of one; ray.log has all


@dataclass(frozen=True, kw_only=True)
class RunNow:
    """Facts of one run that stand above its figures."""

    name: str
    status: str
    facts: Mapping[str, str]  # name -> text
    failures: Sequence[str]


class LivePage:
    """The page about runs, up to date.

    Args:
        folders: of the runs.
        clock: returns the time in seconds.

    Raises:
        DataError: a file of a run is damaged.
    """

    def __init__(self, folders: Sequence[Path], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folders = [RunFolder(folder) for folder in folders]
        self._lock = threading.Lock()  # drawing isn't safe in threads, and once is enough
        self._reading, self._drawing = _Turns(clock, rest_s=1.0), _Turns(clock, rest_s=4.0)
        self.nonce = secrets.token_urlsafe(16)  # of the page's own script, the only one that may run
        self.num_drawn = 0
        self._read()
        self._draw()

    def text(self) -> bytes:
        """The page at present, in UTF-8. Its figures may lag behind the numbers above them."""
        with self._lock:
            damage = ""
            if self._stamp() != self._stamp_read and self._reading.due:
                try:
                    self._read()
                except DataError as error:
                    damage = str(error)
            if self._stamp_read != self._stamp_drawn and self._drawing.due:
                self._draw()
            now = [_now(run, folder) for run, folder in zip(self._runs_now(), self._folders, strict=True)]
            # A model's text may contain half of a surrogate pair, which UTF-8 can't encode.
            return self._page.replace(NOW, render_now(now, damage=damage)).encode("utf-8", errors="replace")

    def is_over(self) -> bool:
        """Whether no run is under way.

        Raises:
            DataError: a file of a run is damaged.
        """
        with self._lock:
            if self._stamp() != self._stamp_read:
                self._read()
            return all(run.status != "under way" for run in self._runs_now())

    def _stamp(self) -> tuple[tuple[int, int] | None, ...]:
        """Times and sizes of the files that the figures are made of; None where one is missing."""
        files = (
            file
            for folder in self._folders
            for file in (
                folder.config,
                folder.metrics,
                folder.histograms,
                folder.samples,
                folder.summary,
                folder.base_evaluation,
            )
        )
        return tuple(_time_and_size(file) for file in files)

    def _read(self) -> None:
        with self._reading.turn():
            stamp = self._stamp()
            self._runs = read_runs([folder.path for folder in self._folders])
            self._stamp_read = stamp

    def _draw(self) -> None:
        with self._drawing.turn():
            self._page = render(self._runs, all_sections(self._runs), nonce=self.nonce)
            self._stamp_drawn = self._stamp_read
            self.num_drawn += 1

    def _runs_now(self) -> list[RunData]:
        """The runs, with the time that has passed since their last step."""
        return [
            replace(run, quiet_s=max(0.0, time.time() - folder.metrics.stat().st_mtime))
            if folder.metrics.exists()
            else run
            for run, folder in zip(self._runs, self._folders, strict=True)
        ]


class _Turns:
    """Turns of some work that leave most of the time to others: after each comes a rest ten times as long.

    Args:
        clock: returns the time in seconds.
        rest_s: the shortest rest.
    """

    def __init__(self, clock: Callable[[], float], *, rest_s: float) -> None:
        self._clock = clock
        self._rest_s = rest_s
        self._rested = -math.inf  # the time when the last rest ends

    @property
    def due(self) -> bool:
        """Whether the rest is over."""
        return self._clock() >= self._rested

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Context of one turn."""
        began = self._clock()
        try:
            yield
        finally:
            ended = self._clock()
            self._rested = ended + max(self._rest_s, _REST * (ended - began))


def _time_and_size(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _now(run: RunData, folder: RunFolder) -> RunNow:
    """The present work of a run, and its last failures."""
    total, present = run.config.get("num_steps"), Present.read(folder)
    of = f" of {total:,}" if total else ""
    facts: dict[str, str] = {}
    if present is not None or run.status == "under way":
        facts["present step"] = f"{run.num_steps + 1:,}{of}" if run.num_steps else f"1{of}, or before it"
    if present is not None:
        facts["at work"] = ", ".join(name.replace("_", " ") for name in present.phases) or "no phase of a step"
        facts["since"] = _clock_time(present.since_s)
    if run.num_steps and folder.metrics.exists():
        facts[f"step {run.num_steps:,} ended"] = _clock_time(folder.metrics.stat().st_mtime)
    if recent := [row["time/step_s"] for row in run.rows[-_LATEST_STEPS:] if row.get("time/step_s")]:
        facts["a step takes"] = short_duration(sum(recent) / len(recent))
    facts["failures recovered from"] = f"{run.last('faults/total') or 0:,.0f}"
    return RunNow(name=run.name, status=run.status, facts=facts, failures=last_failures(folder.ray_log))


def last_failures(log: Path, *, number: int = _NUM_FAILURES) -> list[str]:
    """The newest failures in a run's ray.log, each on one line with its time, newest first."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    mark = f" {details.name}: "
    found = [(line[:19], line.split(mark, 1)[1]) for line in lines if mark in line]
    return [f"{when} {shorten(in_short(cause), _MAX_FAILURE, placeholder=' ...')}" for when, cause in found[-number:]][
        ::-1
    ]


def _clock_time(seconds: float) -> str:
    """In this machine's zone, as in ray.log."""
    return datetime.fromtimestamp(seconds).strftime("%H:%M:%S")


class _Handler(BaseHTTPRequestHandler):
    """Answers GET of the page, and nothing else."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "gvm-ray", ""
    timeout = 30.0  # of an idle connection

    def do_GET(self) -> None:
        host = self.headers.get("Host", "")
        # A name that an attacker has pointed at this machine (DNS rebinding) would make the page theirs to read.
        if (host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host).lower() not in _HOSTS:
            self._answer(HTTPStatus.FORBIDDEN, f"{_REFUSAL}\n".encode())
            return
        if self.path.partition("?")[0] not in ("/", "/index.html"):
            self._answer(HTTPStatus.NOT_FOUND, b"there is nothing but the page at /\n")
            return
        text = self._page.text()
        tag = f'"{hashlib.sha256(text).hexdigest()[:32]}"'
        if self.headers.get("If-None-Match") == tag:
            self._answer(HTTPStatus.NOT_MODIFIED, b"", tag=tag)
        else:
            self._answer(HTTPStatus.OK, text, kind="text/html", tag=tag)

    @property
    def _page(self) -> LivePage:
        server = self.server
        assert isinstance(server, PageServer)
        return server.page

    def _answer(self, status: HTTPStatus, body: bytes, *, kind: str = "text/plain", tag: str = "") -> None:
        nonce = self._page.nonce
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header(
            "Content-Security-Policy",
            f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
            f"script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing: a browser asks every few seconds."""


class PageServer(ThreadingHTTPServer):
    """Serves a page on 127.0.0.1. A context manager, whose exit closes the port.

    Args:
        page: the page.
        port: 0 = a free one.

    Raises:
        ResourceError: the port is taken, or not allowed.
    """

    daemon_threads = True

    def __init__(self, page: LivePage, *, port: int = 0) -> None:
        self.page = page
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ResourceError(
                f"port {port} can't be listened on ({error}); leave out --port, which takes a free one"
            ) from error

    @property
    def url(self) -> str:
        """The page's address on this machine."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore what a browser's leaving causes."""

    def serve(self, *, linger_s: float | None = None, every_s: float = 2.0) -> None:
        """Serve until an interrupt; with `linger_s`, until so many seconds after the last run has ended."""
        if linger_s is None:
            self.serve_forever()
            return
        threading.Thread(target=self.serve_forever, daemon=True, name="report").start()
        ended: float | None = None
        while ended is None or time.monotonic() - ended < linger_s:
            with suppress(DataError):  # a file is being written
                over = self.page.is_over()
                ended = (ended or time.monotonic()) if over else None
            time.sleep(min(every_s, linger_s) if ended else every_s)
        self.shutdown()
