"""Benchmark of per-sample gradient norms: the ghost-norm pass against one backward pass per sample."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gvm_ray.lab.speed.suite import BenchOptions, BenchRow, compare
from gvm_ray.learner.policy import PolicyModule, sample_gradient_norms
from gvm_ray.learner.sequences import SequenceBatch, TrainSample, pad_samples
from gvm_ray.types import GradientParameters

PROMPT_TOKENS, RESPONSE_TOKENS = 16, 64
CASES: tuple[tuple[bool, GradientParameters], ...] = (
    (True, "embed_tokens"),
    (False, "embed_tokens"),
    (False, "lm_head"),
)


def measure(options: BenchOptions) -> Iterator[BenchRow]:
    """Measure samples/s at two vocabulary sizes, for a tied embedding and for each of two untied matrices."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num_samples, repeats = (4, 2) if options.quick else (16, 5)
    for policy_case in ((size, *case) for size in (32_000, 152_000) for case in CASES):
        yield _row(policy_case, device=device, num_samples=num_samples, repeats=repeats)


def _row(
    policy_case: tuple[int, bool, GradientParameters], *, device: torch.device, num_samples: int, repeats: int
) -> BenchRow:
    vocab_size, tied, parameters = policy_case
    policy = tiny_policy(vocab_size=vocab_size, tied=tied).to(device)
    batch = random_batch(num_samples, vocab_size=vocab_size, device=device)
    ours, bare = compare(
        lambda: sample_gradient_norms(policy, batch, parameters=parameters).tolist(),
        lambda: norms_one_by_one(policy, batch, parameters=parameters).tolist(),
        repeats=repeats,
    )
    return BenchRow(
        name=f"gradient norms, vocabulary {vocab_size:,}, {'tied embeddings' if tied else parameters}",
        value=num_samples / ours,
        unit="samples/s",
        floor=num_samples / bare,
        floor_name="one backward pass per sample",
    )


def tiny_policy(*, vocab_size: int, tied: bool) -> PolicyModule:
    """Create a random Qwen2-architecture model with two layers and width 128, unsharded."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
    return PolicyModule(model, temperature=1.0, chunk_tokens=1024)


def random_batch(num_samples: int, *, vocab_size: int, device: torch.device) -> SequenceBatch:
    """Create sequences of random tokens, all of the same length."""
    ids = np.random.default_rng(0).integers(0, vocab_size, (num_samples, PROMPT_TOKENS + RESPONSE_TOKENS))
    samples = [
        TrainSample(
            prompt_ids=row[:PROMPT_TOKENS],
            response_ids=row[PROMPT_TOKENS:],
            engine_logprobs=np.zeros(RESPONSE_TOKENS, dtype=np.float32),
        )
        for row in ids.astype(np.int32)
    ]
    return pad_samples(samples, device=device)


def norms_one_by_one(policy: PolicyModule, batch: SequenceBatch, *, parameters: GradientParameters) -> Tensor:
    """Compute the same norms [B], each by autograd for the one matrix, with logits at the response tokens only."""
    model = policy.causal_lm
    matrix = model.lm_head.weight if parameters == "lm_head" else model.model.embed_tokens.weight
    norms = []
    for ids, targets in zip(batch.input_ids, batch.targets, strict=True):
        logits = model(ids.unsqueeze(0), logits_to_keep=len(targets) + 1, use_cache=False).logits[0, :-1]
        objective = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).sum()
        (gradient,) = torch.autograd.grad(objective, matrix)
        norms.append(gradient.norm())
    return torch.stack(norms)
