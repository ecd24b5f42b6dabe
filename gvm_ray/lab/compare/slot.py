"""One place for runs of a comparison, one after the other on the same processes."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gvm_ray.actors.cluster import namespace_of
from gvm_ray.actors.learners import LearnerGroup
from gvm_ray.actors.pools import SamplingPools
from gvm_ray.algorithms import create_algorithm, token_loss
from gvm_ray.checkpoints import NoCheckpoints
from gvm_ray.config import RunConfig
from gvm_ray.config.model import PretrainedModelConfig
from gvm_ray.config.prompts import PromptsConfig
from gvm_ray.evaluation.evaluator import HeldOutEvaluator
from gvm_ray.exceptions import ConfigError, SystemFailure
from gvm_ray.failure_log import FailureLog
from gvm_ray.lab.compare.records import Calibration, Evaluation, RunCosts, RunRecord
from gvm_ray.lab.compare.runs import PlannedRun
from gvm_ray.loop import System, train
from gvm_ray.maths.statistics import brier_score, reliability_bins
from gvm_ray.model_files import model_files, weights_digest
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.prepare import Prepared, check_date, find_base_model, prepare
from gvm_ray.prompt_states import CachedPromptStates
from gvm_ray.system import make_evaluator, prompt_stream, sharing, start_allocator, start_pools, warm_start
from gvm_ray.tasks.prompt_set import PromptSets, load_prompts
from gvm_ray.types import CheckpointState, Float64Array, Histograms, Metrics, SampleText


@dataclass(frozen=True, kw_only=True)
class ManyTests:
    """Protocol `Evaluator` over several tests, whose time doesn't count as the run's."""

    tests: Mapping[str, HeldOutEvaluator]
    log: "CurveLog"

    async def evaluate(self) -> Metrics:
        """`eval/accuracy/<test>` of each.

        Raises:
            SystemFailure: no sample of a test was scored, so that there is nothing to compare.
        """
        with self.log.apart():
            values = {name: (await test.evaluate())["eval/accuracy"] for name, test in self.tests.items()}
        for name, value in values.items():
            if math.isnan(value):
                raise SystemFailure(f"none of the samples of test {name!r} was scored; the reward actors' log says why")
        return {f"eval/accuracy/{name}": value for name, value in values.items()}


@dataclass(kw_only=True)
class CurveLog:
    """Protocol `StepLog`: keeps the evaluations, and of the steps what is predicted and what came of it."""

    clock: PhaseClock
    evaluations: list[Evaluation] = field(default_factory=list)
    predicted: list[Float64Array] = field(default_factory=list)  # accept rates expected of sampled prompts
    observed: list[Float64Array] = field(default_factory=list)
    last: Metrics = field(default_factory=dict)
    _apart_s: Counter[str] = field(default_factory=Counter)  # by phase, and "all"

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Work whose time is not the run's, such as an evaluation."""
        before = {"all": self.clock.elapsed, **self.clock.seconds()}
        try:
            yield
        finally:
            after = {"all": self.clock.elapsed, **self.clock.seconds()}
            self._apart_s.update({name: after[name] - before[name] for name in after})

    def log_step(
        self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText] = ()
    ) -> None:
        """One finished step."""
        self.last = metrics
        if "predicted_accept_rate" in histograms:
            self.predicted.append(histograms["predicted_accept_rate"])
            self.observed.append(histograms["observed_accept_rate"])
        self.add(step + 1, metrics)

    def add(self, steps_done: int, metrics: Metrics) -> None:
        """A point of the curve, if there was an evaluation."""
        accuracy = {
            name.removeprefix("eval/accuracy/"): value
            for name, value in metrics.items()
            if name.startswith("eval/accuracy/")
        }
        if accuracy:
            self.evaluations.append(
                Evaluation(
                    step=steps_done,
                    updates=int(metrics.get("cost/optimizer_updates", 0)),
                    generated_tokens=int(metrics.get("cost/generated_tokens", 0)),
                    charged_tokens=metrics.get("cost/charged_tokens", 0.0),
                    seconds=max(self.clock.elapsed - self._apart_s["all"], 0.0),
                    accuracy=accuracy,
                )
            )

    def costs(self) -> RunCosts:
        """What the run has spent until now."""
        seconds = {name: max(s - self._apart_s[name], 0.0) for name, s in self.clock.seconds().items()}
        return RunCosts(
            generated_tokens=int(self.last.get("cost/generated_tokens", 0)),
            pilot_tokens=int(self.last.get("cost/pilot_tokens", 0)),
            prefill_tokens=int(self.last.get("cost/prefill_tokens", 0)),
            planning_s=seconds["planning"],
            prefill_s=seconds["prompt_states"],
            gradient_norms_s=seconds["gradient_norms"],
            sampling_s=seconds["sampling"],
            update_s=seconds["update"],
        )

    def calibration(self) -> Calibration | None:
        """Expected accept rates against observed ones; None for an allocator that expects none."""
        predicted = [each for each in self.predicted if each.size]
        if not predicted:
            return None
        p, y = np.concatenate(predicted), np.concatenate([each for each in self.observed if each.size])
        means, observed, counts = reliability_bins(p, y)
        return Calibration(
            brier=brier_score(p, y),
            predicted=tuple(means.tolist()),
            observed=tuple(observed.tolist()),
            counts=tuple(counts.tolist()),
        )


_START = CheckpointState(step=0, policy_version=0, cursor={}, allocator={}, costs={})


@dataclass(frozen=True, kw_only=True)
class _Warm:
    """What stays up, and for which runs it serves."""

    key: str
    pools: SamplingPools
    learners: LearnerGroup
    clock: PhaseClock


class SharedPrompts:
    """`load_prompts` that loads what several runs share once: some sources take longer to make than a run's steps."""

    def __init__(self) -> None:
        self._sets: dict[str, PromptSets] = {}

    def __call__(self, config: PromptsConfig, tokenizer: Any, **options: Any) -> PromptSets:
        """As `load_prompts`; prompts are immutable."""
        key = json.dumps([config.model_dump(mode="json"), tokenizer.name_or_path, sorted(map(str, options.items()))])
        if key not in self._sets:
            self._sets[key] = load_prompts(config, tokenizer, **options)
        return self._sets[key]


class Slot:
    """Runs planned runs, one at a time."""

    def __init__(self, number: int, *, folder: Path, load: Callable[..., PromptSets] = load_prompts) -> None:
        self._prefix = f"slot-{number}-"
        self._folder = folder / f"slot-{number}"
        self._bases = folder / "bases"  # all slots' runs of one base start from the same weights
        self._load = load
        self._warm: _Warm | None = None
        self._num_runs = 0  # a killed actor's name is free only after a while

    async def build_base(self, run: PlannedRun) -> None:
        """Make the policy that the run starts from, where it isn't there yet: it is warm-started and cached."""
        if find_base_model(run.base, run_dir=self._base_folder(run)).warm_start_folder is None:
            return
        prepared = prepare(run.base, run_dir=self._base_folder(run))
        check_date(run.base, prepared.tokenizer)
        warm = await self._started(run.base, prepared)
        await warm.learners.reset(run.base, base_path=prepared.base.path, token_loss=token_loss(run.base.algorithm))
        await warm_start(run.base, prepared, warm.learners)

    async def run(self, run: PlannedRun) -> RunRecord:
        """The record of a run that went to its end.

        Raises:
            Exception: what went wrong; the slot then starts anew with the next run.
        """
        try:
            return await self._run(run)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop what is up."""
        warm, self._warm = self._warm, None
        if warm is not None:
            await warm.learners.stop()
            warm.pools.close()

    async def _run(self, run: PlannedRun) -> RunRecord:
        config, prepared, train_test = self._prepared(run)
        warm = await self._started(config, prepared)
        self._num_runs += 1
        name = f"{self._prefix}allocator-{self._num_runs}"
        allocator = start_allocator(config, clock=warm.clock, failures=FailureLog(config.faults), name=name)
        try:
            await warm.pools.generators.reset()
            await warm.learners.reset(config, base_path=prepared.base.path, token_loss=token_loss(config.algorithm))
            await warm.pools.publish(await warm.learners.weights(0))
            log = CurveLog(clock=warm.clock)
            evaluator = ManyTests(
                tests={
                    "balanced": make_evaluator(config, prepared, warm.pools),
                    "train": make_evaluator(config, train_test, warm.pools),
                },
                log=log,
            )
            system = System(
                prompts=prompt_stream(config, prepared),
                states=CachedPromptStates(learners=warm.learners, config=config.prompt_states),
                allocator=allocator,
                pools=warm.pools,
                learners=warm.learners,
                algorithm=create_algorithm(config.algorithm, accept_threshold=config.rewards.accept_threshold),
                evaluator=evaluator,
                checkpoints=NoCheckpoints(),  # a run of minutes is run again
                log=log,
            )
            warm.clock.restart()
            log.add(0, await evaluator.evaluate())
            await train(system, config, start=_START)
        finally:
            allocator.close()
        _check_spent(run, log.evaluations[-1].charged_tokens)
        return RunRecord(
            phase=run.phase,
            setting=run.setting,
            arm=run.arm,
            seed=run.seed,
            status="finished",
            updates_per_batch=config.algorithm.updates_per_batch,
            token_budget=run.token_budget,
            evaluations=tuple(log.evaluations),
            costs=log.costs(),
            calibration=log.calibration(),
            fingerprint=run.fingerprint,
            base_digest=weights_digest(prepared.base.path),
        )

    def _base_folder(self, run: PlannedRun) -> Path:
        return self._bases / run.setting.family / run.setting.base

    def _prepared(self, run: PlannedRun) -> tuple[RunConfig, Prepared, Prepared]:
        """The run's configuration from its base on, what it needs, and the prompts of its other test."""
        folder = self._base_folder(run)
        base = find_base_model(run.base, run_dir=folder).path
        config, train_test = (_started_from(base, each) for each in (run.config, run.train_test))
        prepared = prepare(config, run_dir=folder, load=self._load)
        check_date(config, prepared.tokenizer)
        return config, prepared, prepare(train_test, run_dir=folder, load=self._load)

    async def _started(self, config: RunConfig, prepared: Prepared) -> _Warm:
        """What is up, if it serves this run too; else it is stopped and the right thing started."""
        key = _warm_key(config, prepared)
        if self._warm is not None and self._warm.key == key:
            return self._warm
        await self.close()
        clock = PhaseClock()
        pools = start_pools(config, prepared, clock=clock, prefix=self._prefix)
        learners = LearnerGroup(
            config,
            base_path=prepared.base.path,
            token_loss=token_loss(config.algorithm),
            run_dir=str(self._folder),
            namespace=namespace_of(config),
            clock=clock,
            generators=sharing(config, pools),
        )
        self._warm = _Warm(key=key, pools=pools, learners=learners, clock=clock)
        await asyncio.gather(pools.start(), learners.start())
        return self._warm


def _check_spent(run: PlannedRun, charged_tokens: float) -> None:
    if charged_tokens < run.token_budget:
        raise ConfigError(
            f"after num_steps={run.config.num_steps} the run had spent {charged_tokens:,.0f} of its token_budget of "
            f"{run.token_budget:,} charged tokens; write a larger num_steps, or a smaller token_budget"
        )


def _started_from(base_path: str, config: RunConfig) -> RunConfig:
    """The run with its base as a finished model."""
    model = PretrainedModelConfig(path=base_path)
    return RunConfig.model_validate({**config.model_dump(), "model": model.model_dump(), "warm_start": None})


def _warm_key(config: RunConfig, prepared: Prepared) -> str:
    """Equal for runs that the same actors can serve: only weights, losses, prompts and allocators differ."""
    files = model_files(prepared.base.path, revision=prepared.base.revision, weights=False)
    learner = config.learner.model_dump(include={"num_workers", "cpus_per_worker", "gpus_per_worker", "dtype"})
    parts = (
        config.cluster.placement,
        config.engine.model_dump(),
        config.rewards.model_dump(),
        learner,
        prepared.max_model_len,
    )
    return json.dumps([files, config.sampling.max_tokens, *parts], sort_keys=True, default=str)
