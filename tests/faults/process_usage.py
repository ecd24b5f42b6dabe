"""What the processes of a run use over time, to see that it stays flat."""

import time
from dataclasses import dataclass, field

import psutil

from tests.ray_processes import command_of

USAGE_S = 20.0  # between two looks at a run's memory and files
RAYS_SERVERS = ("raylet", "gcs_server")
FLAT = 0.1  # growth over the last four fifths that is none: a share of memory and of open files


@dataclass
class Usage:
    """Memory and open files over time of a run's processes: of those that live all the while, by name.

    Ray's own servers are shown with the others, but not judged: gcs_server keeps a bounded history of tasks, and grows
    until it is full.
    """

    root: int
    memory_mb: dict[str, list[float]] = field(default_factory=dict)
    files: dict[str, list[int]] = field(default_factory=dict)
    num_looks: int = 0
    last_look: dict[str, int] = field(default_factory=dict)
    _last: float = 0.0

    def measure(self) -> None:
        if time.monotonic() - self._last < USAGE_S:
            return
        self._last = time.monotonic()
        self.num_looks += 1
        root = psutil.Process(self.root)
        for process in [root, *root.children(recursive=True)]:
            try:
                name = "driver" if process == root else command_of(process).split(" ")[0].rsplit("/", 1)[-1]
                name = name.split(".")[0]  # Ray appends the method that an actor is at
                if name != "driver" and not name.startswith(("ray::", *RAYS_SERVERS)):
                    continue  # a helper process of Ray's, or one of the reward actor's, which come and go
                name += "" if name in ("driver", *RAYS_SERVERS) else f" {process.pid}"
                memory, files = process.memory_full_info().uss / 2**20, process.num_fds()
            except psutil.Error:
                continue  # it ended meanwhile
            self.memory_mb.setdefault(name, []).append(memory)
            self.files.setdefault(name, []).append(files)
            self.last_look[name] = self.num_looks

    def rows(self) -> list[tuple[str, float, float, int, int]]:
        """Name, memory and open files after a fifth of the time and at the end, of what lived from the one to the
        other: an actor is there some looks after the driver."""
        at = self.num_looks // 5
        lasting = [name for name, look in self.last_look.items() if look >= self.num_looks - 1]
        return [
            (name.split(" ")[0].removeprefix("ray::"), memory[first], memory[-1], files[first], files[-1])
            for name in lasting
            for memory, files in [(self.memory_mb[name], self.files[name])]
            if (first := at - (self.num_looks - len(memory))) >= 0
        ]

    @property
    def flat(self) -> bool:
        ours = [figures for name, *figures in self.rows() if name not in RAYS_SERVERS]
        return all(end <= (1 + FLAT) * start for figures in ours for start, end in (figures[:2], figures[2:]))
