"""Sampling with Hugging Face transformers if vLLM is not installed: the same contract, but slower."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging as transformers_logging

from gvm_ray.config.engine import EngineConfig
from gvm_ray.engines.adapters import MergingAdapters
from gvm_ray.engines.open_requests import OpenRequests, RawSample
from gvm_ray.exceptions import ModelError, SystemFailure
from gvm_ray.pretrained import load_end_token_ids, load_generation_config, load_tokenizer
from gvm_ray.types import AdapterSpec, Completion, SampleRequest, SamplingParameters

# Ended rows are removed once at most this share is running: copying the cache costs more than a few useless rows.
_KEPT_SHARE = 0.9


@dataclass(kw_only=True)
class _Row:
    """One sample under way."""

    number: int  # the sample's number in OpenRequests
    prompt_token_ids: list[int]
    generator: torch.Generator
    sampling: SamplingParameters
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[tuple[int, int]] = field(default_factory=list)  # (policy version, index of its first token)
    ended: bool = False


@dataclass(kw_only=True)
class _Batch:
    """Rows that are decoded together, some of them ended, and the inputs of their next forward pass."""

    rows: list[_Row]
    cache: DynamicCache
    token_ids: torch.Tensor  # [rows, 1]; for the first pass [prompts, width], each distinct prompt once
    positions: torch.Tensor  # as token_ids
    mask: torch.Tensor  # [rows, tokens so far]; for the first pass [prompts, width]
    prompt_of_row: torch.Tensor | None  # [rows] until the first pass

    def copy_prompts(self, logits: torch.Tensor) -> torch.Tensor:
        """Copy what the first pass made of each prompt for its rows; returns logits [rows, V] of [prompts, V]."""
        if (index := self.prompt_of_row) is None:
            return logits
        self.prompt_of_row = None
        if len(index) > len(logits):
            self.cache.batch_select_indices(index)
            self.positions, self.mask, logits = self.positions[index], self.mask[index], logits[index]
        return logits

    def keep(self, kept: list[int]) -> None:
        """Remove all other rows."""
        index = torch.tensor(kept, dtype=torch.long, device=self.mask.device)
        self.rows = [self.rows[i] for i in kept]
        self.cache.batch_select_indices(index)
        self.token_ids, self.positions, self.mask = self.token_ids[index], self.positions[index], self.mask[index]


class TransformersEngine:
    """The transformers engine (protocol `Engine`): left-padded batches of up to `max_num_seqs` rows with a KV cache.

    The samples of a prompt share its forward pass. Waiting rows start when the whole batch has ended.
    """

    def __init__(
        self,
        model_path: str,
        *,
        config: EngineConfig,
        max_model_len: int,
        revision: str | None = None,
        trust_remote_code: bool = False,
        adapters: AdapterSpec | None = None,
    ) -> None:
        self._tokenizer = load_tokenizer(model_path, revision=revision, trust_remote_code=trust_remote_code)
        self._device = torch.device("cuda" if config.gpus_per_generator and torch.cuda.is_available() else "cpu")
        self._end_token_ids = load_end_token_ids(model_path, tokenizer=self._tokenizer, revision=revision)
        self._open = OpenRequests(self._tokenizer, end_token_ids=self._end_token_ids, max_model_len=max_model_len)
        self._waiting: deque[_Row] = deque()
        self._batch: _Batch | None = None
        self._max_num_seqs = config.max_num_seqs
        self._policy_version = -1
        transformers_logging.disable_progress_bar()
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                model_path,
                revision=revision or "main",
                dtype=getattr(torch, config.dtype),
                trust_remote_code=trust_remote_code,
                generation_config=load_generation_config(model_path, revision=revision)[0],
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"transformers can't run {model_path!r}: {error}") from error
        self._model = model.to(self._device).eval()
        self._merging = None if adapters is None else MergingAdapters(self._model, adapters)

    @property
    def policy_version(self) -> int:
        """The version of the loaded weights; -1 before the first load_weights."""
        return self._policy_version

    @property
    def num_unfinished(self) -> int:
        """The number of requests added and not answered yet."""
        return len(self._open)

    def add(self, requests: Sequence[SampleRequest], sampling: SamplingParameters) -> None:
        """Queue requests. A sample depends on its prompt, its seed and the weights, not on other requests.

        Raises:
            DataError: a prompt is too long for the engine.
        """
        self._model.to(self._device)  # costs nothing if the model is there already
        rows = [
            _Row(
                number=number,
                prompt_token_ids=request.prompt.token_ids.tolist(),
                generator=torch.Generator(self._device).manual_seed(seed),
                sampling=sampling,
            )
            for number, request, seed in self._open.add(requests, sampling)
        ]
        self._waiting.extend(sorted(rows, key=lambda row: len(row.prompt_token_ids)))  # for little padding

    @torch.inference_mode()
    def step(self) -> list[tuple[SampleRequest, tuple[Completion, ...]]]:
        """Sample one token of every running row, and return the requests that it finishes."""
        if self._batch is None and self._waiting:
            self._batch = self._start_batch()
        if self._batch is not None:
            self._decode(self._batch)
            if not self._batch.rows:
                self._batch = None
        return self._open.take_complete()

    def abort(self) -> None:
        """Drop every unfinished request."""
        self._open.clear()
        self._waiting.clear()
        self._batch = None

    def reset(self) -> None:
        """Return to the state before the first load_weights; another run's policies may follow."""
        self.abort()
        self._policy_version = -1

    def sleep(self) -> None:
        """Free the GPU memory, except CUDA's own; the weights wait in main memory."""
        self._model.to("cpu")
        torch.cuda.empty_cache()

    @torch.no_grad()
    def load_weights(self, policy_version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace every weight by the named CPU tensors (Hugging Face names), or with adapters the last ones by these.

        Raises:
            SystemFailure: a tensor is unknown or has another shape, or a weight of the model is missing.
        """
        self._model.to(self._device)
        if self._merging is not None:
            self._merging.load(policy_version, tensors)
        else:
            self._load_all(policy_version, tensors)
        self._policy_version = policy_version

    def close(self) -> None:
        """Free the model; the engine can't be used afterwards."""
        del self._model

    def _load_all(self, policy_version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        weights: dict[str, torch.Tensor] = self._model.state_dict()  # tied weights appear under both names
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

    def _start_batch(self) -> _Batch:
        """Start a batch with the next waiting rows, at most `max_num_seqs`, padded on the left."""
        rows = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_num_seqs))]
        prompts = list(dict.fromkeys(tuple(row.prompt_token_ids) for row in rows))
        number_of = {prompt: number for number, prompt in enumerate(prompts)}
        width = max(map(len, prompts))
        padded = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        present = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        mask = torch.tensor(present, device=self._device)
        return _Batch(
            rows=rows,
            cache=DynamicCache(config=self._model.config),
            token_ids=torch.tensor(padded, device=self._device),
            positions=(mask.cumsum(-1) - 1).clamp_min(0),
            mask=mask,
            prompt_of_row=torch.tensor([number_of[tuple(row.prompt_token_ids)] for row in rows], device=self._device),
        )

    def _decode(self, batch: _Batch) -> None:
        """Run one forward pass and sample one token for every row; ended rows leave the batch, many at a time."""
        logits = self._model(
            input_ids=batch.token_ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        logits = batch.copy_prompts(logits)
        temperatures = torch.tensor([[row.sampling.temperature] for row in batch.rows], device=self._device)
        greedy = temperatures == 0  # their log-probs are at temperature 1, as vLLM's
        logprobs = torch.log_softmax(logits.float() / temperatures.masked_fill(greedy, 1.0), dim=-1)
        if any(row.sampling.top_p < 1 for row in batch.rows):
            shares = torch.tensor([[row.sampling.top_p] for row in batch.rows], device=self._device)
            logprobs = _nucleus(logprobs, shares)
        sampled = _sample_tokens(logprobs, [row.generator for row in batch.rows])
        sampled = torch.where(greedy[:, 0], logits.argmax(dim=-1), sampled)
        chosen = logprobs.gather(-1, sampled[:, None])[:, 0].tolist()
        for row, token_id, logprob in zip(batch.rows, sampled.tolist(), chosen, strict=True):
            if not row.ended:
                self._append(row, token_id, logprob)
        batch.token_ids, batch.positions = sampled[:, None], batch.positions[:, -1:] + 1
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch.rows), 1)], dim=-1)
        kept = [index for index, row in enumerate(batch.rows) if not row.ended]
        if not kept or len(kept) <= _KEPT_SHARE * len(batch.rows):
            batch.keep(kept)

    def _append(self, row: _Row, token_id: int, logprob: float) -> None:
        """Append a token, which may end the sample."""
        if not row.versions or row.versions[-1][0] != self._policy_version:
            row.versions.append((self._policy_version, len(row.token_ids)))
        row.token_ids.append(token_id)
        row.logprobs.append(logprob)
        row.ended = token_id in self._end_token_ids or len(row.token_ids) == row.sampling.max_tokens
        if row.ended:
            sample = RawSample(token_ids=row.token_ids, logprobs=row.logprobs, versions=row.versions)
            self._open.finish(row.number, sample)


def _nucleus(logprobs: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Renormalise log-probs [rows, vocabulary] over the likeliest tokens that together reach a row's share [rows, 1].

    This is nucleus sampling (arXiv 1904.09751); the likeliest token always stays.
    """
    ordered, order = logprobs.exp().sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # total probability of the likelier tokens
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= shares)
    return torch.log_softmax(logprobs.masked_fill(dropped, -torch.inf), dim=-1)


def _sample_tokens(logprobs: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
    """Draw tokens [rows] from log-probs [rows, vocabulary], each row with its own generator.

    By an exponential race: argmax of p / Exp(1) is a draw from p, and needs only one call per row.
    """
    races = torch.empty_like(logprobs)
    for row, generator in zip(races, generators, strict=True):
        row.exponential_(generator=generator)
    return (logprobs - races.log()).argmax(dim=-1)
