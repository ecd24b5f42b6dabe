"""A program: FSDP2 ranks send their weights to vLLM generators, of which one dies. Prints JSON.

`python -m tests.live_transfer_run FOLDER gloo` needs no GPU: two ranks, two generators, and NCCL's transfer over gloo.
It is a process of its own because every worker of its Ray cluster gets that. "nccl" takes two GPUs, "ipc" one.
"""

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.generator_pool import GeneratorPool
from gvm_ray.actors.learners import LearnerGroup
from gvm_ray.actors.recovery import RecoveringLearners
from gvm_ray.actors.weight_sync import fetch
from gvm_ray.config.engine import EngineConfig
from gvm_ray.config.run import DeadlineConfig, FaultsConfig
from gvm_ray.failure_log import FailureLog
from gvm_ray.types import Delivery, GroupRef, ModelSpec, SamplingParameters, TransferWorld, WeightsRef, WeightTransfer
from tests.builders import sample_request
from tests.gloo_transfer import install
from tests.learner_cases import OPTIMIZER, SurrogateLoss, batch_of, learner_config, ragged_groups
from tests.ray_processes import rank_process
from tests.tiny_groups import sample
from tests.tiny_models import build_tiny_model, make_prompt, reference_logprobs

DEADLINES = DeadlineConfig(start_s=400, sync_s=200, sample_s=60)


@dataclass(frozen=True)
class Setting:
    """How many of both, and what they compute on."""

    transfer: WeightTransfer
    number: int
    rank_gpus: float = 0
    generator_gpus: float = 0


SETTINGS = {
    "gloo": Setting("nccl", number=2),
    "nccl": Setting("nccl", number=1, rank_gpus=1, generator_gpus=1),
    "ipc": Setting("ipc", number=1, rank_gpus=0.4, generator_gpus=0.6),
}


class Parts:
    """Ranks and generators, as a run connects them."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.number = setting.number
        self.model_path = build_tiny_model(folder / "base", tied=True)
        self.failures = FailureLog(FaultsConfig())
        config = learner_config(
            learner={"num_workers": setting.number, "optimizer": OPTIMIZER},
            weight_sync={"bucket_mib": 1},
            deadlines=DEADLINES.model_dump(),
        )
        learner = config.learner.model_copy(update={"gpus_per_worker": setting.rank_gpus})
        config = config.model_copy(update={"learner": learner})
        self.context = RunContext(deadlines=DEADLINES, failures=self.failures)
        self.learners = RecoveringLearners(self.context)
        self.make_learners = lambda: LearnerGroup(
            config,
            base_path=self.model_path,
            token_loss=SurrogateLoss(),
            run_dir=str(folder / "run"),
            context=self.context,
            transfer=setting.transfer,
        )
        self.pool = GeneratorPool(
            EngineConfig(
                type="vllm",
                kv_cache_gib=0.05,
                num_generators=setting.number,
                gpus_per_generator=setting.generator_gpus,
                gpu_memory_utilization=0.3,
                enforce_eager=True,
            ),
            kind="vllm",
            max_tokens=8,
            model=ModelSpec(path=self.model_path, max_model_len=64, transfer=setting.transfer),
            context=self.context,
            source=self,
        )
        self.worlds: list[int] = []  # that weights were sent to
        self.num_stored = 0  # times that the pool asked for weights in the object store
        self.steps: list[dict[str, Any]] = []

    async def republish(self) -> WeightsRef:
        """What the pool does with weights that generators need and that were only sent."""
        self.num_stored += 1
        return await self.learners.republish()

    async def send(self, weights: WeightsRef, world: TransferWorld) -> Delivery:
        """What the pool does with new weights."""
        self.worlds.append(world.generation)
        return await self.learners.send(weights, world)

    async def publish(self, weights: WeightsRef) -> None:
        """And note how far the log-probs of the generators are from the learners'."""
        stored_before = self.num_stored
        await self.pool.publish(weights)
        async with asyncio.timeout(DEADLINES.start_s):
            while len(self.pool.versions) < self.number:
                await asyncio.sleep(0.1)
        self.steps.append(
            {
                "world": self.worlds[-1],
                "versions": self.pool.versions,
                "stored": self.num_stored > stored_before,
                "error": await self.error(weights.policy_version),
                "faults": dict(self.failures.counts),
            }
        )

    async def update(self, step: int) -> WeightsRef:
        groups = ragged_groups(seed=step)
        ref = ray.put(tuple(groups))
        refs = [GroupRef(ref=ref, index=i) for i in range(len(groups))]
        return (await self.learners.update(batch_of(groups, refs=refs, step=step))).weights

    async def error(self, policy_version: int) -> float:
        """Largest mean difference of a sample's log-probs from those of the learners' weights; all generators serve."""
        weights = dict(fetch(await self.learners.republish()))
        requests = [sample_request(make_prompt(f"{i}+{i}="), num_samples=2) for i in range(6)]
        groups = await sample(self.pool, requests, SamplingParameters(temperature=0.8, max_tokens=8))
        errors: list[float] = []
        for group in groups:
            for completion in group.completions:
                assert set(completion.policy_versions.tolist()) == {policy_version}, completion.policy_versions
                expected = reference_logprobs(
                    self.model_path, weights, prompt=group.prompt, completion=completion, temperature=0.8
                )
                errors.append(float(np.abs(completion.logprobs - expected).mean()))
        return max(errors)


async def play(parts: Parts) -> None:
    """Updates, with a generator's death and a rank's death in between."""
    await asyncio.gather(parts.learners.start(parts.make_learners), parts.pool.start())
    try:
        await parts.publish(await parts.learners.weights(0))
        await parts.publish(await parts.update(0))
        weights = await parts.update(1)
        ray.kill(ray.get_actor(f"generator-{parts.number - 1}", namespace="gvm_ray"), no_restart=False)
        await parts.publish(weights)
        await parts.publish(await parts.update(2))
        os.kill(await rank_process(parts.number - 1), signal.SIGKILL)
        await parts.publish(await parts.update(3))
    finally:
        await parts.learners.stop()
        parts.pool.close()


if __name__ == "__main__":
    folder, kind = sys.argv[1:]
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        namespace="gvm_ray",
        runtime_env={"worker_process_setup_hook": install} if kind == "gloo" else None,
    )
    parts = Parts(Path(folder), SETTINGS[kind])
    asyncio.run(play(parts))
    print(json.dumps(parts.steps))
    ray.shutdown()
