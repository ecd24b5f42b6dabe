"""What a run on this machine takes: processor seconds by kind of process, the driver's memory, the object store."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import ray
from ray._private.internal_api import node_stats

_POLL_S = 2.0

# Found in a process's command line, first match first; a Ray worker's is that of its actor class.
_KINDS = {
    "sandbox_child": "reward sandboxes",
    "RewardActor": "reward actors",
    "GeneratorActor": "generators",
    "AllocatorActor": "allocator",
    "raylet": "raylet",
    "gcs_server": "global control store",
}


def cpu_seconds() -> dict[str, float]:
    """Processor seconds so far of the driver (this process) and of everything that it has started, by kind."""
    driver = psutil.Process()
    seconds = {"driver": _seconds(driver)}
    for process in driver.children(recursive=True):
        try:
            command, used = " ".join(process.cmdline()), _seconds(process)
        except psutil.Error:  # it has ended since
            continue
        kind = next((kind for mark, kind in _KINDS.items() if mark in command), "other")
        seconds[kind] = seconds.get(kind, 0.0) + used
    return seconds


def driver_memory_mb() -> float:
    """MB that this process holds alone: pages of the object store that it has touched are not among them."""
    memory = psutil.Process().memory_info()
    return (memory.rss - memory.shared) / 1e6


def object_store_mb() -> float:
    """MB in use on all nodes."""
    stats = [
        node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sum(each.store_stats.object_store_bytes_used for each in stats) / 1e6


class PeakWatch:
    """The largest use of the object store that was seen, looking every other second."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._stop = threading.Event()

    @contextmanager
    def watching(self) -> Iterator["PeakWatch"]:
        """Look in a thread of its own while the body runs."""
        thread = threading.Thread(target=self._watch, name="peak-watch", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.peak_mb = max(self.peak_mb, object_store_mb())
            self._stop.wait(_POLL_S)


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
