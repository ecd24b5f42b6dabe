"""The policy that is measured, in this process: built, warm-started where its run asks for it, and loaded unsharded."""

from collections.abc import Callable
from typing import Any

from gvm_ray.algorithms import token_loss
from gvm_ray.config import RunConfig
from gvm_ray.envs.prompt_set import demonstrations
from gvm_ray.functional.demonstration_batches import demonstration_batches
from gvm_ray.learner.policy import PolicyModule, load_causal_lm, try_policy
from gvm_ray.learner.step import Learner
from gvm_ray.prepare import Prepared
from gvm_ray.reporting.progress import ProgressLines

Say = Callable[[str], None]


def warm_started_path(config: RunConfig, prepared: Prepared, *, say: Say) -> str:
    """The model folder (or hub id) of the run's starting policy; a warm start that isn't cached is made, and cached."""
    warm_start, target = config.warm_start, prepared.base.warm_start_folder
    if warm_start is None or target is None:
        return prepared.base.path
    examples = demonstrations(
        config.prompts,
        prepared.tokenizer,
        num=warm_start.num_demonstrations,
        seed=warm_start.seed,
        end_token_ids=prepared.end_token_ids,
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
    """The policy as one plain module, whose gradients are whole tensors."""
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
