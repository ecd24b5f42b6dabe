"""The Python API: `train` a run from its configuration, `evaluate` a model on a configuration's prompts."""

import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from gvm_ray.actors.cluster import check_home, check_machine, connected, find_threads, names_are_free
from gvm_ray.actors.context import RunContext
from gvm_ray.actors.metrics import RayGaugeSink
from gvm_ray.actors.pools import fetch_groups
from gvm_ray.actors.watch import RUN, FailureEvent, Raise
from gvm_ray.background import drain
from gvm_ray.checkpoints import CheckpointFolder, RestoredCheckpoint, check_settings, differences, run_origins
from gvm_ray.config import RunConfig, parse_config
from gvm_ray.config.load import merged
from gvm_ray.evaluation import EvaluationResult
from gvm_ray.evaluation.evaluator import AcceptRates, HeldOutEvaluator
from gvm_ray.exceptions import CheckpointError, DataError
from gvm_ray.failure_log import FailureLog
from gvm_ray.loop import StepResult, is_over
from gvm_ray.loop import train as run_loop
from gvm_ray.phase_clock import PHASES
from gvm_ray.prepare import Prepared, check_data, find_base_model, prepare, report_lines, with_date
from gvm_ray.reporting import (
    Callback,
    GuardedSinks,
    Reporter,
    RunFolder,
    check_sinks,
    create_sinks,
    read_steps,
    read_summary,
    summary_lines,
    write_plots,
    write_summary,
)
from gvm_ray.reporting.present import PresentFile
from gvm_ray.reporting.run_folder import json_text
from gvm_ray.resources import Threads
from gvm_ray.rewards.votes import merged_votes
from gvm_ray.stop_request import StopRequest
from gvm_ray.system import Launched, launched, make_evaluator, start_pools, trial_of_base
from gvm_ray.types import CheckpointState

Result = TypeVar("Result")


def train(
    config: RunConfig, *, resume: bool = False, overwrite: bool = False, callbacks: Sequence[Callback] = ()
) -> dict[str, Any]:
    """Run the whole job that `config` describes; returns the contents of summary.json.

    Connects to `cluster.address` or RAY_ADDRESS if given; otherwise starts a local Ray cluster for this run.

    Args:
        config: the run.
        resume: continue the run of this name from its last checkpoint, or from the beginning if it has none yet. A run
            that has ended is left unchanged, and its summary is returned.
        overwrite: replace an earlier run of this name.
        callbacks: each is called with the index and metrics of every completed step. A step that is repeated after
            going back to a checkpoint is reported again.

    Raises:
        UserError: a setting, file, model or checkpoint is wrong; raised before anything expensive starts.
        SystemFailure: a part of the running system failed.
        RunStopped: SIGTERM or Ctrl-C ended it, after the step under way and its checkpoint.
    """
    with opened(config, resume=resume, overwrite=overwrite, callbacks=callbacks) as job, job.folder.disk_errors():
        run_to_end(_to_the_end(job))
    assert job.summary is not None
    return job.summary


async def _to_the_end(job: "Job") -> None:
    with job.stop.listening():
        await drain(steps(job))


@contextmanager
def opened(
    config: RunConfig, *, resume: bool = False, overwrite: bool = False, callbacks: Sequence[Callback] = ()
) -> Iterator["Job"]:
    """A checked and prepared run, connected to Ray; see `train`."""
    check_home(config)
    folder = RunFolder(Path(config.runs_dir).resolve() / config.name)
    folder.check_start(resume=resume, overwrite=overwrite)
    check_sinks(config)
    if not resume:  # a run that has ended needs neither
        check_machine(config)
        check_data(config)
    config = with_date(config, earlier=_kept_date(folder) if resume else None)
    job = Job(config, folder=folder, checkpoints=CheckpointFolder(folder=folder.checkpoints, config=config))
    job.callbacks = callbacks
    if resume:
        job.restored = _restored(config, folder, job.checkpoints)
        job.summary = _ended(config, folder, has_checkpoint=job.restored is not None)
        if job.summary is not None:
            yield job
            return
    if overwrite and folder.has_begun:
        with tempfile.TemporaryDirectory() as scratch:  # check first: a wrong setting must not delete the earlier run
            prepare(config, run_dir=Path(scratch))
    folder.create(resume=resume, overwrite=overwrite)
    if resume and job.restored is None:
        print("no checkpoint was completed yet: the run starts from the beginning", flush=True)
    with folder.disk_errors():
        job.prepared = prepare(config, run_dir=folder.path)
        _keep_origins(folder, run_origins(config, job.prepared.prompts), resume=resume)
        folder.save_config(config)
    print("\n".join(report_lines(job.prepared)), flush=True)
    with _open_sinks(job), connected(config, ray_log=folder.ray_log) as dashboard:
        if dashboard:
            print(f"dashboard http://{dashboard} (`ray get-auth-token` prints its token)", flush=True)
        job.threads = find_threads(config)
        print(f"threads: {job.threads.rank} of a learner rank, {job.threads.generator} of a generator", flush=True)
        yield job


@contextmanager
def _open_sinks(job: "Job") -> Iterator[None]:
    """Give the job its sinks, and close them at the end. They outlive a return to a checkpoint."""
    gauges = [RayGaugeSink(run=job.config.name)] if job.config.reporting.ray_metrics else []
    job.sinks = GuardedSinks([*gauges, *create_sinks(job.config, job.folder)])
    try:
        yield
    finally:
        job.sinks.close()


def _kept_date(folder: RunFolder) -> date | None:
    """The date that the run's chat template was given before; None if there was none."""
    day = folder.read_config().get("prompts", {}).get("template", {}).get("date")
    return None if day is None else date.fromisoformat(day)


def _keep_origins(folder: RunFolder, origins: Mapping[str, Any], *, resume: bool) -> None:
    """Write the run's origins, or compare them with those it began with. Its warm start may be done already.

    Raises:
        CheckpointError: the model's files or the prompts have changed since, or origins.json is damaged.
    """
    if resume and folder.origins.is_file():
        try:
            before = dict(json.loads(folder.origins.read_bytes()))
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{str(folder.origins)!r} isn't what the run wrote ({error}); remove it to resume without a comparison"
            ) from error
        if changed := differences(before, origins):
            raise CheckpointError(
                f"the run in {str(folder.path)!r} began with another model or other prompts: {'; '.join(changed)}. Put "
                "the files back to resume it, start a new run with --set name=..., or start over with --overwrite"
            )
    folder.origins.write_text(json.dumps(origins, indent=2) + "\n", encoding="utf-8")


def evaluate(
    model: str,
    config: RunConfig,
    *,
    num_samples: int = 8,
    temperature: float | None = None,
    output: str | Path | None = None,
) -> EvaluationResult:
    """avg@k, pass@k and maj@k of a model on the evaluation prompts of a configuration.

    Args:
        model: a Hugging Face folder or hub id.
        config: prompts, rewards, sampling and engine; its own model and learner settings are not used.
        num_samples: completions for each prompt.
        temperature: of sampling; None means `evaluation.temperature`.
        output: file to write the numbers to, as JSON.

    Raises:
        UserError: the model, the prompts or a setting is wrong.
    """
    sampling: dict[str, Any] = {"num_samples": num_samples}
    if temperature is not None:
        sampling["temperature"] = temperature
    config = evaluation_config(config, model, {"evaluation": sampling})
    check_machine(config, learners=False)
    check_data(config)
    config = with_date(config)
    prepared = prepare(config, run_dir=Path(config.runs_dir).resolve() / config.name, learners=False)
    if not prepared.prompts.eval:
        raise DataError("the config has no [prompts.eval], so there is nothing to evaluate on; add a source there")
    with connected(config, learners=False):
        result = run_to_end(_evaluate(config, prepared))
    if output is not None:
        Path(output).write_text(json_text(result.as_dict(), indent=2) + "\n", encoding="utf-8")
    return result


def evaluation_config(config: RunConfig, model: str, changes: Mapping[str, Any]) -> RunConfig:
    """The settings for sampling a finished model: the run's, with `model` (a Hugging Face folder or hub id) instead.

    Raises:
        ConfigError: the changes conflict with the other settings.
    """
    values = {**json.loads(config.model_dump_json()), "model": {"type": "pretrained", "path": model}}
    return parse_config(merged(values, {**changes, "warm_start": None}), origin="the evaluation's settings")


def _restored(config: RunConfig, folder: RunFolder, checkpoints: CheckpointFolder) -> RestoredCheckpoint | None:
    """The checkpoint to resume from; None if none was completed. In both cases the settings are checked."""
    restored = checkpoints.latest()
    if restored is None:
        check_settings(config, folder.read_config(), origin=f"the run in {str(folder.path)!r}")
    return restored


def _ended(config: RunConfig, folder: RunFolder, *, has_checkpoint: bool) -> dict[str, Any] | None:
    """The summary of a run that has made all its steps and exported its model; None if the run can continue.

    Raises:
        CheckpointError: there are steps left, but no checkpoint to continue from.
    """
    summary = read_summary(folder.path)
    if summary is None:
        return None
    if is_over(config, summary["num_steps"], summary) and (folder.model / "config.json").is_file():
        print(
            f"nothing to do: run {config.name!r} ended after {summary['num_steps']} steps; a larger num_steps, or "
            "token_budget if that is spent, continues it",
            flush=True,
        )
        return summary
    if not has_checkpoint:
        raise CheckpointError(
            f"--resume: the run in {str(folder.path)!r} ended after {summary['num_steps']} steps, and none of its "
            "checkpoints is left to go on from; start a new run from its model/ with --set name=..., or start over "
            "with --overwrite"
        )
    return None


@dataclass(kw_only=True, eq=False)
class Job:
    """A run from its first checks to its summary, across all its restarts from a checkpoint."""

    config: RunConfig = field(kw_only=False)
    folder: RunFolder
    checkpoints: CheckpointFolder
    callbacks: Sequence[Callback] = ()
    sinks: GuardedSinks | None = None  # destinations of the metrics besides the run's folder; None before the start
    prepared: Prepared | None = None  # None if the run has already ended
    restored: RestoredCheckpoint | None = None  # start of the next attempt
    threads: Threads = field(default_factory=Threads)  # kept over all attempts, so that they round alike
    summary: dict[str, Any] | None = None  # contents of summary.json, once the run has ended
    failures: FailureLog = field(init=False)
    stop: StopRequest = field(default_factory=StopRequest, init=False)

    def __post_init__(self) -> None:
        self.failures = FailureLog(self.config.faults)


async def steps(job: Job) -> AsyncGenerator[StepResult | None]:
    """Make the run's steps and yield them as they are completed. Yields None each time the system has come up.

    After a failure that no part recovers from, the run goes back to its last checkpoint and repeats the steps since
    then. After the last step `job.summary` is set, unless a stop was requested.
    """
    while job.summary is None and not job.stop.is_set:
        try:
            async with aclosing(_attempt(job)) as attempt:
                async for result in attempt:
                    yield result
            continue
        except Exception as error:
            cause = first_of(error)
            if isinstance(RUN.decide(FailureEvent(error=cause)), Raise):
                raise
            job.failures.record("the run", cause)
        await names_are_free(timeout_s=job.config.deadlines.start_s)
        job.restored = job.checkpoints.latest()
        base = find_base_model(job.config, run_dir=job.folder.path)  # again: the warm start may be done now
        assert job.prepared is not None
        job.prepared = replace(job.prepared, base=base)


async def _attempt(job: Job) -> AsyncGenerator[StepResult | None]:
    """Run from the last checkpoint to the end, or until the whole system fails."""
    config, folder, prepared = job.config, job.folder, job.prepared
    assert prepared is not None
    start_step = job.restored.state.step if job.restored is not None else 0
    context = RunContext.of(config, threads=job.threads, failures=job.failures)
    with (
        PresentFile(folder, context.clock),
        Reporter(
            config,
            folder.path,
            start_step=start_step,
            sinks=job.sinks,
            callbacks=job.callbacks,
            phases=context.clock,
            failures=job.failures,
        ) as reporter,
    ):
        async with launched(
            config,
            prepared,
            context=context,
            checkpoints=job.checkpoints,
            restored=job.restored,
            run_dir=folder.path,
            log=reporter,
            stop=job.stop,
        ) as run:
            trial = trial_of_base(config, prepared, run.evaluator)
            base_accuracy = await _base_accuracy(run, trial, folder, reporter)
            yield None
            context.clock.restart()
            async with aclosing(run_loop(run.system, config, start=run.start)) as results:
                with job.stop.steps():
                    async for result in results:
                        yield result
            if job.stop.is_set:
                return
            await run.learners.export(str(folder.model))
    job.summary = _close(folder, run.start, base_accuracy)


async def _base_accuracy(run: Launched, trial: HeldOutEvaluator, folder: RunFolder, reporter: Reporter) -> float | None:
    """Accuracy of the starting policy, if known: measured at step 0, and read from the folder by a resumed run. At step
    0 also print its accept rates in a trial on training prompts."""
    if run.start.step == 0:
        rates = AcceptRates.of(await trial.sample(), accept_threshold=trial.accept_threshold)
        reporter.log_base_evaluation(await run.evaluator.evaluate(0), notes=rates.lines())
    return folder.read_base_accuracy()


def _close(folder: RunFolder, start: CheckpointState, base_accuracy: float | None) -> dict[str, Any]:
    """Write and print plots and summary of a finished run; `start` is the state of its last resumption."""
    rows = read_steps(folder.metrics)
    last = {"step": start.step - 1, "time_s": 0.0, **start.costs, **(rows[-1] if rows else {})}

    def seconds(name: str) -> float:
        return sum(row.get(f"time/{name}_s") or 0.0 for row in rows)

    plots = write_plots(folder, base_accuracy=base_accuracy)
    summary = write_summary(
        folder.path,
        base_accuracy=base_accuracy,
        final_accuracy=last.get("eval/accuracy"),
        num_steps=last["step"] + 1,  # a token budget may end a run early
        time_s=last["time_s"],
        steps_s=seconds("step"),
        phases={name: seconds(name) for name in (*PHASES, "idle")},
        costs={name: value for name, value in last.items() if name.startswith("cost/")},
    )
    print("\n".join(summary_lines(summary, run_dir=folder.path, plots=plots)), flush=True)
    return summary


async def _evaluate(config: RunConfig, prepared: Prepared) -> EvaluationResult:
    context = RunContext.of(config, threads=find_threads(config, learners=False))
    pools = start_pools(config, prepared.model, kind=prepared.engine_kind, context=context)
    try:
        await pools.start()
        evaluator = make_evaluator(config, prepared, pools, by_time=config.reporting.progress)
        outcomes = await evaluator.sample()
        groups = await fetch_groups(outcomes, timeout_s=config.deadlines.sample_s)
    finally:
        pools.close()
    return EvaluationResult.of(
        groups, merge_votes=merged_votes, accept_threshold=config.rewards.accept_threshold, seed=config.seed
    )


def run_to_end(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine and return its result. Of a group of errors, raise the first: its message is for the user."""
    try:
        return asyncio.run(coroutine)
    except BaseExceptionGroup as group:
        raise first_of(group) from group


def first_of(error: BaseException) -> BaseException:
    """The first error of a group, or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
