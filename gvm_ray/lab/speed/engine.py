"""Benchmark of generation: tokens/s through a generator actor, against bare vLLM in an actor of the same size."""

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import ray

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.generator_pool import GeneratorPool, Outcome
from gvm_ray.config.engine import EngineConfig
from gvm_ray.config.model import ScratchModelConfig
from gvm_ray.config.run import DeadlineConfig, FaultsConfig
from gvm_ray.engines import EngineKind, resolve_engine
from gvm_ray.failure_log import FailureLog
from gvm_ray.lab.speed.suite import BenchOptions, BenchRow, local_cluster
from gvm_ray.learner.scratch_model import build_character_tokenizer, build_scratch_model
from gvm_ray.types import GroupOutcome, GroupRef, ModelSpec, Prompt, RolloutGroup, SampleRequest, SamplingParameters

_MODEL = ScratchModelConfig(
    hidden_size=128,
    num_layers=5,
    num_heads=4,
    num_key_value_heads=2,
    intermediate_size=352,
    max_position_embeddings=256,
)  # 0.9 million parameters; a random model hardly ever ends a response, so responses have max_tokens
_MAX_MODEL_LEN = 128
_NUM_SAMPLES = 8  # of each prompt
_SAMPLING = SamplingParameters(temperature=1.0, max_tokens=64)


@ray.remote(num_cpus=1)
class BareVLLM:
    """vLLM's own engine and nothing else, in a separate process."""

    def __init__(self, model_path: str, config: EngineConfig) -> None:
        from gvm_ray.engines.vllm import VLLMEngine

        self._engine: Any = VLLMEngine(model_path, config=config, max_model_len=_MAX_MODEL_LEN).llm_engine

    def run(self, prompts: Sequence[list[int]], num_samples: int) -> tuple[int, float]:
        """Draw `num_samples` samples of each prompt; return (tokens, seconds)."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        start = time.perf_counter()
        number = 0
        for token_ids in prompts:
            for _ in range(num_samples):
                parameters = SamplingParams(
                    max_tokens=_SAMPLING.max_tokens,
                    seed=number,
                    logprobs=0,
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )
                self._engine.add_request(str(number), {"prompt_token_ids": token_ids}, parameters)
                number += 1
        num_tokens = 0
        while self._engine.has_unfinished_requests():
            num_tokens += sum(len(output.outputs[0].token_ids) for output in self._engine.step())
        return num_tokens, time.perf_counter() - start


def measure(options: BenchOptions) -> list[BenchRow]:
    """Measure tokens/s of a generator actor with one CPU thread, from requests to groups, in turn with bare vLLM."""
    config = EngineConfig(kv_cache_gib=0.25)
    kind = resolve_engine(config)
    num_prompts, repeats = (4, 2) if options.quick else (32, 7)
    with tempfile.TemporaryDirectory() as folder, local_cluster():
        build_scratch_model(_MODEL, folder)
        bare: Any = _bare(folder, config) if kind == "vllm" else None
        prompts = make_prompts(num_prompts)
        return asyncio.run(_measure(folder, config, kind=kind, bare=bare, prompts=prompts, repeats=repeats))


def _bare(folder: str, config: EngineConfig) -> Any:
    actor_class: Any = BareVLLM  # Ray's types don't know the methods of an actor handle
    return actor_class.options(runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}).remote(folder, config)


async def _measure(
    folder: str,
    config: EngineConfig,
    *,
    kind: EngineKind,
    bare: Any,
    prompts: Sequence[Prompt],
    repeats: int,
) -> list[BenchRow]:
    pool = GeneratorPool(
        config,
        kind=kind,
        model=ModelSpec(path=folder, max_model_len=_MAX_MODEL_LEN),
        max_tokens=_SAMPLING.max_tokens,
        context=RunContext(deadlines=DeadlineConfig(), failures=FailureLog(FaultsConfig())),
        name=f"bench-generator-{os.getpid()}",
    )
    try:
        await pool.start()
        token_ids = [prompt.token_ids.tolist() for prompt in prompts]
        ours, floor = list[float](), list[float]()
        for repeat in range(repeats + 1):
            ours.append(await tokens_per_second(pool, prompts, num_samples=_NUM_SAMPLES, first_seed=1000 * repeat))
            if bare is not None:
                num_tokens, seconds = await bare.run.remote(token_ids, _NUM_SAMPLES)
                floor.append(num_tokens / seconds)
    finally:
        pool.close()
        if bare is not None:
            ray.kill(bare)
    return [
        BenchRow(
            name=f"generation through the generator actor ({kind}, {len(prompts)} x {_NUM_SAMPLES} samples)",
            value=median(ours[1:]),  # the first round is warm-up
            unit="tokens/s",
            floor=median(floor[1:]) if floor else None,
            floor_name="bare vLLM",
        )
    ]


async def tokens_per_second(
    pool: GeneratorPool, prompts: Sequence[Prompt], *, num_samples: int, first_seed: int
) -> float:
    """Measure tokens/s of one round through the pool, whose chunks are fetched but not scored."""
    requests = [
        SampleRequest(
            prompt=prompt,
            sample_indices=tuple(range(num_samples)),
            seeds=tuple(range(first_seed + i * num_samples, first_seed + (i + 1) * num_samples)),
        )
        for i, prompt in enumerate(prompts)
    ]
    start = time.perf_counter()
    outcomes = await pool.sample(requests, _SAMPLING, score=_describe)
    seconds = time.perf_counter() - start
    return sum(int(outcome.num_tokens.sum()) for outcome in outcomes if isinstance(outcome, GroupOutcome)) / seconds


async def _describe(chunk: ray.ObjectRef) -> list[Outcome]:
    groups: tuple[RolloutGroup, ...] = await chunk
    return [GroupOutcome.of(group, ref=GroupRef(ref=chunk, index=i)) for i, group in enumerate(groups)]


def make_prompts(num_prompts: int) -> list[Prompt]:
    """Create short arithmetic questions, all different."""
    tokenizer = build_character_tokenizer()
    texts = [f"{i % 10}+{i // 10}*{(7 * i) % 10}-{(3 * i) % 10}=" for i in range(num_prompts)]
    return [
        Prompt(prompt_id=text, text=text, token_ids=np.array(tokenizer(text)["input_ids"], dtype=np.int32), answer="")
        for text in texts
    ]
