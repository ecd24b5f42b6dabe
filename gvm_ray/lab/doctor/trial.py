"""Trial of the path of a step on this machine with a scratch model: sampling, rewards, updates, and new weights.

Learner and engine compute log-probs of the same tokens. With the same weights they agree; with those from before an
update they don't. So whether new weights have arrived can be told from log-probs alone, by whatever transfer.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gvm_ray.actors.cluster import connected, names_are_free
from gvm_ray.algorithms import create_algorithm
from gvm_ray.config import RunConfig
from gvm_ray.config.load import merged
from gvm_ray.engines import EngineKind, resolve_engine
from gvm_ray.lab.doctor.findings import Finding, failed, not_applicable, right, wrong
from gvm_ray.lab.speed.startup import Parts, requested_parts, small_run
from gvm_ray.prepare import Prepared, prepare
from gvm_ray.resources import find_gpus
from gvm_ray.types import EstimatorTerms, SampleRequest, SamplingParameters, TrainBatch, WeightTransfer

_AGREE = 5e-3  # nats a token; rounding of float32 on two devices stays below it
_MOVED = 10 * _AGREE  # nats a token by which an update must change log-probs, for old weights to be noticed
_MIN_FREED = 2**30
_NAMES_S = 60.0  # for the names of killed actors to be free again
_NUM_PROMPTS, _NUM_SAMPLES = 8, 8
_SETTINGS: Mapping[str, Any] = {
    "name": "doctor",
    "prompts_per_step": _NUM_PROMPTS,
    "samples_per_prompt": _NUM_SAMPLES,
    "sampling": {"max_tokens": 16},
    # About half of the characters that a random model begins with, so that there is something to learn.
    "rewards": {"terms": [{"type": "format", "pattern": "^[ -O]"}]},
    "allocator": {"type": "uniform"},
    # With an entropy term, however small, samples of groups whose rewards are all equal are read too.
    "algorithm": {"type": "grpo", "entropy_coefficient": 1e-9},
    "learner": {"optimizer": {"learning_rate": 3e-2}},
    "faults": {"max_failures": 0},  # a failure is what the trial looks for
}
_ON_GPUS = {"learner": {"gpus_per_worker": 1}, "engine": {"gpus_per_generator": 1, "gpu_memory_utilization": 0.3}}
_SHARED = {**_ON_GPUS, "cluster": {"placement": "colocated"}}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A transfer to try, or the reason why it can't be."""

    transfer: WeightTransfer
    settings: Mapping[str, Any]  # nested, on top of the trial's
    obstacle: str = ""

    @property
    def sleeps(self) -> bool:
        """Whether the engine leaves the GPU while the learner works, so that this is tried too."""
        return self.transfer == "ipc"

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects of its findings."""
        return (f"step, {self.transfer}", *(("sleep and wake",) if self.sleeps else ()))


@dataclass(frozen=True)
class Measured:
    """Mean |learner - engine| of a token's log-prob in nats, and what sleep gives."""

    start: float  # both with the first weights
    old: float  # the learner after an update, the engine before it
    new: float  # both after updates whose weights were published
    freed_bytes: int | None = None  # of GPU memory; None = not tried


def plans(engine: EngineKind, *, num_gpus: int) -> list[Plan]:
    """The three transfers on a machine with this many GPUs, of which the object store uses as many as it can."""
    by_gpus: Sequence[Mapping[str, Any]] = ({}, _SHARED, _ON_GPUS)
    no_engine = f"needs vLLM in the generators, and the engine here is {engine}" if engine != "vllm" else ""
    return [
        Plan(transfer="object_store", settings=by_gpus[min(num_gpus, 2)] if not no_engine else {}),
        Plan(
            transfer="nccl",
            settings=_ON_GPUS,
            obstacle=no_engine or (f"needs two GPUs, and this machine has {num_gpus}" if num_gpus < 2 else ""),
        ),
        Plan(
            transfer="ipc",
            settings=_SHARED,
            obstacle=no_engine
            or ("needs a GPU that learner and generator share, and this machine has none" if not num_gpus else ""),
        ),
    ]


def try_path(*, limit_s: float, engine: str = "auto") -> Iterator[Finding]:
    """Try every transfer that applies, in a local cluster started here or the one that this process is connected to.

    Args:
        limit_s: for all trials together, without the end of their processes.
        engine: as in `engine.type`.
    """
    with tempfile.TemporaryDirectory(prefix="gvm-ray-doctor-") as name:
        folder, end = Path(name), time.monotonic() + limit_s
        kind = resolve_engine(small_run(folder, {"engine": {"type": engine}}).engine)
        wanted = plans(kind, num_gpus=_num_gpus())
        with connected(trial_run(folder, wanted[0], engine=kind), ray_log=folder / "ray.log"):
            for plan in wanted:
                if plan.obstacle:
                    yield from (not_applicable(subject, plan.obstacle) for subject in plan.subjects)
                else:
                    yield from _try(plan, trial_run(folder, plan, engine=kind), end=end, limit_s=limit_s)


def trial_run(folder: Path, plan: Plan, *, engine: EngineKind) -> RunConfig:
    """The settings of a trial, in a folder of its own."""
    of_plan = {"engine": {"type": engine, "enforce_eager": True}, "weight_sync": {"transfer": plan.transfer}}
    return small_run(folder, merged(_SETTINGS, merged(of_plan, plan.settings)))


def _num_gpus() -> int:
    """The GPUs that Ray will find."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = None if visible is None else [each for each in visible.split(",") if each.strip()]
    return len(find_gpus()[: None if chosen is None else len(chosen)])


def _try(plan: Plan, config: RunConfig, *, end: float, limit_s: float) -> Iterator[Finding]:
    """The findings about one transfer; a failure of any part of it is one."""
    subject = plan.subjects[0]
    run_dir = Path(config.runs_dir) / plan.transfer
    try:
        prepared = prepare(config, run_dir=run_dir)
        measured = asyncio.run(_measure(plan, config, prepared, run_dir=run_dir, end=end))
    except TimeoutError:
        yield wrong(subject, f"not done within {limit_s:g} s", remedy="give it longer with --limit-s")
    except Exception as error:  # of any part: the trial is there to find it
        yield failed(subject, error)
    else:
        yield judge_weights(subject, measured)
        if plan.sleeps:
            yield judge_sleep(plan.subjects[1], measured)


async def _measure(plan: Plan, config: RunConfig, prepared: Prepared, *, run_dir: Path, end: float) -> Measured:
    """Sample, update twice, sample again; a third update is made for its comparison of log-probs alone."""
    async with asyncio.timeout(end - time.monotonic()), requested_parts(config, prepared, run_dir=run_dir) as parts:
        await asyncio.gather(*parts.starting().values())
        await parts.pools.publish(await parts.learners.weights(0))
        first = await _batch(parts, config, prepared)
        differences = []
        for step in range(2):
            result = await parts.learners.update(replace(first, step=step))
            differences.append(result.metrics["logprob_difference/mean"])
            await parts.pools.publish(result.weights)
        freed = await _freed_bytes(parts) if plan.sleeps else None
        second = await _batch(parts, config, prepared)
        result = await parts.learners.update(replace(second, step=2))
        before, stale = differences
        measured = Measured(before, stale, result.metrics["logprob_difference/mean"], freed_bytes=freed)
    await names_are_free(timeout_s=_NAMES_S)
    return measured


async def _batch(parts: Parts, config: RunConfig, prepared: Prepared) -> TrainBatch:
    """Samples of the first prompts by the engine's present weights, scored."""
    requests = [
        SampleRequest(
            prompt=prompt,
            sample_indices=tuple(range(config.samples_per_prompt)),
            seeds=tuple(range(config.samples_per_prompt)),
        )
        for prompt in prepared.prompts.train[: config.prompts_per_step]
    ]
    sampling = SamplingParameters(temperature=config.sampling.temperature, max_tokens=config.sampling.max_tokens)
    outcomes = await parts.pools.sample_and_score(requests, sampling)
    algorithm = create_algorithm(config.algorithm, accept_threshold=config.rewards.accept_threshold)
    return algorithm.build_batch(outcomes, step=0, terms=EstimatorTerms(num_prompts=len(requests)))


async def _freed_bytes(parts: Parts) -> int:
    """The GPU memory in use while the engine is awake, less that while it sleeps."""
    awake = sum(gpu.used_bytes for gpu in find_gpus())
    async with parts.pools.generators.away():
        return awake - sum(gpu.used_bytes for gpu in find_gpus())


def judge_weights(subject: str, measured: Measured) -> Finding:
    """Whether engine and learner agree before and after updates, and would not with old weights."""
    if not measured.start <= _AGREE:
        return wrong(
            subject,
            f"engine and learner differ by {measured.start:.1e} nats a token with the same weights",
            remedy="training would be on wrong numbers: please report this line",
        )
    if not measured.old >= _MOVED:
        return wrong(
            subject,
            f"an update moved log-probs by {measured.old:.1e} nats a token, too little to tell old weights from new",
            remedy="please report this line",
        )
    if not measured.new <= _AGREE:
        return wrong(
            subject,
            f"after updates engine and learner differ by {measured.new:.1e} nats a token (old weights: "
            f"{measured.old:.1e}): new weights don't arrive as they are",
            remedy='write weight_sync.transfer = "object_store" if it is another, and please report this line',
        )
    return right(
        subject,
        f"engine and learner differ by {measured.start:.1e} nats a token at first and by {measured.new:.1e} after two "
        f"updates (with the old weights by {measured.old:.1e})",
    )


def judge_sleep(subject: str, measured: Measured) -> Finding:
    """Whether the engine left the GPU; that its samples were right after it came back, `judge_weights` tells."""
    freed = measured.freed_bytes or 0
    if freed < _MIN_FREED:
        return wrong(
            subject,
            f"the engine freed {freed / 2**30:.1f} GiB while it slept",
            remedy="write engine.sleep = false, and please report this line",
        )
    return right(subject, f"the engine freed {freed / 2**30:.1f} GiB while it slept, and sampled on afterwards")
