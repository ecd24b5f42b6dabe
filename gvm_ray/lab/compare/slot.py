"""A slot of a comparison: makes runs one after the other, with the same processes if possible."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gvm_ray.actors.cluster import find_threads
from gvm_ray.actors.context import RunContext
from gvm_ray.actors.learners import LearnerGroup
from gvm_ray.actors.pools import SamplingPools
from gvm_ray.algorithms import token_loss
from gvm_ray.background import drain
from gvm_ray.config import RunConfig
from gvm_ray.config.model import PretrainedModelConfig
from gvm_ray.config.prompts import PromptsConfig
from gvm_ray.evaluation.evaluator import HeldOutEvaluator
from gvm_ray.exceptions import ConfigError, SystemFailure
from gvm_ray.lab.compare.records import Calibration, Evaluation, RunCosts, RunRecord
from gvm_ray.lab.compare.runs import PlannedRun
from gvm_ray.loop import train
from gvm_ray.maths.statistics import brier_score, reliability_bins
from gvm_ray.model_files import model_files, weights_digest
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.prepare import Prepared, check_date, find_base_model, prepare
from gvm_ray.system import (
    assemble,
    embeddings_of,
    learner_group,
    make_evaluator,
    start_allocator,
    start_pools,
    warm_start,
)
from gvm_ray.tasks.prompt_set import PromptSets, load_prompts
from gvm_ray.types import CheckpointState, Float64Array, Histograms, Metrics, SampleText


@dataclass(frozen=True, kw_only=True)
class ManyTests:
    """Evaluator (protocol `Evaluator`) over several tests; their time doesn't count as the run's. A test with two names
    is sampled once."""

    tests: Mapping[str, HeldOutEvaluator]
    log: "CurveLog"

    async def evaluate(self, policy_version: int) -> Metrics:
        """Evaluate all tests, and return `eval/accuracy/<test>` of each.

        Raises:
            SystemFailure: no sample of a test was scored, so there is nothing to compare.
        """
        distinct = {id(test): test for test in self.tests.values()}
        with self.log.apart():
            accuracy = {key: (await test.evaluate(policy_version))["eval/accuracy"] for key, test in distinct.items()}
        values = {name: accuracy[id(test)] for name, test in self.tests.items()}
        for name, value in values.items():
            if math.isnan(value):
                raise SystemFailure(f"none of the samples of test {name!r} was scored; the reward actors' log says why")
        return {f"eval/accuracy/{name}": value for name, value in values.items()}


@dataclass(kw_only=True)
class CurveLog:
    """Log of a run's curve (protocol `StepLog`): keeps evaluations, and predicted and observed accept rates."""

    clock: PhaseClock
    evaluations: list[Evaluation] = field(default_factory=list)
    predicted: list[Float64Array] = field(default_factory=list)  # accept rates predicted for sampled prompts
    observed: list[Float64Array] = field(default_factory=list)
    last: Metrics = field(default_factory=dict)
    _apart_s: Counter[str] = field(default_factory=Counter)  # by phase, and "all"

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Exclude the body's time from the run's, for work such as an evaluation."""
        before = {"all": self.clock.elapsed, **self.clock.seconds()}
        try:
            yield
        finally:
            after = {"all": self.clock.elapsed, **self.clock.seconds()}
            self._apart_s.update({name: after[name] - before[name] for name in after})

    def log_step(
        self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText] = ()
    ) -> Metrics:
        """One finished step."""
        self.last = metrics
        if "predicted_accept_rate" in histograms:
            self.predicted.append(histograms["predicted_accept_rate"])
            self.observed.append(histograms["observed_accept_rate"])
        self.add(step + 1, metrics)
        return metrics

    def add(self, steps_done: int, metrics: Metrics) -> None:
        """Add a point to the curve, if the metrics have an evaluation."""
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
                    prefill_tokens=int(metrics.get("cost/prefill_tokens", 0)),
                    prompt_tokens=int(metrics.get("cost/prompt_tokens", 0)),
                    trained_tokens=int(metrics.get("cost/trained_tokens", 0)),
                    accuracy=accuracy,
                )
            )

    def costs(self) -> RunCosts:
        """The run's costs so far."""
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
        """Predicted accept rates compared with observed ones; None for an allocator that predicts none."""
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
    """Actors that stay up between runs; `key` identifies the runs that they can serve."""

    key: str
    pools: SamplingPools
    learners: LearnerGroup
    clock: PhaseClock


class SharedPrompts:
    """A cache of `load_prompts` for several runs; generating some sources takes longer than a run's steps."""

    def __init__(self) -> None:
        self._sets: dict[str, PromptSets] = {}

    def __call__(self, config: PromptsConfig, tokenizer: Any, **options: Any) -> PromptSets:
        """Load prompts as `load_prompts`, or return the cached ones, which are immutable."""
        key = json.dumps([config.model_dump(mode="json"), tokenizer.name_or_path, sorted(map(str, options.items()))])
        if key not in self._sets:
            self._sets[key] = load_prompts(config, tokenizer, **options)
        return self._sets[key]


class Slot:
    """Makes planned runs, one at a time."""

    def __init__(
        self, number: int, *, num_slots: int, folder: Path, load: Callable[..., PromptSets] = load_prompts
    ) -> None:
        self._num_slots = num_slots  # of the comparison, which divide the machine's cores
        self._prefix = f"slot-{number}-"
        self._folder = folder / f"slot-{number}"
        self._bases = folder / "bases"  # shared by all slots, so that runs of one base start from the same weights
        self._load = load
        self._warm: _Warm | None = None
        self._num_runs = 0  # makes actor names unique, as a killed actor's name stays taken for a while

    async def build_base(self, run: PlannedRun) -> None:
        """Make the run's starting policy, by a warm start, and cache it, unless it is cached already."""
        if find_base_model(run.base, run_dir=self._base_folder(run)).warm_start_folder is None:
            return
        prepared = _stored(prepare(run.base, run_dir=self._base_folder(run)))
        check_date(run.base, prepared.tokenizer)
        warm = await self._started(run.base, prepared)
        await warm.learners.reset(run.base, base_path=prepared.base.path, token_loss=token_loss(run.base.algorithm))
        await warm_start(run.base, prepared, warm.learners)

    async def run(self, run: PlannedRun) -> RunRecord:
        """Make a run to its end, and return its record.

        Raises:
            Exception: the run failed; the slot then starts new actors for the next run.
        """
        try:
            return await self._run(run)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop all actors of the slot."""
        warm, self._warm = self._warm, None
        if warm is not None:
            await warm.learners.stop()
            warm.pools.close()

    async def _run(self, run: PlannedRun) -> RunRecord:
        config, prepared, train_test = self._prepared(run)
        warm = await self._started(config, prepared)
        self._num_runs += 1
        name = f"{self._prefix}allocator-{self._num_runs}"
        allocator = start_allocator(config, context=RunContext.of(config, clock=warm.clock), name=name)
        try:
            await warm.pools.generators.reset()
            await warm.learners.reset(config, base_path=prepared.base.path, token_loss=token_loss(config.algorithm))
            await warm.pools.publish(await warm.learners.weights(0))
            log = CurveLog(clock=warm.clock)
            balanced = make_evaluator(config, prepared, warm.pools)
            same_test = train_test.prompts.eval == prepared.prompts.eval  # of a balanced training set
            like_train = balanced if same_test else make_evaluator(config, train_test, warm.pools)
            evaluator = ManyTests(tests={"balanced": balanced, "train": like_train}, log=log)
            system = assemble(  # without checkpoints: a run of minutes is run again
                config,
                prompts=prepared.prompts.train,
                pools=warm.pools,
                learners=warm.learners,
                allocator=allocator,
                evaluator=evaluator,
                log=log,
                embeddings=embeddings_of(prepared.base),
            )
            warm.clock.restart()
            log.add(0, await evaluator.evaluate(0))
            await drain(train(system, config, start=_START))
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
        """Return the run's configuration starting from its base, its prepared inputs, and those of its other test."""
        folder = self._base_folder(run)
        base = find_base_model(run.base, run_dir=folder).path
        config, train_test = (_started_from(base, each) for each in (run.config, run.train_test))
        prepared = _stored(prepare(config, run_dir=folder, load=self._load))
        check_date(config, prepared.tokenizer)
        return config, prepared, prepare(train_test, run_dir=folder, load=self._load)

    async def _started(self, config: RunConfig, prepared: Prepared) -> _Warm:
        """Return running actors that can serve this run; start new ones unless the present ones can."""
        key = warm_key(config, prepared)
        if self._warm is not None and self._warm.key == key:
            return self._warm
        await self.close()
        context = RunContext.of(config, threads=find_threads(config, num_runs=self._num_slots))
        pools = start_pools(config, prepared.model, kind=prepared.engine_kind, context=context, prefix=self._prefix)
        learners = learner_group(config, prepared, pools, run_dir=self._folder, context=context)
        self._warm = _Warm(key=key, pools=pools, learners=learners, clock=context.clock)
        await asyncio.gather(pools.start(), learners.start())
        return self._warm


def _check_spent(run: PlannedRun, charged_tokens: float) -> None:
    if charged_tokens < run.token_budget:
        raise ConfigError(
            f"after num_steps={run.config.num_steps} the run had spent {charged_tokens:,.0f} of its token_budget of "
            f"{run.token_budget:,} charged tokens; write a larger num_steps, or a smaller token_budget"
        )


def _started_from(base_path: str, config: RunConfig) -> RunConfig:
    """The run's configuration with its finished base as a pretrained model."""
    model = PretrainedModelConfig(path=base_path)
    return RunConfig.model_validate({**config.model_dump(), "model": model.model_dump(), "warm_start": None})


def _stored(prepared: Prepared) -> Prepared:
    """The run with its weights in the object store: no recovering learners are there to send them."""
    return replace(prepared, transfer="object_store")


def warm_key(config: RunConfig, prepared: Prepared) -> str:
    """A key that is equal for runs that the same actors can serve: they differ only in weights, losses, prompts and
    allocators."""
    files = model_files(prepared.base.path, revision=prepared.base.revision, weights=False)
    learner = config.learner.model_dump(include={"num_workers", "cpus_per_worker", "gpus_per_worker", "dtype"})
    parts = (
        config.cluster.placement,
        config.engine.model_dump(),
        config.rewards.model_dump(),
        learner,
        prepared.max_model_len,
        prepared.adapters and asdict(prepared.adapters),
    )
    return json.dumps([files, config.sampling.max_tokens, *parts], sort_keys=True, default=str)
