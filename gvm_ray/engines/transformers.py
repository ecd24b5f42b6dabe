"""Sampling with Hugging Face transformers where vLLM is not installed: the same contract, without its speed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging as transformers_logging

from gvm_ray.config.run import EngineConfig
from gvm_ray.engines.samples import RawSample, check_lengths, form_completions
from gvm_ray.exceptions import ModelError, SystemFailure
from gvm_ray.pretrained import load_tokenizer
from gvm_ray.types import Completion, SampleRequest, SamplingParameters


@dataclass(kw_only=True)
class _Row:
    """One sample in the making."""

    prompt_token_ids: list[int]
    generator: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class TransformersEngine:
    """Protocol `Engine`: left-padded batches of `max_num_seqs` rows with a KV cache; a finished row leaves."""

    def __init__(
        self,
        model_path: str,
        *,
        config: EngineConfig,
        max_model_len: int,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._tokenizer = load_tokenizer(model_path, revision=revision, trust_remote_code=trust_remote_code)
        self._device = torch.device("cuda" if config.gpus_per_generator and torch.cuda.is_available() else "cpu")
        self._max_model_len = max_model_len
        self._max_num_seqs = config.max_num_seqs
        self._policy_version = -1
        transformers_logging.disable_progress_bar()
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                model_path,
                revision=revision or "main",
                dtype=getattr(torch, config.dtype),
                trust_remote_code=trust_remote_code,
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"transformers can't run {model_path!r}: {error}") from error
        self._model = model.to(self._device).eval()

    @property
    def policy_version(self) -> int:
        """Version of the loaded weights; -1 before the first load_weights."""
        return self._policy_version

    @torch.inference_mode()
    def generate(self, requests: Sequence[SampleRequest], sampling: SamplingParameters) -> list[tuple[Completion, ...]]:
        """One tuple for each request, in order. What a sample is depends on its prompt and seed, not on its company.

        Raises:
            DataError: a prompt is too long for the engine.
        """
        check_lengths(requests, sampling=sampling, max_model_len=self._max_model_len)
        rows = [
            _Row(
                prompt_token_ids=request.prompt.token_ids.tolist(),
                generator=torch.Generator(self._device).manual_seed(seed),
            )
            for request in requests
            for seed in request.seeds
        ]
        by_length = sorted(rows, key=lambda row: len(row.prompt_token_ids))  # little padding
        for start in range(0, len(rows), self._max_num_seqs):
            self._sample(by_length[start : start + self._max_num_seqs], sampling)
        samples = [RawSample(token_ids=row.token_ids, logprobs=row.logprobs) for row in rows]
        return form_completions(
            requests, samples=samples, tokenizer=self._tokenizer, policy_version=self._policy_version
        )

    @torch.no_grad()
    def load_weights(self, policy_version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace every weight by the named CPU tensors (Hugging Face names).

        Raises:
            SystemFailure: a tensor is unknown or has another shape, or a weight of the model was left out.
        """
        weights: dict[str, torch.Tensor] = self._model.state_dict()  # tied weights stand under both their names
        loaded: set[int] = set()
        for name, tensor in tensors:
            target = weights.get(name)
            if target is None or target.shape != tensor.shape:
                raise SystemFailure(
                    f"weights version {policy_version} hold {name!r} of shape {tuple(tensor.shape)}; in the engine's "
                    + ("model it is unknown" if target is None else f"model it is {tuple(target.shape)}")
                )
            target.copy_(tensor)
            loaded.add(target.data_ptr())
        missing = [name for name, weight in weights.items() if weight.data_ptr() not in loaded]
        if missing:
            raise SystemFailure(f"weights version {policy_version} lack {len(missing)} weights: {missing[:3]} ...")
        self._policy_version = policy_version

    def close(self) -> None:
        """Free the model; the engine can't be used afterwards."""
        del self._model

    def _sample(self, rows: list[_Row], sampling: SamplingParameters) -> None:
        """Fill in the rows' tokens and log-probs."""
        width = max(len(row.prompt_token_ids) for row in rows)
        padded = [[0] * (width - len(row.prompt_token_ids)) + row.prompt_token_ids for row in rows]
        mask = torch.tensor(
            [[0] * (width - len(row.prompt_token_ids)) + [1] * len(row.prompt_token_ids) for row in rows],
            device=self._device,
        )
        token_ids = torch.tensor(padded, device=self._device)  # [rows, width] at first, then [rows, 1]
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        cache = DynamicCache(config=self._model.config)
        for _ in range(sampling.max_tokens):
            logits = self._model(
                input_ids=token_ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            logprobs = torch.log_softmax(logits.float() / sampling.temperature, dim=-1)
            sampled = _sample_tokens(logprobs, [row.generator for row in rows])
            chosen = logprobs.gather(-1, sampled[:, None])[:, 0].tolist()
            for row, token_id, logprob in zip(rows, sampled.tolist(), chosen, strict=True):
                row.token_ids.append(token_id)
                row.logprobs.append(logprob)
            keep = [i for i, row in enumerate(rows) if row.token_ids[-1] != self._tokenizer.eos_token_id]
            if not keep:
                return
            if len(keep) < len(rows):
                rows = [rows[i] for i in keep]
                kept = torch.tensor(keep, device=self._device)
                cache.batch_select_indices(kept)
                sampled, mask, positions = sampled[kept], mask[kept], positions[kept]
            token_ids, positions = sampled[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)


def _sample_tokens(logprobs: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
    """[rows] tokens drawn from [rows, vocabulary] log-probs, each row with its own generator.

    An exponential race: argmax of p / Exp(1) is a draw from p, and each row needs one call only.
    """
    races = torch.empty_like(logprobs)
    for row, generator in zip(races, generators, strict=True):
        row.exponential_(generator=generator)
    return (logprobs - races.log()).argmax(dim=-1)
