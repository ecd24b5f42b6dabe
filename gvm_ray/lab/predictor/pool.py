"""Pools to predict in: each policy's scored samples of the same prompts, and states of prompts and responses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gvm_ray.config import PredictionConfig, RunConfig
from gvm_ray.config.lab import PolicyConfig
from gvm_ray.exceptions import ConfigError, DataError
from gvm_ray.lab.predictor.policies import policy_config
from gvm_ray.lab.responses import Say, draw_responses, load_whole_policy, score_responses, warm_started_path
from gvm_ray.learner.policy import PolicyModule
from gvm_ray.maths.logprobs import token_logprobs
from gvm_ray.prepare import Prepared, check_date, prepare
from gvm_ray.prompt_states import EmbeddingStates
from gvm_ray.reporting.progress import ProgressLines
from gvm_ray.reporting.run_folder import json_text
from gvm_ray.system import embeddings_of
from gvm_ray.types import Completion, Float64Array, FloatArray, Prompt

Layer = float  # share of the model's depth: 0 is the input embedding, 1 the last layer after the final norm


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictionPool:
    """K samples of each of P prompts, drawn from one policy, and what it computes of prompts and responses."""

    name: str
    step: int  # of training that the policy stands for
    accept_threshold: float
    prompts: tuple[Prompt, ...]  # P
    rewards: Float64Array  # [P, K], NaN = unscored
    num_tokens: Float64Array  # [P, K] of the response
    entropies: Float64Array  # [P, K] nats, mean over the response's tokens
    logprobs: Float64Array  # [P, K] nats, mean over the response's tokens
    response_states: FloatArray  # [P, K, H] of one layer, mean over the response's tokens
    embeddings: FloatArray  # [P, F] as an allocator with states = "embedding" gets them
    mean_states: Mapping[Layer, FloatArray]  # [P, H], mean over the prompt's tokens
    last_states: Mapping[Layer, FloatArray]  # [P, H], at the prompt's last token

    @property
    def accepted(self) -> Float64Array:
        """[P, K] 1 for an accepted sample, 0 for a rejected one, NaN for an unscored one."""
        return np.where(np.isfinite(self.rewards), self.rewards >= self.accept_threshold, np.nan)


def draw_pools(
    settings: PredictionConfig, *, folder: Path, overwrite: bool = False, say: Say = print
) -> list[PredictionPool]:
    """Draw the pool of every policy, of the same prompts.

    A pool that an earlier measurement left in the run's folder is read if its settings are the same. A model folder
    whose weights have changed goes unnoticed; `overwrite` draws all pools again.

    Raises:
        UserError: a run's settings, model or data are wrong, the training set is too small, or policies read prompts
            differently.
    """
    pools: list[PredictionPool] = []
    for policy in settings.policies:
        config = policy_config(settings, policy, folder=folder)
        pool = _pool(settings, policy, config, overwrite=overwrite, say=say)
        pools.append(pool)
        if [p.prompt_id for p in pool.prompts] != [p.prompt_id for p in pools[0].prompts]:
            raise ConfigError(
                f"policies {pools[0].name!r} and {pool.name!r} read the training set as different prompts; measure "
                "policies of one run, which share their tokenizer and template"
            )
        say(f"{policy.name}: mean accept rate {np.nanmean(pool.accepted):.3f}")
    return pools


def _pool(
    settings: PredictionConfig, policy: PolicyConfig, config: RunConfig, *, overwrite: bool, say: Say
) -> PredictionPool:
    """The pool of a policy, from the run's folder or drawn and written there."""
    run_dir = Path(config.runs_dir).resolve() / config.name / policy.name
    prepared = prepare(config, run_dir=run_dir)
    check_date(config, prepared.tokenizer)
    prompts = _chosen_prompts(settings, prepared.prompts.train)
    drawn_by = settings.model_dump(
        include={"seed", "num_prompts", "num_samples", "layers", "response_layer"}, mode="json"
    )
    key = json_text({"drawn_by": drawn_by, "run": config.model_dump(mode="json")})
    file = run_dir / "pool.npz"
    arrays = None if overwrite else _read_arrays(file, key=key)
    if arrays is None:
        arrays = _drawn(settings, policy, config, prepared, prompts, say=say)
        run_dir.mkdir(parents=True, exist_ok=True)
        np.savez(file, allow_pickle=False, key=np.array(key), **arrays)
    else:
        say(f"{policy.name}: {len(prompts)} prompts x {settings.num_samples} of an earlier measurement, from {file}")
    return PredictionPool(
        name=policy.name,
        step=policy.step,
        accept_threshold=config.rewards.accept_threshold,
        prompts=prompts,
        mean_states={layer: arrays.pop(f"mean {layer}") for layer in settings.layers},
        last_states={layer: arrays.pop(f"last {layer}") for layer in settings.layers},
        **arrays,
    )


def _read_arrays(file: Path, *, key: str) -> dict[str, NDArray[Any]] | None:
    """The arrays of a pool's file; None if there is none with these settings."""
    if not file.is_file():
        return None
    with np.load(file) as stored:
        arrays = dict(stored)
    return arrays if str(arrays.pop("key", "")) == key else None


def _drawn(
    settings: PredictionConfig,
    policy: PolicyConfig,
    config: RunConfig,
    prepared: Prepared,
    prompts: Sequence[Prompt],
    *,
    say: Say,
) -> dict[str, NDArray[Any]]:
    """The arrays of a pool: its fields, and the states by pooling and layer."""
    path = warm_started_path(config, prepared, say=say)
    say(f"{policy.name}: sampling {len(prompts)} prompts x {settings.num_samples}")
    responses = draw_responses(
        config, prepared, path=path, prompts=prompts, num_samples=settings.num_samples, seed=settings.seed
    )
    rewards = score_responses(config, responses)
    samples = np.stack(responses.samples)  # [P, K]
    device = torch.device("cuda" if config.learner.gpus_per_worker else "cpu")
    states = PolicyStates(
        load_whole_policy(config, prepared, path).to(device),
        layers=settings.layers,
        response_layer=settings.response_layer,
    )
    lines = ProgressLines(f"{policy.name}: states", len(prompts), say=say)
    of_prompts: list[PromptPass] = []
    for prompt, own in zip(prompts, samples, strict=True):
        of_prompts.append(states.of(prompt, responses.completions[own.min() : own.max() + 1]))
        lines.add()
    within = samples - samples.min(axis=1, keepdims=True)  # indices into the prompt's own responses
    by_sample = list(zip(of_prompts, within, strict=True))
    embeddings = EmbeddingStates(prompts=prepared.prompts.train, read=embeddings_of(prepared.base))
    return {
        "rewards": rewards[samples],
        "num_tokens": np.array([len(c.token_ids) for c in responses.completions], dtype=np.float64)[samples],
        "entropies": np.stack([one.entropies[own] for one, own in by_sample]).astype(np.float64),
        "logprobs": np.stack([one.logprobs[own] for one, own in by_sample]).astype(np.float64),
        "response_states": np.stack([one.responses[own] for one, own in by_sample]),
        "embeddings": embeddings.means(prompts),
        **{f"mean {layer}": np.stack([one.mean[layer] for one in of_prompts]) for layer in settings.layers},
        **{f"last {layer}": np.stack([one.last[layer] for one in of_prompts]) for layer in settings.layers},
    }


def _chosen_prompts(settings: PredictionConfig, prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    if settings.num_prompts > len(prompts):
        raise DataError(
            f"num_prompts={settings.num_prompts}, but there are only {len(prompts)} training prompts; write fewer"
        )
    order = np.random.default_rng(settings.seed).permutation(len(prompts))
    return tuple(prompts[index] for index in order[: settings.num_prompts])


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptPass:
    """States of a prompt, and of n responses read after it."""

    mean: Mapping[Layer, FloatArray]  # [H]
    last: Mapping[Layer, FloatArray]  # [H]
    responses: FloatArray  # [n, H] mean over the response's tokens
    logprobs: FloatArray  # [n] nats, mean over the response's tokens
    entropies: FloatArray  # [n] nats, mean over the response's tokens


class PolicyStates:
    """Hidden states of prompts and responses, at some layers.

    Args:
        policy: the whole policy, unsharded.
        layers: those of prompts.
        response_layer: that of responses.
    """

    def __init__(self, policy: PolicyModule, *, layers: Sequence[Layer], response_layer: Layer) -> None:
        self._policy = policy
        self._layers, self._response_layer = tuple(layers), response_layer
        self._device = next(policy.parameters()).device

    @torch.inference_mode()
    def of(self, prompt: Prompt, completions: Sequence[Completion]) -> PromptPass:
        """One pass over the prompt, and one over its responses, which share its cache."""
        model = self._policy.causal_lm.model
        prompt_ids = torch.from_numpy(prompt.token_ids.astype(np.int64)).to(self._device)
        read = model(prompt_ids.unsqueeze(0), use_cache=True, output_hidden_states=True)
        ids, inside = _padded(completions, device=self._device)
        cache = read.past_key_values
        cache.batch_repeat_interleave(len(completions))
        answered = model(ids, past_key_values=cache, use_cache=True, output_hidden_states=True)
        before = torch.cat(
            [read.last_hidden_state[:, -1:].expand(len(ids), -1, -1), answered.last_hidden_state[:, :-1]], dim=1
        )
        logprobs, entropies = token_logprobs(
            before[inside], self._policy.head, ids[inside], temperature=self._policy.temperature, with_entropy=True
        )
        assert entropies is not None
        of_layer = {layer: _at(read.hidden_states, layer)[0].float() for layer in self._layers}
        states = _at(answered.hidden_states, self._response_layer).float()
        return PromptPass(
            mean={layer: states.mean(0).cpu().numpy() for layer, states in of_layer.items()},
            last={layer: states[-1].cpu().numpy() for layer, states in of_layer.items()},
            responses=_masked_mean(states, inside).cpu().numpy(),
            logprobs=_masked_mean(_unpacked(logprobs, inside), inside).cpu().numpy(),
            entropies=_masked_mean(_unpacked(entropies, inside), inside).cpu().numpy(),
        )


def _at(states: Sequence[Tensor], layer: Layer) -> Tensor:
    return states[round(layer * (len(states) - 1))]


def _padded(completions: Sequence[Completion], *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids [n, T], padded with 0 on the right, and where they aren't padding [n, T]."""
    lengths = torch.tensor([len(c.token_ids) for c in completions])
    ids = torch.zeros((len(completions), int(lengths.max())), dtype=torch.int64)
    for row, completion in zip(ids, completions, strict=True):
        row[: len(completion.token_ids)] = torch.from_numpy(completion.token_ids.astype(np.int64))
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).to(device)


def _unpacked(values: Tensor, inside: Tensor) -> Tensor:
    return torch.zeros(inside.shape, dtype=values.dtype, device=values.device).masked_scatter(inside, values)


def _masked_mean(values: Tensor, inside: Tensor) -> Tensor:
    """Mean over dimension 1 of [n, T] or [n, T, H], where `inside` [n, T]."""
    mask = inside if values.ndim == 2 else inside.unsqueeze(-1)
    return torch.where(mask, values, 0.0).sum(1) / mask.sum(1)
