"""`gvm-ray compare`: makes all planned runs that aren't done yet, several at once, and writes the results of all."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gvm_ray.actors.cluster import connected
from gvm_ray.config import ComparisonConfig, RunConfig
from gvm_ray.config.lab import Phase
from gvm_ray.exceptions import DataError
from gvm_ray.lab.compare.plots import write_plots
from gvm_ray.lab.compare.records import (
    RunCosts,
    RunRecord,
    read_csv,
    read_record,
    record_path,
    run_key,
    write_csv,
    write_record,
)
from gvm_ray.lab.compare.runs import PlannedRun, planned_runs, selected
from gvm_ray.lab.compare.slot import SharedPrompts, Slot
from gvm_ray.lab.compare.tables import null_lines, write_tables
from gvm_ray.reporting.run_folder import RAY_LOG
from gvm_ray.resources import logical_cpus
from gvm_ray.run import run_to_end

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ComparisonFolder:
    """The folders in which a comparison keeps its records and results.

    A run is known from its record, a JSON file below `records`, or from the CSV files in `results`. The CSV files alone
    are enough to continue a comparison elsewhere.
    """

    path: Path
    results: Path

    @classmethod
    def of(cls, comparison: ComparisonConfig, *, config_folder: Path, phase: Phase) -> "ComparisonFolder":
        path = Path(comparison.runs_dir).resolve() / comparison.name
        results = path / "results" if comparison.results_dir is None else config_folder / comparison.results_dir
        return cls(path=path, results=results / phase)

    @property
    def records(self) -> Path:
        """The folder of records, one JSON file per run."""
        return self.path / "records"

    def known(self, runs: Sequence[PlannedRun]) -> dict[str, RunRecord]:
        """Name -> record, for the runs that have a record with the same settings."""
        recorded = self._recorded(runs)
        return {run.name: recorded[run.name] for run in runs if _is_of(recorded.get(run.name), run)}

    def superseded(self, runs: Sequence[PlannedRun]) -> dict[str, RunRecord]:
        """Name -> record with other settings than the file's now, for arms that have no others in their setting."""
        recorded = self._recorded(runs)
        present = {(run.setting, run.arm) for run in runs if _is_of(recorded.get(run.name), run)}
        return {
            run.name: recorded[run.name]
            for run in runs
            if run.name in recorded and (run.setting, run.arm) not in present
        }

    def _recorded(self, runs: Sequence[PlannedRun]) -> dict[str, RunRecord]:
        by_key = {}
        if (self.results / "runs.csv").is_file():
            by_key = {record.key: record for record in read_csv(self.results)}
        paths = {run.name: record_path(self.records, run) for run in runs}
        recorded = {
            run.name: read_record(paths[run.name]) if paths[run.name].is_file() else by_key.get(run_key(run))
            for run in runs
        }
        return {name: record for name, record in recorded.items() if record is not None}


def compare(
    comparison: ComparisonConfig, *, config_folder: Path, phase: Phase, only: Sequence[str] = ("*",), say: Say = print
) -> list[RunRecord]:
    """Make the runs of a phase that aren't done yet, and write the results.

    Args:
        comparison: the comparison.
        config_folder: folder of its TOML file.
        phase: the phase, which selects seeds and tests.
        only: patterns of the runs to make now, as in `plan.selected`; the results include all runs that are done.
        say: called with a line when a run ends.

    Raises:
        UserError: a run's settings or a base policy are wrong; raised before the first run.
    """
    folder = ComparisonFolder.of(comparison, config_folder=config_folder, phase=phase)
    planned = planned_runs(comparison, folder=config_folder, phase=phase)
    known = folder.known(planned)
    runs = selected(planned, only)
    finished = {name for name, record in known.items() if record.status == "finished"}
    waiting = [run for run in runs if run.name not in finished]  # failed runs are tried again
    say(f"{len(runs)} runs, {len(runs) - len(waiting)} of them done before")
    for setting in settings_without(comparison.baseline, runs, known):
        say(
            f"warning: {setting} has no run of {comparison.baseline!r}, so its table will show no ratio; add --only "
            f"'{setting}/{comparison.baseline}/*'"
        )
    if waiting:
        folder.path.mkdir(parents=True, exist_ok=True)
        with connected(
            _for_all_slots(waiting[0].config, num_slots=comparison.num_slots), ray_log=folder.path / RAY_LOG
        ):
            run_to_end(_run_all(waiting, folder=folder, num_slots=comparison.num_slots, say=say))
    return report(comparison, config_folder=config_folder, phase=phase)


def report(comparison: ComparisonConfig, *, config_folder: Path, phase: Phase) -> list[RunRecord]:
    """Write tables, plots and CSV files of a phase's existing records, and return the records.

    Among them are those of an arm that has been run with other settings only: the tables name them.

    Raises:
        UserError: there are no records yet, or they can't be compared.
    """
    folder = ComparisonFolder.of(comparison, config_folder=config_folder, phase=phase)
    planned = planned_runs(comparison, folder=config_folder, phase=phase)
    superseded = folder.superseded(planned)
    either = folder.known(planned) | superseded
    known = [either[run.name] for run in planned if run.name in either]
    write_csv(known, folder.results)
    write_tables(
        known,
        folder.results,
        baseline=comparison.baseline,
        prices=comparison.prices,
        superseded=list(superseded.values()),
    )
    write_plots(
        known,
        folder.results,
        baseline=comparison.baseline,
        highlighted=comparison.highlighted,
        prices=comparison.prices,
    )
    return known


def report_against(comparison: ComparisonConfig, arm: str, *, config_folder: Path, phase: Phase) -> Path:
    """Write tables `against_<arm>` with this arm as the baseline, over the settings in which it has run.

    Returns:
        The path of the Markdown.

    Raises:
        UserError: the arm is unknown or has no finished run, or the records can't be compared.
    """
    arms = [each.name for each in comparison.arms]
    if arm not in arms:
        raise DataError(f"--against {arm}: no such arm; write one of {', '.join(arms)}")
    folder = ComparisonFolder.of(comparison, config_folder=config_folder, phase=phase)
    known = list(folder.known(planned_runs(comparison, folder=config_folder, phase=phase)).values())
    settings = {str(record.setting) for record in known if record.arm == arm and record.status == "finished"}
    if not settings:
        raise DataError(f"--against {arm}: it has no finished run of the {phase}; make one first, or name another arm")
    return write_tables(
        [record for record in known if str(record.setting) in settings],
        folder.results,
        name=f"against_{arm}",
        baseline=arm,
        prices=comparison.prices,
    )[0]


def null_report(comparison: ComparisonConfig, *, config_folder: Path, phase: Phase, num_comparisons: int = 400) -> str:
    """Simulate comparisons with a known truth from a phase's existing records, with as many seeds as the phase has.

    Raises:
        UserError: there are no records yet.
    """
    folder = ComparisonFolder.of(comparison, config_folder=config_folder, phase=phase)
    known = list(folder.known(planned_runs(comparison, folder=config_folder, phase=phase)).values())
    if not known:
        raise DataError(f"there are no runs of the {phase} to simulate from; make them first, or give another --phase")
    lines = null_lines(
        known,
        baseline=comparison.baseline,
        num_comparisons=num_comparisons,
        num_seeds=len(comparison.seeds(phase)),
    )
    return "\n\n".join("\n".join([", ".join(group[1:]), *errors]) for group, errors in lines.items())


def _is_of(record: RunRecord | None, run: PlannedRun) -> bool:
    return record is not None and record.fingerprint == run.fingerprint


def settings_without(arm: str, runs: Sequence[PlannedRun], known: Mapping[str, RunRecord]) -> list[str]:
    """The settings of these runs in which an arm has neither a run nor a record."""
    there = {str(run.setting) for run in [*runs, *known.values()] if run.arm == arm}
    return [setting for setting in dict.fromkeys(str(run.setting) for run in runs) if setting not in there]


async def _run_all(runs: Sequence[PlannedRun], *, folder: ComparisonFolder, num_slots: int, say: Say) -> None:
    """Build the bases, then make the runs in order, each in the next free slot."""
    load = SharedPrompts()
    slots = [
        Slot(number, num_slots=num_slots, folder=folder.path / "work", load=load)
        for number in range(min(num_slots, len(runs)))
    ]
    try:
        bases = {(run.setting.family, run.setting.base): run for run in runs}
        await _share(slots, list(bases.values()), Slot.build_base)
        done = 0

        async def run_one(slot: Slot, run: PlannedRun) -> None:
            nonlocal done
            start = time.monotonic()
            record = await _record(slot, run)
            write_record(folder.records, record)
            done += 1
            say(f"[{done}/{len(runs)}] {run.name}: {_outcome(record)} in {time.monotonic() - start:.0f} s")

        await _share(slots, runs, run_one)
    finally:
        await asyncio.gather(*(slot.close() for slot in slots))


async def _share(
    slots: Sequence[Slot], runs: Sequence[PlannedRun], work: Callable[[Slot, PlannedRun], Awaitable[None]]
) -> None:
    """Let each slot take the next run when it is free."""
    waiting = iter(runs)

    async def serve(slot: Slot) -> None:
        for run in waiting:
            await work(slot, run)

    async with asyncio.TaskGroup() as tasks:
        for slot in slots:
            tasks.create_task(serve(slot))


async def _record(slot: Slot, run: PlannedRun) -> RunRecord:
    """Make a run and return its record; an error goes into the record, so that other runs continue."""
    try:
        return await slot.run(run)
    except Exception as error:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        return RunRecord(
            phase=run.phase,
            setting=run.setting,
            arm=run.arm,
            seed=run.seed,
            status="failed",
            error=f"{type(cause).__name__}: {cause}",
            updates_per_batch=run.config.algorithm.updates_per_batch,
            token_budget=run.token_budget,
            evaluations=(),
            costs=RunCosts(),
            fingerprint=run.fingerprint,
        )


def _outcome(record: RunRecord) -> str:
    if record.status == "failed":
        return f"FAILED, {record.error.splitlines()[0]}"
    first, last = record.evaluations[0], record.evaluations[-1]
    tests = ", ".join(f"{name} {first.accuracy[name]:.3f} -> {last.accuracy[name]:.3f}" for name in record.tests)
    return f"{tests} with {last.charged_tokens:,.0f} tokens and {last.updates} updates"


def _for_all_slots(config: RunConfig, *, num_slots: int) -> RunConfig:
    """The configuration of one run, with logical CPUs for `num_slots` runs at once."""
    cluster = config.cluster
    if cluster.num_cpus is None:
        engine, learner, rewards = config.engine, config.learner, config.rewards
        needed = (
            engine.num_generators * logical_cpus(engine.cpus_per_generator)
            + learner.num_workers * logical_cpus(learner.cpus_per_worker)
            + rewards.num_actors * rewards.cpus_per_actor
        )
        cluster = cluster.model_copy(update={"num_cpus": math.ceil(num_slots * (needed + 1))})
    return config.model_copy(update={"cluster": cluster})
