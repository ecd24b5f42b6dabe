"""Trial of a model on a few random tokens before a run relies on it: the policy against the model's own logits.

Model families process token ids and final hidden states differently. A difference unknown to the policy would silently
train on wrong numbers.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gvm_ray.exceptions import ModelError
from gvm_ray.learner.kernels import AttentionKernels, Sharing
from gvm_ray.learner.sequences import SequenceBatch, TrainSample, pack_samples, pad_samples, share_samples
from gvm_ray.learner.shared_prompts import KERNELS, register_shared_sdpa
from gvm_ray.maths.logprobs import OutputHead

if TYPE_CHECKING:
    from gvm_ray.learner.policy import PolicyModule

_LENGTHS = ((3, 5), (5, 3), (2, 6))  # prompt and response tokens of the samples
_SHARED_LENGTHS = ((3, (5, 1, 4)), (5, (3,)), (2, (6, 7)))  # prompt tokens, and those of its responses
_ATTENTION_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}  # as transformers names layers
_PROBE_VOCABULARY = 32
_LARGEST_DIFFERENCE = 2e-3  # nats; rounding differences between two layouts of a deep model stay below this
_LARGEST_SHARE = 1e-2  # relative; rounding differences of a gradient norm stay below this


@contextmanager
def trial(causal_lm: Any, path: str | Path) -> Iterator[None]:
    """Context that turns any exception of the model into a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # the model's code may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise _unsupported(causal_lm, path, f"it fails on a few random tokens ({reason})") from error


def check_output(causal_lm: Any, head: Callable[[Any], OutputHead], path: str | Path) -> None:
    """Compare logits of random hidden states with the model's own, on a small vocabulary; weights may be on `meta`.

    Args:
        causal_lm: the model; unchanged afterwards.
        head: makes the output head that the policy would use.
        path: of the model, for messages.

    Raises:
        ModelError: the logits differ, or the model can't compute them from hidden states alone.
    """
    layer, backbone = causal_lm.lm_head, causal_lm.model
    generator = torch.Generator().manual_seed(0)
    probe = nn.Linear(layer.weight.shape[1], _PROBE_VOCABULARY, bias=layer.bias is not None)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.normal_(generator=generator)
        states = torch.randn(1, 4, probe.in_features, generator=generator)
        causal_lm.lm_head = probe
        backbone.forward = lambda *_, **__: _Output(states)
        try:
            with trial(causal_lm, path):
                own = causal_lm(torch.zeros(states.shape[:2], dtype=torch.long), use_cache=False).logits
                logits = head(causal_lm).logits(states)
        finally:
            causal_lm.lm_head = layer
            del backbone.forward
    _check_logits(causal_lm, path, logits=logits, own=own.float())


def check_logprobs(policy: "PolicyModule", path: str | Path, *, packed: bool) -> None:
    """Compare the policy's log-probs of random tokens with log-probs from the model's own logits.

    Args:
        policy: not sharded, on the CPU.
        path: of the model, for messages.
        packed: whether its micro-batches will be packed.

    Raises:
        ModelError: they differ, or depend on the other samples of a micro-batch.
    """
    samples = _random_samples(policy)
    padded = pad_samples(samples, device=torch.device("cpu"))
    with torch.no_grad():
        own = policy.causal_lm(padded.input_ids, use_cache=False).logits.float() / policy.temperature
        alone = [_own_logprobs(policy, sample) for sample in samples]
        logprobs, _ = policy(padded)
        laid_out = policy(pack_samples(samples, device=torch.device("cpu")))[0] if packed else logprobs
    own_logprobs = own.log_softmax(-1).flatten(0, 1)[padded.state_positions()]
    own_logprobs = own_logprobs.gather(-1, padded.targets.unsqueeze(-1)).squeeze(-1)
    _check_logits(policy.causal_lm, path, logits=logprobs[padded.mask], own=own_logprobs[padded.mask], size=own)
    difference = max(
        float((row[: len(values)] - values).abs().max()) for row, values in zip(laid_out, alone, strict=True)
    )
    if not difference <= _LARGEST_DIFFERENCE:
        raise ModelError(
            f"the log-probs of {str(path)!r} ({type(policy.causal_lm).__name__}) differ by up to {difference:.2g} nats "
            + (
                "where samples are packed, for its layers read over the borders between them; write "
                'learner.packing = "padded"'
                if packed
                else "with the other samples of a micro-batch; use another model"
            )
        )


def check_gradient_norms(
    policy: "PolicyModule", path: str | Path, *, parameter: nn.Parameter, measure: Callable[[SequenceBatch], Tensor]
) -> None:
    """Compare per-sample gradient norms with autograd's.

    Args:
        policy: not sharded, on the CPU.
        path: of the model, for messages.
        parameter: the matrix whose gradient is measured.
        measure: computes the norms [B] of a batch's samples.

    Raises:
        ModelError: the norms differ.
    """
    samples = _random_samples(policy)
    norms = measure(pad_samples(samples, device=torch.device("cpu")))
    own = torch.stack(
        [torch.autograd.grad(_own_logprobs(policy, sample).sum(), parameter)[0].norm() for sample in samples]
    )
    share = float(((norms - own).abs() / own).max())
    if not share <= _LARGEST_SHARE:
        raise ModelError(
            f"the gradient norms of {str(path)!r} ({type(policy.causal_lm).__name__}) differ from autograd's by "
            f"{share:.1%}; write another allocator.gradient_parameters, or an allocator that needs no gradient norms "
            '(allocator.type = "uniform")'
        )


def share_prompts(
    policy: "PolicyModule", path: str | Path, *, kernels: AttentionKernels = "sdpa", sharing: Sharing | None = "on"
) -> None:
    """Let a policy share prompts, if its model's layers can do it. A collective call of all ranks.

    Args:
        policy: the whole policy, on the CPU.
        path: the model's path, for messages.
        kernels: the attention kernels that it runs on, "sdpa" or "varlen".
        sharing: "on" refuses a model that can't; "try" warns and goes without; None skips the trial.

    Raises:
        ModelError: `sharing` is "on", and log-probs would be wrong.
    """
    causal_lm = policy.causal_lm
    register_shared_sdpa()
    causal_lm.set_attn_implementation(KERNELS)  # can do what varlen's can, which run on GPUs alone
    refusal = None if sharing is None else _agreed(_sharing_refusal(policy, path))
    policy.shares_prompts = refusal is None
    if refusal is not None or kernels != "sdpa":
        causal_lm.set_attn_implementation(kernels)
    if refusal is not None and sharing == "on":
        raise ModelError(f'{refusal}; write learner.packing = "auto" or "padded"')
    if refusal is not None and (not dist.is_initialized() or dist.get_rank() == 0):
        logging.getLogger(__name__).warning("%s: prompts are read once for each of their responses", refusal)


def _agreed(refusal: str | None) -> str | None:
    """A refusal on every rank if any rank has one: all must lay out samples alike."""
    if not dist.is_initialized():
        return refusal
    refused = torch.tensor(float(refusal is not None))
    dist.all_reduce(refused, op=dist.ReduceOp.MAX)
    return refusal or ("on another rank the trial of shared prompts failed" if refused else None)


@torch.no_grad()
def _sharing_refusal(policy: "PolicyModule", path: str | Path) -> str | None:
    """The reason why responses can't share a prompt; None if a few random tokens show no difference."""
    causal_lm, device = policy.causal_lm, torch.device("cpu")
    told = f"the layers of {str(path)!r} ({type(causal_lm).__name__}) can't share prompts"
    if reading := _reads_by_place(causal_lm):
        return f"{told}, for they have {reading}"
    prompts, samples = _random_samples(policy, lengths=[(prompt, 1) for prompt, _ in _SHARED_LENGTHS]), []
    for prompt, (_, lengths) in zip(prompts, _SHARED_LENGTHS, strict=True):
        responses = _random_samples(policy, lengths=[(1, length) for length in lengths], seed=len(samples) + 1)
        samples += [replace(response, prompt_ids=prompt.prompt_ids) for response in responses]
    try:
        alone = [_own_logprobs(policy, sample) for sample in samples]
        layouts = [policy(make(samples, device=device))[0] for make in (share_samples, pad_samples)]
    except Exception as error:  # of a model's code, which may be of any kind
        return f"{told} ({' '.join(f'{type(error).__name__}: {error}'.split())[:200]})"
    rows = [(row, values) for logprobs in layouts for row, values in zip(logprobs, alone, strict=True)]
    difference = max(float((row[: len(values)] - values).abs().max()) for row, values in rows)
    if not difference <= _LARGEST_DIFFERENCE:
        return f"{told}, log-probs would differ by up to {difference:.2g} nats"
    return None


def _reads_by_place(causal_lm: Any) -> str | None:
    """A known part of the model that depends on places in the row instead of positions; None if there is none.

    The trial finds such parts too, unless they take effect only after many tokens, or hardly any with random weights.
    """
    config = causal_lm.config
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _ATTENTION_TYPES)
    if others:
        return f"layers of type {others[0]!r}"
    if any(isinstance(module, nn.Conv1d) for module in causal_lm.modules()):  # state spaces and linear attention
        return "convolutions"
    return "scores scaled by place" if getattr(config, "attn_temperature_tuning", False) else None  # Llama 4


class _Output:
    """A backbone's output with nothing but hidden states."""

    def __init__(self, last_hidden_state: Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, place: int | slice) -> Any:
        return (self.last_hidden_state,)[place]


def _check_logits(causal_lm: Any, path: str | Path, *, logits: Tensor, own: Tensor, size: Tensor | None = None) -> None:
    difference = float((logits - own).abs().max())
    rounding = float((own if size is None else size).abs().max()) * 1e-6
    if not difference <= 1e-4 + rounding:
        raise _unsupported(causal_lm, path, f"its own logits differ from the learners' by up to {difference:.2g}")


def _unsupported(causal_lm: Any, path: str | Path, reason: str) -> ModelError:
    return ModelError(
        f"{str(path)!r} holds a {type(causal_lm).__name__}, which the learners can't train: {reason}; use a text model "
        "of the Llama, Qwen2, Qwen3, Gemma or Mistral family"
    )


def _own_logprobs(policy: "PolicyModule", sample: TrainSample) -> Tensor:
    """Log-probs [T] of a sample's response from the model's own logits, with no other sample in the batch."""
    prompt, response = (torch.from_numpy(ids).long() for ids in (sample.prompt_ids, sample.response_ids))
    logits = policy.causal_lm(torch.cat([prompt, response]).unsqueeze(0), use_cache=False).logits[0]
    logprobs = (logits[len(prompt) - 1 : -1].float() / policy.temperature).log_softmax(-1)
    return logprobs.gather(-1, response.unsqueeze(-1)).squeeze(-1)


def _random_samples(
    policy: "PolicyModule", *, lengths: Sequence[tuple[int, int]] = _LENGTHS, seed: int = 0
) -> list[TrainSample]:
    rng = np.random.default_rng(seed)
    vocab_size = len(policy.causal_lm.lm_head.weight)
    return [
        TrainSample(
            prompt_ids=rng.integers(vocab_size, size=num_prompt).astype(np.int32),
            response_ids=rng.integers(vocab_size, size=num_response).astype(np.int32),
            engine_logprobs=np.zeros(0, dtype=np.float32),
        )
        for num_prompt, num_response in lengths
    ]
