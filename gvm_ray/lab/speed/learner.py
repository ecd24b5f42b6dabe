"""Benchmark of the learner's optimizer update against a bare PyTorch loop with the same model and micro-batches.

The bare loop has no FSDP2, no metrics and no chunks of logits; both end with the same weights. Micro-batches with
shared prompts are compared with padded ones; on a GPU packed ones too, and an update's FLOP/s with those of one large
matrix product.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gvm_ray.algorithms import token_loss
from gvm_ray.config import RunConfig, parse_config
from gvm_ray.config.model import DType
from gvm_ray.lab.speed.suite import BenchOptions, BenchRow, compare
from gvm_ray.learner.learner import Learner
from gvm_ray.learner.model_folder import write_model_folder
from gvm_ray.learner.scratch_model import build_character_tokenizer
from gvm_ray.maths.packing import micro_batches
from gvm_ray.types import Completion, GroupRef, Prompt, RolloutGroup, TrainBatch, TrainGroup


@dataclass(frozen=True, kw_only=True)
class LearnerCase:
    """The sizes of a Qwen2-architecture model with tied embeddings, by default 0.9 M parameters, and of its batch."""

    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 4
    head_size: int = 32
    vocab_size: int = 896
    num_prompts: int = 32
    samples_per_prompt: int = 8
    prompt_tokens: tuple[int, int] = (16, 24)  # fewest and most
    response_tokens: tuple[int, int] = (32, 64)
    micro_batch_tokens: int = 16384
    learning_rate: float = 1e-4
    dtype: DType = "float32"


# 0.5 billion parameters, as in Qwen2.5-0.5B, with responses of many lengths.
GPU_CASE = LearnerCase(
    hidden_size=896,
    intermediate_size=4864,
    num_layers=24,
    vocab_size=151_936,
    head_size=64,
    num_prompts=16,
    prompt_tokens=(64, 256),
    response_tokens=(128, 2048),
    micro_batch_tokens=32768,
    dtype="bfloat16",
)


# Lengths of school problems with short answers, and of longer ones.
SHARED_CASES = (
    LearnerCase(prompt_tokens=(64, 64), response_tokens=(53, 53), num_prompts=16),
    LearnerCase(prompt_tokens=(70, 70), response_tokens=(16, 16), num_prompts=16),
    LearnerCase(prompt_tokens=(150, 150), response_tokens=(128, 128), num_prompts=8),
)


def measure(options: BenchOptions) -> list[BenchRow]:
    """Measure tokens/s of one update in float32, with torch's number of threads; on a GPU, measure more cases."""
    case = LearnerCase(num_prompts=8) if options.quick else LearnerCase()
    groups = make_groups(case)
    batch = make_batch(groups)
    num_tokens = _num_tokens(groups)
    with tempfile.TemporaryDirectory() as folder:
        write_model(case, folder)
        learner, loop = make_learner(case, folder, packing="padded"), BareLoop(case, folder)
    repeats = 3 if options.quick else 7
    ours_s, bare_s = compare(lambda: learner.update(batch, groups), lambda: loop.update(batch, groups), repeats=repeats)
    row = BenchRow(
        name=f"learner update, {batch.num_samples} samples",
        value=num_tokens / ours_s,
        unit="tokens/s",
        floor=num_tokens / bare_s,
        floor_name="bare PyTorch loop",
    )
    cases = [replace(each, num_prompts=4) for each in SHARED_CASES] if options.quick else SHARED_CASES
    rows = [row, *(shared_row(each, repeats=repeats) for each in cases)]
    rows.append(shared_row(cases[0], repeats=repeats, measured=True))
    if not torch.cuda.is_available():
        return rows
    gpu_case = replace(GPU_CASE, num_prompts=4) if options.quick else GPU_CASE
    return [*rows, *gpu_rows(gpu_case, device=torch.device("cuda"), repeats=repeats)]


def shared_row(case: LearnerCase, *, repeats: int, measured: bool = False) -> BenchRow:
    """Measure an update that reads each prompt once against one that reads it once per response, in tokens/s.

    Both count the tokens of the latter. With `measured` they give gradient norms too: the former of two samples of each
    prompt, as for a score with gradient norms by default, the latter of all.
    """
    groups = make_groups(case)
    batch, num_tokens = make_batch(groups), _num_tokens(groups)
    with tempfile.TemporaryDirectory() as folder:
        write_model(case, folder)
        shared, padded = (
            make_learner(case, folder, packing=packing, measured=measured) for packing in ("shared", "padded")
        )
    shared_s, padded_s = compare(
        lambda: shared.update(batch, groups), lambda: padded.update(batch, groups), repeats=repeats
    )
    return BenchRow(
        name=f"learner update with shared prompts{' and gradient norms' * measured}, {case.samples_per_prompt} x "
        f"({case.prompt_tokens[1]} + {case.response_tokens[1]}) tokens",
        value=num_tokens / shared_s,
        unit="tokens/s",
        floor=num_tokens / padded_s,
        floor_name="a prompt for each response, padded",
    )


def gpu_rows(case: LearnerCase, *, device: torch.device, repeats: int) -> list[BenchRow]:
    """Measure an update with packed micro-batches: tokens/s against padded ones, FLOP/s against a matrix product.

    FLOPs are 6 for each parameter and token (arXiv 2001.08361, section 2.1), without attention and recomputation.
    """
    groups = make_groups(case)
    batch = make_batch(groups)
    num_tokens = _num_tokens(groups)
    with tempfile.TemporaryDirectory() as folder:
        write_model(case, folder)
        packed, padded = (make_learner(case, folder, packing=p, device=device) for p in ("packed", "padded"))
    num_parameters = sum(tensor.numel() for _, tensor in packed.named_full_tensors())
    dtype = getattr(torch, case.dtype)
    width = 8192 if device.type == "cuda" else 512
    left, right = (torch.ones(width, width, dtype=dtype, device=device) for _ in range(2))
    packed_s, padded_s = compare(
        lambda: packed.update(batch, groups), lambda: padded.update(batch, groups), repeats=repeats
    )

    def product() -> float:
        return (left @ right)[0, 0].item()  # waits for the result, as an update does

    product_s, _ = compare(product, product, repeats=repeats)
    name = f"packed learner update, {num_parameters:,} parameters in {case.dtype}"
    return [
        BenchRow(
            name=name,
            value=num_tokens / packed_s,
            unit="tokens/s",
            floor=num_tokens / padded_s,
            floor_name="padded micro-batches",
        ),
        BenchRow(
            name=name,
            value=6 * num_parameters * num_tokens / packed_s / 1e12,
            unit="TFLOP/s",
            floor=2 * width**3 / product_s / 1e12,
            floor_name=f"product of two {width} x {width} matrices",
        ),
    ]


def write_model(case: LearnerCase, folder: str | Path) -> None:
    """Write a Hugging Face folder of the case's model with random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=case.vocab_size,
        hidden_size=case.hidden_size,
        intermediate_size=case.intermediate_size,
        num_hidden_layers=case.num_layers,
        num_attention_heads=case.hidden_size // case.head_size,
        num_key_value_heads=max(1, case.hidden_size // case.head_size // 2),
        max_position_embeddings=max(512, case.prompt_tokens[1] + case.response_tokens[1]),
        tie_word_embeddings=True,
        initializer_range=case.hidden_size**-0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tensors = Qwen2ForCausalLM(config).state_dict().items()
    tokenizer = build_character_tokenizer()  # has fewer tokens than the model; nothing is decoded here
    write_model_folder(folder, model_config=config, generation_config=None, tensors=tensors, tokenizer=tokenizer)


def make_groups(case: LearnerCase) -> list[RolloutGroup]:
    """Create random prompts and responses, as if sampled by an engine that finds all tokens equally likely."""
    rng = np.random.default_rng(0)
    groups = []
    for index in range(case.num_prompts):
        prompt_ids = _token_ids(rng, case.prompt_tokens, vocab_size=case.vocab_size)
        responses = [
            _token_ids(rng, case.response_tokens, vocab_size=case.vocab_size) for _ in range(case.samples_per_prompt)
        ]
        completions = tuple(
            Completion(
                token_ids=ids,
                logprobs=np.full(len(ids), -np.log(case.vocab_size), dtype=np.float32),
                policy_versions=np.zeros(len(ids), dtype=np.int32),
                finish_reason="stop",
                text="",
            )
            for ids in responses
        )
        prompt = Prompt(prompt_id=str(index), text="", token_ids=prompt_ids, answer="")
        groups.append(RolloutGroup.of(prompt, completions, rewards=np.zeros(len(completions))))
    return groups


def make_batch(groups: Sequence[RolloutGroup]) -> TrainBatch:
    """Build a batch of all samples, with advantages from -1 to 1 in each group and the mean over all tokens as loss."""
    num_tokens = sum(int(group.num_tokens.sum()) for group in groups)
    return TrainBatch(
        step=0,
        groups=tuple(
            TrainGroup(
                prompt_id=group.prompt.prompt_id,
                ref=GroupRef(ref=None, index=index),
                sample_indices=np.arange(len(group), dtype=np.int32),
                advantages=np.linspace(-1.0, 1.0, len(group)),
                weights=np.full(len(group), 1.0 / num_tokens),
                num_tokens=group.num_tokens,
            )
            for index, group in enumerate(groups)
        ),
    )


def make_learner(
    case: LearnerCase,
    folder: str | Path,
    *,
    packing: str = "auto",
    device: torch.device | None = None,
    measured: bool = False,
) -> Learner:
    """Create the learner as in a run: GRPO's clipped loss, truncated importance weights, AdamW, gradient clipping.

    With `measured` updates give gradient norms.
    """
    config = _config(case, packing=packing, measured=measured)
    return Learner(config, base_path=str(folder), token_loss=token_loss(config.algorithm), device=device)


class BareLoop:
    """A hand-written training loop: padded batches of similar lengths, log-softmax, loss, backward, clip, AdamW."""

    def __init__(self, case: LearnerCase, folder: str | Path) -> None:
        from transformers import AutoModelForCausalLM

        self._micro_batch_tokens = case.micro_batch_tokens
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=case.learning_rate, weight_decay=0.0, fused=True
        )

    def update(self, batch: TrainBatch, groups: Sequence[RolloutGroup]) -> None:
        """Make one optimizer update on all samples."""
        rows = [
            (group.prompt.token_ids, group.completions[i], advantage, weight)
            for kept, group in zip(batch.groups, groups, strict=True)
            for i, advantage, weight in zip(kept.sample_indices, kept.advantages, kept.weights, strict=True)
        ]
        lengths = [len(prompt) + len(completion.token_ids) for prompt, completion, _, _ in rows]
        (parts,) = micro_batches(lengths, max_tokens=self._micro_batch_tokens, num_ranks=1)
        for part in parts:
            width = max(lengths[i] for i in part)
            ids = torch.zeros(len(part), width, dtype=torch.int64)
            mask, engine = torch.zeros(len(part), width, dtype=torch.bool), torch.zeros(len(part), width)
            for row, i in enumerate(part):
                prompt, completion, _, _ = rows[i]
                response = slice(len(prompt), lengths[i])
                ids[row, : len(prompt)] = torch.from_numpy(prompt)
                ids[row, response] = torch.from_numpy(completion.token_ids)
                engine[row, response] = torch.from_numpy(completion.logprobs)
                mask[row, response] = True
            advantages = torch.tensor([[rows[i][2]] for i in part], dtype=torch.float32)
            weights = torch.tensor([[rows[i][3]] for i in part], dtype=torch.float32)
            losses = self._token_losses(ids, engine[:, 1:], advantages)
            (torch.where(mask[:, 1:], losses, 0.0) * weights).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _token_losses(self, ids: Tensor, engine_logprobs: Tensor, advantages: Tensor) -> Tensor:
        """Compute clipped losses [B, S - 1] of the tokens after the first."""
        logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1]
        logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
        old = logprobs.detach()
        ratio = (logprobs - old).exp()
        losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
        return losses * (old - engine_logprobs).exp().clamp(max=2.0)


def _config(case: LearnerCase, *, packing: str, measured: bool) -> RunConfig:
    return parse_config(
        {
            "name": "bench",
            "model": {"type": "scratch"},
            "prompts": {"train": {"type": "arithmetic"}},
            "algorithm": {"type": "grpo"},
            "allocator": {"type": "gvm_pool", "score": "norm_neyman"} if measured else {"type": "uniform"},
            "learner": {
                "micro_batch_tokens": case.micro_batch_tokens,
                "packing": packing,
                "dtype": case.dtype,
                "optimizer": {"learning_rate": case.learning_rate},
            },
        }
    )


def _num_tokens(groups: Sequence[RolloutGroup]) -> int:
    """The number of prompt and response tokens of all samples."""
    return sum(len(g.prompt.token_ids) * len(g) + int(g.num_tokens.sum()) for g in groups)


def _token_ids(rng: np.random.Generator, lengths: tuple[int, int], *, vocab_size: int) -> np.ndarray:
    return rng.integers(3, vocab_size, size=rng.integers(lengths[0], lengths[1] + 1)).astype(np.int32)
