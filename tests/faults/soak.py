"""A long run under random kills beside the same run undisturbed: `python -m tests.faults.soak --minutes 60 --seed 0`.

Both train without staleness, so what the disturbed one learns can be compared with the other's, step by step. Prints a
report in Markdown; the exit code is 1 where anything was lost, trained twice, or needed a hand.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from gvm_ray.reporting import RunFolder, read_rows
from tests.faults.process_usage import Usage
from tests.ray_processes import command_of
from tests.tiny_runs import tiny_values

ACTORS = {
    "generator": "ray::GeneratorActor",
    "reward actor": "ray::RewardActor",
    "allocator": "ray::AllocatorActor",
    "learner rank": "ray::RayTrainWorker",
    "learners' mailbox": "ray::Mailbox",
    "Ray Train's controller": "ray::TrainController",
}
HUNG, DRIVER, NODE = "generator, hung", "driver", "node"
KINDS = [*ACTORS, HUNG, DRIVER, NODE]
TIMES = ("time_s", "faults/total")


@dataclass
class Disturbed:
    """The run that is disturbed, on a cluster of two nodes, and what was done to it."""

    folder: RunFolder
    command: list[str]
    cluster: Any
    random: random.Random
    beside: int  # the undisturbed run's process
    faults: Counter[str] = field(default_factory=Counter)
    drivers: list[Usage] = field(default_factory=list)
    _ahead: list[str] = field(default_factory=list)  # each kind comes once before any comes again
    _node: Any = None
    _run: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._node = self.cluster.add_node(num_cpus=4, object_store_memory=256 * 2**20)
        self._launch()

    def _launch(self, *arguments: str) -> None:
        environment = {**os.environ, "RAY_ADDRESS": self.cluster.address}
        log = (self.folder.path.parent / "disturbed.log").open("ab")
        self._run = subprocess.Popen([*self.command, *arguments], env=environment, stdout=log, stderr=log)
        self.drivers.append(Usage(self._run.pid))

    @property
    def run(self) -> subprocess.Popen[bytes]:
        assert self._run is not None
        return self._run

    def disturb(self) -> None:
        """One fault of a random kind, once the run has made a step since the last one."""
        self._ahead = self._ahead or self.random.sample(KINDS, len(KINDS))
        kind = self._ahead.pop()
        match kind:
            case "driver":
                self.run.kill()
                self.run.wait()
                time.sleep(5)  # the cluster takes a moment to end the dead driver's actors, whose names are taken
                self._launch("--resume")
            case "node":
                self.cluster.remove_node(self._node, allow_graceful=False)
                time.sleep(5)
                self._node = self.cluster.add_node(num_cpus=4, object_store_memory=256 * 2**20)
            case _:
                name = ACTORS["generator"] if kind == HUNG else ACTORS[kind]
                victims = [process for process in self._family() if command_of(process).startswith(name)]
                if not victims:
                    print(f"no {kind} is there", flush=True)  # the one of the fault before isn't back yet
                    return
                self.random.choice(victims).send_signal(signal.SIGSTOP if kind == HUNG else signal.SIGKILL)
        self.faults[kind] += 1
        print(f"{time.strftime('%H:%M:%S')}  step {num_steps(self.folder)}  {kind}", flush=True)

    def _family(self) -> list[psutil.Process]:
        """The cluster's processes: this one's descendants but the undisturbed run's."""
        apart = psutil.Process(self.beside)
        others = {apart, *apart.children(recursive=True)}
        return [process for process in psutil.Process().children(recursive=True) if process not in others]


def num_steps(folder: RunFolder) -> int:
    return folder.metrics.read_text().count("\n") if folder.metrics.exists() else 0


def settings_file(folder: Path, name: str) -> Path:
    """The tiny run, without an end, with deadlines that find a hung process in seconds."""
    values = tiny_values(
        folder,
        name=name,
        num_steps=100_000,
        prompts__eval__size=96,
        prompts__eval__modulus=10,
        prompts__train__size=480,
        prompts__train__modulus=10,
        warm_start__num_updates=150,
        evaluation__every_steps=10,
        checkpoint__every_steps=5,
        engine__num_generators=2,
        rewards__num_actors=2,
        deadlines={"start_s": 240, "sample_s": 30, "update_s": 60, "sync_s": 30},
        faults={"max_failures": 200},
        reporting={"progress": False, "tensorboard": False, "ray_metrics": False},
        cluster={"dashboard": False},
    )
    path = folder / f"{name}.json"
    path.write_text(json.dumps(values))
    return path


def train_command(config: Path) -> list[str]:
    code = (
        "import json, sys; from gvm_ray.config import parse_config; from gvm_ray.exceptions import RunStopped\n"
        "from gvm_ray.run import train\n"
        "try: train(parse_config(json.load(open(sys.argv[1]))), resume='--resume' in sys.argv)\n"
        "except RunStopped as stopped: sys.exit(stopped.exit_code)"
    )
    return [sys.executable, "-c", code, str(config)]


def stop(run: subprocess.Popen[bytes]) -> int:
    run.send_signal(signal.SIGTERM)
    try:
        return run.wait(timeout=300)
    except subprocess.TimeoutExpired:
        run.kill()
        return run.wait()


def soak(folder: Path, *, minutes: float, seed: int, mean_gap_s: float) -> tuple[Disturbed, Usage, int]:
    """Both runs for so long: what was done to the disturbed one, what the other used, the disturbed one's exit code."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 6, "include_dashboard": False, "object_store_memory": 256 * 2**20},
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    log = (folder / "undisturbed.log").open("ab")
    beside = subprocess.Popen(
        train_command(settings_file(folder, "undisturbed")), env=environment, stdout=log, stderr=log
    )
    disturbed = Disturbed(
        folder=RunFolder(folder / "disturbed"),
        command=train_command(settings_file(folder, "disturbed")),
        cluster=cluster,
        random=random.Random(seed),
        beside=beside.pid,
    )
    usage = Usage(beside.pid)

    def measure() -> None:
        usage.measure()
        disturbed.drivers[-1].measure()
        if disturbed.run.poll() is not None:
            raise SystemExit(f"the run ended by itself with exit code {disturbed.run.returncode}; see disturbed.log")

    def until(condition: Callable[[], bool]) -> None:
        while not condition() and time.monotonic() < end:
            measure()
            time.sleep(1)

    try:
        disturbed.start()
        end = time.monotonic() + 60 * minutes
        until(lambda: num_steps(disturbed.folder) > 0)
        while time.monotonic() < end:
            before = num_steps(disturbed.folder)
            disturbed.disturb()
            gap = time.monotonic() + disturbed.random.expovariate(1 / mean_gap_s)
            until(lambda: time.monotonic() > gap and num_steps(disturbed.folder) > before)  # noqa: B023  # used at once
        code = stop(disturbed.run)
        stop(beside)
        return disturbed, usage, code
    finally:
        disturbed.run.kill()
        beside.kill()
        cluster.shutdown()


def report(disturbed: Disturbed, usage: Usage, *, code: int, minutes: float, seed: int) -> tuple[str, bool]:
    """The report, and whether all is well."""
    quiet = RunFolder(disturbed.folder.path.parent / "undisturbed")
    ours, theirs = (
        [{k: v for k, v in row.items() if k not in TIMES and not k.startswith("time/")} for row in read_rows(f.metrics)]
        for f in (disturbed.folder, quiet)
    )
    common = min(len(ours), len(theirs))
    same = next((i for i in range(common) if ours[i] != theirs[i]), common)
    budget = theirs[0]["allocation/total"]
    lost = sum(budget - row["allocation/total"] for row in ours)
    paid = [rows[common - 1]["cost/generated_tokens"] for rows in (ours, theirs)]
    evaluated = [i for i in range(common) if "eval/accuracy" in ours[i]]
    accuracies = [[rows[i]["eval/accuracy"] for i in evaluated[-5:]] for rows in (ours, theirs)]
    once = [row["step"] for row in ours] == list(range(len(ours)))
    longest = max(disturbed.drivers, key=lambda driver: len(driver.files.get("driver", ())))
    flat = usage.flat and longest.flat
    kinds = ", ".join(f"{kind} {disturbed.faults[kind]}" for kind in KINDS)
    lines = [
        f"- {minutes:g} minutes, seed {seed}; {sum(disturbed.faults.values())} faults: {kinds}",
        f"- recovered from all of them, {len(disturbed.drivers) - 1} times by --resume after the driver's death; "
        f"SIGTERM then ended the run with exit code {code}",
        f"- steps: {len(ours)}, each once: {once}; undisturbed in the same time: {len(theirs)}",
        f"- samples missing from a step's budget: {lost:g}; tokens trained up to step {common}: {paid[0]:g}, "
        f"undisturbed {paid[1]:g}",
        f"- steps equal to the undisturbed run's, to the last digit: the first {same} of {common}"
        f"{_differences(ours, theirs)}",
        f"- accuracy, mean of the last {len(accuracies[0])} common evaluations: {_mean(accuracies[0]):.3f}, "
        f"undisturbed {_mean(accuracies[1]):.3f}",
        f"- memory (MiB, its own) and open files after a fifth of the time and at the end; flat: {flat}",
        "",
        "| process | memory | at the end | files | at the end |",
        "|---|---|---|---|---|",
        *(
            f"| {name}, {whose} | {memory[0]:.0f} | {memory[1]:.0f} | {files[0]} | {files[1]} |"
            for whose, part in (("undisturbed", usage), ("disturbed, its longest life", longest))
            for name, *figures in part.rows()
            for memory, files in [(figures[:2], figures[2:])]
        ),
    ]
    well = lost == 0 and paid[0] == paid[1] and once and flat and code == 128 + signal.SIGTERM
    return "\n".join(lines), well


def _differences(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """The metrics that differ in some step, each with its largest relative difference."""
    largest: dict[str, float] = {}
    for ours_row, theirs_row in zip(ours, theirs, strict=False):
        for name in ours_row.keys() & theirs_row.keys():
            a, b = ours_row[name] or 0.0, theirs_row[name] or 0.0
            if a != b:
                largest[name] = max(largest.get(name, 0.0), abs(a - b) / max(abs(a), abs(b)))
    return "".join(
        f"; {name} by up to {value:.0e}" for name, value in sorted(largest.items(), key=lambda item: -item[1])
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mean-gap", type=float, default=45.0, help="seconds between a fault and the next, at least")
    parser.add_argument("--output", type=Path, default=None, help="also write the report here")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"runs and logs are in {folder}", flush=True)
    disturbed, usage, code = soak(folder, minutes=options.minutes, seed=options.seed, mean_gap_s=options.mean_gap)
    text, well = report(disturbed, usage, code=code, minutes=options.minutes, seed=options.seed)
    print(text)
    if options.output is not None:
        options.output.write_text(
            f"# Soak\n\n`make soak`: {(__doc__ or '').splitlines()[0]}\n\n{text}\n", encoding="utf-8"
        )
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
