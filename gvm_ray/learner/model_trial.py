"""Tries a model on a few random tokens before a run relies on it: the policy's log-probs against the model's own logits.

Families do different things with the final hidden states, and what isn't known here would train on wrong numbers
without any other sign of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gvm_ray.exceptions import ModelError
from gvm_ray.functional.gradient_norms import head_gradients
from gvm_ray.learner.policy import GradientParameters, PolicyModule, sample_gradient_norms
from gvm_ray.learner.sequences import TrainSample, pack_samples, pad_samples

TOLERANCE = 1e-4  # nats of a log-prob, and of a gradient norm as a share of it
_LENGTHS = ((3, 5), (5, 3), (2, 6))  # prompt and response tokens


def check_logprobs(policy: PolicyModule, path: str | Path, *, packed: bool = False) -> None:
    """Compare log-probs of random tokens with those of the model's own logits, on the device where the weights are.

    Args:
        policy: a whole one.
        path: of the model, for messages.
        packed: whether the run packs its micro-batches.

    Raises:
        ModelError: they differ.
    """
    samples = _samples(policy)
    make = pack_samples if packed else pad_samples
    with torch.no_grad():
        logprobs, _ = policy(make(samples, device=_device(policy)))
        own = [_own_logprobs(policy, sample) for sample in samples]
    difference = max(float((row[: len(o)] - o).abs().max()) for row, o in zip(logprobs, own, strict=True))
    if not difference <= TOLERANCE * max(1.0, max(float(o.abs().max()) for o in own)):
        raise ModelError("log-probs differ %g" % difference)


def check_gradient_norms(policy: PolicyModule, path: str | Path, *, parameters: GradientParameters) -> None:
    samples = _samples(policy)
    norms = sample_gradient_norms(policy, pad_samples(samples, device=_device(policy)), parameters=parameters)
    layer = policy.causal_lm.get_input_embeddings() if parameters == "embed_tokens" else policy.causal_lm.lm_head
    own = []
    for sample in samples:
        objective = _own_logprobs(policy, sample).sum()
        (gradient,) = torch.autograd.grad(objective, layer.weight)
        own.append(gradient.norm())
    own = torch.stack(own)
    difference = float(((norms - own).abs() / own).max())
    if not difference <= 1e-3:
        raise ModelError("norms differ %g" % difference)


def _own_logprobs(policy: PolicyModule, sample: TrainSample) -> Tensor:
    prompt, response = (torch.from_numpy(ids).to(_device(policy)) for ids in (sample.prompt_ids, sample.response_ids))
    logits = policy.causal_lm(torch.cat([prompt, response])[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
    logprobs = (logits.float() / policy.temperature).log_softmax(-1)
    return logprobs.gather(-1, response[:, None])[:, 0]


def _samples(policy: PolicyModule) -> list[TrainSample]:
    rng = np.random.default_rng(0)
    vocab = len(policy.causal_lm.lm_head.weight)
    empty = np.zeros(0, dtype=np.float32)
    return [
        TrainSample(
            prompt_ids=rng.integers(vocab, size=prompt), response_ids=rng.integers(vocab, size=response),
            engine_logprobs=empty,
        )
        for prompt, response in _LENGTHS
    ]


def _device(policy: PolicyModule) -> torch.device:
    return next(policy.parameters()).device
