"""A file in the run's folder that says what the run is doing at present, for a page that follows the run."""

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from gvm_ray.phase_clock import PhaseClock
from gvm_ray.reporting.run_folder import RunFolder, json_text, parse_json

_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Present:
    """Work that was under way when the file was written."""

    phases: tuple[str, ...]  # names in PHASES; none while the run starts or ends
    since_s: float  # time of the change, in seconds since 1970

    @classmethod
    def read(cls, folder: RunFolder) -> "Present | None":
        """Read the file; None if the run isn't under way, or was killed before it wrote the file."""
        try:
            values = parse_json(folder.present.read_text(encoding="utf-8"))
            return cls(phases=tuple(map(str, values["phases"])), since_s=folder.present.stat().st_mtime)
        except (OSError, ValueError, KeyError, TypeError):
            return None


class PresentFile:
    """Context that writes the phases under way, once a second if they have changed, and removes the file at its end.

    A disk that is full or gone is left to the writers of files that matter.
    """

    def __init__(self, folder: RunFolder, clock: PhaseClock, *, every_s: float = _EVERY_S) -> None:
        self._path = folder.present
        self._clock = clock
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_changes, daemon=True, name="present phases")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _write_changes(self) -> None:
        written: tuple[str, ...] | None = None
        unfinished = self._path.with_suffix(".unfinished")
        while not self._ended.is_set():
            phases = self._clock.under_way
            if phases != written:
                written = phases
                with suppress(OSError):
                    unfinished.write_text(json_text({"phases": phases}) + "\n", encoding="utf-8")
                    os.replace(unfinished, self._path)
            self._ended.wait(self._every_s)
