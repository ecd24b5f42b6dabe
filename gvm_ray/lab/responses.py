"""Responses of a run's starting policy in one process, without Ray: warm start, samples of the engine, rewards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gvm_ray.actors.reward_env import make_reward_sandbox
from gvm_ray.algorithms import token_loss
from gvm_ray.config import RunConfig
from gvm_ray.engines import create_engine, generate
from gvm_ray.learner.learner import Learner
from gvm_ray.learner.policy import PolicyModule, load_causal_lm, try_policy
from gvm_ray.maths.packing import demonstration_batches
from gvm_ray.prepare import Prepared
from gvm_ray.reporting.progress import ProgressLines
from gvm_ray.rewards.sandbox import Scored
from gvm_ray.tasks.demonstrations import demonstrations
from gvm_ray.types import (
    Completion,
    Float64Array,
    IndexArray,
    Prompt,
    SampleRequest,
    SamplingParameters,
    sample_seed,
)

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Responses:
    """The distinct responses of each prompt, and the samples as indices into them."""

    prompts: tuple[Prompt, ...]  # [U]
    completions: tuple[Completion, ...]  # [U]
    samples: tuple[IndexArray, ...]  # for each prompt: [K] indices into the completions


def warm_started_path(config: RunConfig, prepared: Prepared, *, say: Say) -> str:
    """Return the model folder (or hub id) of the run's starting policy, after making and caching its warm start."""
    warm_start, target = config.warm_start, prepared.base.warm_start_folder
    if warm_start is None or target is None:
        return prepared.base.path
    examples = demonstrations(
        config.demonstrated,
        prepared.tokenizer,
        num=warm_start.num_demonstrations,
        seed=warm_start.seed,
        end_token_ids=prepared.end_token_ids,
        source_name=config.demonstration_source,
    )
    batches = demonstration_batches(
        len(examples), batch_size=warm_start.batch_size, num_updates=warm_start.num_updates, seed=warm_start.seed
    )
    learner = Learner(config, base_path=prepared.base.path, token_loss=token_loss(config.algorithm))
    metrics: dict[str, Any] = {}
    lines = ProgressLines("warm start", len(batches), say=say)
    for indices in batches:
        metrics = learner.supervised_update([examples[index] for index in indices])
        lines.add(note=f"loss {metrics['loss']:.3f}")
    say(f"warm start of {len(batches)} updates, loss {metrics['loss']:.3f}")
    learner.export(str(target))
    return str(target)


def load_whole_policy(config: RunConfig, prepared: Prepared, path: str) -> PolicyModule:
    """Load the policy as one unsharded module, whose gradients are whole tensors."""
    of_hub = path == prepared.base.path
    causal_lm = load_causal_lm(
        path,
        revision=prepared.base.revision if of_hub else None,
        trust_remote_code=prepared.base.trust_remote_code,
    )
    policy = PolicyModule(
        causal_lm, temperature=config.sampling.temperature, chunk_tokens=config.learner.logprob_chunk_tokens
    )
    try_policy(policy, path, gradient_parameters=("embed_tokens",))
    return policy.eval()


def draw_responses(
    config: RunConfig, prepared: Prepared, *, path: str, prompts: Sequence[Prompt], num_samples: int, seed: int
) -> Responses:
    """Draw so many samples of each prompt from the policy at a path, by the run's own engine."""
    revision = prepared.base.revision if path == prepared.base.path else None
    engine = create_engine(
        prepared.engine_kind, replace(prepared.model, path=path, revision=revision), config=config.engine
    )
    indices = tuple(range(num_samples))
    requests = [
        SampleRequest(
            prompt=prompt,
            sample_indices=indices,
            seeds=tuple(sample_seed(seed, step=0, prompt_id=prompt.prompt_id, sample_index=index) for index in indices),
        )
        for prompt in prompts
    ]
    parameters = SamplingParameters(temperature=config.sampling.temperature, max_tokens=config.sampling.max_tokens)
    answers = generate(engine, requests, parameters)
    engine.close()
    owners: list[Prompt] = []
    completions: list[Completion] = []
    samples: list[IndexArray] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        first, rows = _distinct_rows([completion.token_ids.tobytes() for completion in answer])
        samples.append(rows + len(completions))
        completions += [answer[index] for index in first]
        owners += [prompt] * len(first)
    return Responses(prompts=tuple(owners), completions=tuple(completions), samples=tuple(samples))


def score_responses(config: RunConfig, responses: Responses) -> Float64Array:
    """Score the responses: rewards [U], NaN for a response that could not be scored."""
    sandbox = make_reward_sandbox(config.rewards, max_tokens=config.sampling.max_tokens)
    try:
        results = sandbox.score(list(zip(responses.prompts, responses.completions, strict=True)))
    finally:
        sandbox.close()
    return np.array([result.reward if isinstance(result, Scored) else np.nan for result in results])


def _distinct_rows(keys: Sequence[bytes]) -> tuple[list[int], IndexArray]:
    """Find the first position of each distinct key, in order, and for every key [N] the index of its distinct key."""
    row_of: dict[bytes, int] = {}
    rows = np.array([row_of.setdefault(key, len(row_of)) for key in keys], dtype=np.int64)
    _, first = np.unique(rows, return_index=True)
    return first.tolist(), rows
