"""A program: FSDP2 ranks send their weights to vLLM generators, of which one dies, over gloo in the place of NCCL.

In a process of its own, because every worker of its Ray cluster gets the changed transfer. Prints JSON.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray

from gvm_ray.actors.generator_pool import GeneratorPool
from gvm_ray.actors.learner import LearnerGroup
from gvm_ray.actors.learner_recovery import RecoveringLearners
from gvm_ray.actors.weight_sync import fetch
from gvm_ray.config.run import DeadlineConfig, EngineConfig, FaultsConfig
from gvm_ray.failure_log import FailureLog
from gvm_ray.types import GroupRef, SamplingParameters, WeightsRef
from tests.gloo_transfer import install
from tests.learner_cases import OPTIMIZER, SurrogateLoss, batch_of, learner_config, ragged_groups
from tests.tiny_groups import sample
from tests.tiny_models import build_tiny_model, make_prompt, make_request, reference_logprobs

DEADLINES = DeadlineConfig(start_s=400, sync_s=200, sample_s=60)


class Parts:
    """Two ranks and two generators, as a run connects them."""

    def __init__(self, folder: Path) -> None:
        self.model_path = build_tiny_model(folder / "base", tied=True)
        self.failures = FailureLog(FaultsConfig())
        config = learner_config(
            learner={"num_workers": 2, "optimizer": OPTIMIZER},
            weight_sync={"bucket_mib": 1},
            deadlines=DEADLINES.model_dump(),
        )
        self.learners = RecoveringLearners(
            lambda: LearnerGroup(
                config,
                base_path=self.model_path,
                token_loss=SurrogateLoss(),
                run_dir=str(folder / "run"),
                namespace="gvm_ray",
                transfer="nccl",
            ),
            failures=self.failures,
        )
        self.pool = GeneratorPool(
            EngineConfig(type="vllm", kv_cache_gib=0.05, num_generators=2),
            kind="vllm",
            model_path=self.model_path,
            max_tokens=8,
            max_model_len=64,
            deadlines=DEADLINES,
            failures=self.failures,
            transfer="nccl",
        )
        self.pool.republish, self.pool.send = self.learners.republish, self.learners.send
        self.steps: list[dict[str, Any]] = []

    async def publish(self, weights: WeightsRef) -> None:
        """And note how far the log-probs of both generators are from the learners'."""
        await self.pool.publish(weights)
        await self.pool._until(lambda: len(self.pool.versions) == 2)
        self.steps.append(
            {
                "world": self.pool._world.generation,
                "versions": self.pool.versions,
                "stored": bool(self.pool._weights and isinstance(self.pool._weights.location, tuple)),
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
        """Largest mean difference of a sample's log-probs from those of the learners' weights; both generators serve."""
        weights = dict(fetch(await self.learners.republish()))
        requests = [make_request(make_prompt(f"{i}+{i}="), num_samples=2) for i in range(6)]
        groups = await sample(self.pool, requests, SamplingParameters(temperature=0.8, max_tokens=8))
        errors = []
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
    await asyncio.gather(parts.learners.start(), parts.pool.start())
    try:
        await parts.publish(await parts.learners.weights(0))
        await parts.publish(await parts.update(0))
        weights = await parts.update(1)
        ray.kill(parts.pool._generators[1]._actor, no_restart=False)
        await parts.publish(weights)
        await parts.publish(await parts.update(2))
        os.kill(parts.learners._group.part._ranks[1].pid, signal.SIGKILL)
        await parts.publish(await parts.update(3))
    finally:
        await parts.learners.stop()
        parts.pool.close()


if __name__ == "__main__":
    install()
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        namespace="gvm_ray",
        runtime_env={"worker_process_setup_hook": install},
    )
    parts = Parts(Path(sys.argv[1]))
    asyncio.run(play(parts))
    print(json.dumps(parts.steps))
    ray.shutdown()
