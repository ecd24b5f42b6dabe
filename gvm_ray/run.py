"""The Python API: `train` a run from its configuration, `evaluate` a model on a configuration's prompts."""

import asyncio
import json
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from gvm_ray.actors.metrics import RayGaugeSink
from gvm_ray.actors.placement import check_home, connected, names_are_free
from gvm_ray.actors.pools import fetch_groups
from gvm_ray.checkpoints import CheckpointFolder, RestoredCheckpoint
from gvm_ray.config import RunConfig, parse_config
from gvm_ray.config.load import merged
from gvm_ray.evaluation import EvaluationResult
from gvm_ray.exceptions import ActorDied, DataError, DeadlineExceeded, ObjectsLost
from gvm_ray.failure_log import FailureLog
from gvm_ray.launch import Launched, launched, make_evaluator, start_pools
from gvm_ray.loop import System
from gvm_ray.loop import train as run_loop
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.prepare import Prepared, find_base_model, prepare, report_lines
from gvm_ray.reporting import (
    Callback,
    CallbackSink,
    MetricsSink,
    Reporter,
    RunFolder,
    read_steps,
    summary_lines,
    write_plots,
    write_summary,
)
from gvm_ray.stop_request import StopRequest

Result = TypeVar("Result")


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    arrange: Callable[[System], System] = lambda system: system,
) -> dict[str, Any]:
    """Run the whole job that `config` describes; returns what summary.json holds.

    Connects to RAY_ADDRESS or `cluster.address` where given, else starts a local Ray for the time of the run.

    Args:
        config: the run.
        resume: go on from the last checkpoint of the run of this name; from its beginning where it has none yet.
        overwrite: replace an earlier run of this name.
        callbacks: each is called with the index and the metrics of every step that is completed. A step that is done
            again, from the last checkpoint, comes again.
        arrange: given the parts of the started system, gives those that the loop is to run with.

    Raises:
        UserError: a setting, file, model or checkpoint is wrong; raised before anything heavy starts.
        SystemFailure: a part of the running system failed.
        RunStopped: SIGTERM or Ctrl-C ended it, after the step under way and its checkpoint.
    """
    check_home(config)
    folder = RunFolder(Path(config.runs_dir).resolve() / config.name)
    if overwrite and folder.has_begun:
        with tempfile.TemporaryDirectory() as scratch:  # a wrong setting must not cost the run that would be replaced
            prepare(config, run_dir=Path(scratch))
    folder.create(resume=resume, overwrite=overwrite)
    checkpoints = CheckpointFolder(folder=folder.checkpoints, config=config)
    restored = checkpoints.latest() if resume else None
    if resume and restored is None:
        print("no checkpoint was completed yet: the run begins anew", flush=True)
    with folder.disk_errors():
        prepared = prepare(config, run_dir=folder.path)
        folder.save_config(config)
    print("\n".join(report_lines(prepared)), flush=True)
    with connected(config) as dashboard, folder.disk_errors():
        if dashboard:
            print(f"dashboard http://{dashboard} (`ray get-auth-token` prints its token)", flush=True)
        job = Job(config, folder=folder, checkpoints=checkpoints, callbacks=callbacks, arrange=arrange)
        return run_to_end(_train(job, prepared, restored=restored))


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
        temperature: of sampling; none takes evaluation.temperature.
        output: a file that the numbers are written to as JSON.

    Raises:
        UserError: the model, the prompts or a setting is wrong.
    """
    sampling: dict[str, Any] = {"num_samples": num_samples}
    if temperature is not None:
        sampling["temperature"] = temperature
    config = evaluation_config(config, model, {"evaluation": sampling})
    prepared = prepare(config, run_dir=Path(config.runs_dir).resolve() / config.name, learners=False)
    if not prepared.prompts.eval:
        raise DataError("the config has no [prompts.eval], so there is nothing to evaluate on; add a source there")
    with connected(config, learners=False):
        result = run_to_end(_evaluate(config, prepared))
    if output is not None:
        Path(output).write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")
    return result


def evaluation_config(config: RunConfig, model: str, changes: Mapping[str, Any]) -> RunConfig:
    """The settings for sampling a finished model: a Hugging Face folder or hub id takes the place of the run's.

    Raises:
        ConfigError: the changes don't fit the rest.
    """
    values = {**json.loads(config.model_dump_json()), "model": {"type": "pretrained", "path": model}}
    return parse_config(merged(values, {**changes, "warm_start": None}), origin="the evaluation's settings")


@dataclass(kw_only=True, eq=False)
class Job:
    """What stays the same when a run goes on from its last checkpoint."""

    config: RunConfig = field(kw_only=False)
    folder: RunFolder
    checkpoints: CheckpointFolder
    callbacks: Sequence[Callback] = ()
    arrange: Callable[[System], System] = lambda system: system
    failures: FailureLog = field(init=False)
    stop: StopRequest = field(default_factory=StopRequest, init=False)

    def __post_init__(self) -> None:
        self.failures = FailureLog(self.config.faults)

    @property
    def sinks(self) -> list[MetricsSink]:
        """Where the metrics go besides the run's folder."""
        gauges = [RayGaugeSink(run=self.config.name)] if self.config.reporting.ray_metrics else []
        return [*gauges, *map(CallbackSink, self.callbacks)]


async def _train(job: Job, prepared: Prepared, *, restored: RestoredCheckpoint | None) -> dict[str, Any]:
    """The run to its end; from its last checkpoint again where a failure can't be mended from within."""
    with job.stop.listening():
        while True:
            try:
                return await _train_once(job, prepared, restored=restored)
            except Exception as error:
                if not isinstance(first_of(error), ActorDied | ObjectsLost | DeadlineExceeded):
                    raise
                job.failures.record("the run", first_of(error))
            await names_are_free(timeout_s=job.config.deadlines.start_s)
            restored = job.checkpoints.latest()
            base = find_base_model(job.config, run_dir=job.folder.path)  # a warm start may be done
            prepared = replace(prepared, base=base)


async def _train_once(job: Job, prepared: Prepared, *, restored: RestoredCheckpoint | None) -> dict[str, Any]:
    config, folder, stop = job.config, job.folder, job.stop
    start_step = restored.state.step if restored is not None else 0
    clock = PhaseClock()
    with Reporter(
        config, folder.path, start_step=start_step, sinks=job.sinks, phases=clock, failures=job.failures
    ) as reporter:
        async with launched(
            config,
            prepared,
            checkpoints=job.checkpoints,
            restored=restored,
            run_dir=folder.path,
            log=reporter,
            clock=clock,
            failures=job.failures,
            stop=stop,
        ) as run:
            base_accuracy = await _base_accuracy(run, folder)
            clock.restart()
            with stop.steps():
                await run_loop(job.arrange(run.system), config, start=run.start)
            steps_s, phases = clock.elapsed, clock.seconds()
            if stop.is_set:
                raise asyncio.CancelledError
            await run.learners.export(str(folder.model))
    return _close(config, folder, base_accuracy, steps_s=steps_s, phases=phases)


async def _base_accuracy(run: Launched, folder: RunFolder) -> float | None:
    """Accuracy of the starting policy; a resumed run reads what its beginning measured."""
    if run.start.step > 0:
        return json.loads(folder.base_evaluation.read_text(encoding="utf-8")).get("eval/accuracy")
    metrics = await run.evaluator.evaluate()
    folder.base_evaluation.write_text(json.dumps(metrics) + "\n", encoding="utf-8")
    if metrics:
        print(f"base held-out accuracy {metrics['eval/accuracy']:.3f}", flush=True)
    return metrics.get("eval/accuracy")


def _close(
    config: RunConfig,
    folder: RunFolder,
    base_accuracy: float | None,
    *,
    steps_s: float,
    phases: Mapping[str, float],
) -> dict[str, Any]:
    """Plots and summary of a finished run."""
    rows = read_steps(folder.metrics)
    last = rows[-1]
    plots = write_plots(folder, base_accuracy=base_accuracy)
    summary = write_summary(
        folder.path,
        base_accuracy=base_accuracy,
        final_accuracy=last.get("eval/accuracy"),
        num_steps=last["step"] + 1,  # a token budget may end a run early
        time_s=last["time_s"],
        steps_s=steps_s,
        phases=phases,
        costs={name: value for name, value in last.items() if name.startswith("cost/")},
    )
    print("\n".join(summary_lines(summary, run_dir=folder.path, plots=plots)), flush=True)
    return summary


async def _evaluate(config: RunConfig, prepared: Prepared) -> EvaluationResult:
    pools = start_pools(config, prepared)
    try:
        await pools.start()
        evaluator = make_evaluator(config, prepared, pools)
        outcomes = await evaluator.sample()
        groups = await fetch_groups(outcomes, timeout_s=config.deadlines.sample_s)
        return EvaluationResult.of(groups, accept_threshold=config.rewards.accept_threshold, seed=config.seed)
    finally:
        pools.close()


def run_to_end(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """What a coroutine returns; of a group of errors the first one is raised, for its message is the user's."""
    try:
        return asyncio.run(coroutine)
    except BaseExceptionGroup as group:
        raise first_of(group) from group


def first_of(error: BaseException) -> BaseException:
    """The first error of a group, or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
