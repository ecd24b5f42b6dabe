"""Features of prompts for the allocator: hidden states, kept for some steps, or means of input embeddings."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gvm_ray.allocators.base import PromptStatesConfig
from gvm_ray.maths.statistics import principal_components
from gvm_ray.protocols import Learners
from gvm_ray.types import FloatArray, IntArray, Prompt

EmbeddingRows = Callable[[IntArray], FloatArray]  # token ids [U] -> their input embeddings [U, E]

_MAX_COLUMNS = 64  # of embeddings' means; a regression on few samples needs few
_FITTED_PROMPTS = 2048  # whose means determine the principal components


@dataclass(kw_only=True)
class CachedPromptStates:
    """Protocol `PromptStateSource`: a computed state is reused for `refresh_steps` steps."""

    learners: Learners
    config: PromptStatesConfig | None  # None: the run needs no states
    _known: dict[str, tuple[int, FloatArray]] = field(default_factory=dict)  # prompt_id -> (step computed at, [F])

    async def of(self, prompts: Sequence[Prompt], *, step: int) -> tuple[FloatArray | None, int]:
        """States [P, F], and the number of tokens that were run through the model for them."""
        if self.config is None:
            return None, 0
        self._forget(step)
        states = {p.prompt_id: self._known[p.prompt_id][1] for p in prompts if p.prompt_id in self._known}
        missing = [prompt for prompt in prompts if prompt.prompt_id not in states]
        num_tokens = 0
        if missing:
            computed, num_tokens = await self.learners.prompt_states(missing, pooling=self.config.pooling)
            states |= zip((prompt.prompt_id for prompt in missing), computed, strict=True)
            self._known |= {prompt.prompt_id: (step, states[prompt.prompt_id]) for prompt in missing}
        return np.stack([states[prompt.prompt_id] for prompt in prompts]), num_tokens

    def state_dict(self, *, step: int) -> dict[str, NDArray[Any]]:
        """`ids` [P], `steps` [P] and `states` [P, F] of the prompts known at a step; empty if there are none."""
        self._forget(step)
        if not self._known:
            return {}
        steps, states = zip(*self._known.values(), strict=True)
        return {"ids": np.array(list(self._known)), "steps": np.array(steps), "states": np.stack(states)}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore the states from `state_dict`. They came from earlier policies, so they can't be recomputed."""
        self._known = {}
        if state:
            columns = zip(state["ids"].tolist(), state["steps"].tolist(), state["states"], strict=True)
            self._known = {prompt_id: (step, states) for prompt_id, step, states in columns}

    def _forget(self, step: int) -> None:
        """Drop states that are too old for a step."""
        if self.config is not None:
            oldest = step - self.config.refresh_steps
            self._known = {id_: (at, states) for id_, (at, states) in self._known.items() if at > oldest}


@dataclass(kw_only=True)
class EmbeddingStates:
    """Protocol `PromptStateSource`: the mean of the starting policy's input embeddings over a prompt's tokens.

    Means of more than 64 columns are projected on the first 64 principal components of the training prompts' means,
    all scaled so that the first has a variance of about 1. Since means are linear it is the embeddings that are
    projected, once; a prompt is then a look-up that takes microseconds, and nothing is kept of it.
    """

    prompts: Sequence[Prompt]  # all that may be asked for: the training set
    read: EmbeddingRows  # called once, with their distinct tokens; never after a resume
    _table: tuple[IntArray, FloatArray] | None = None  # token ids [U], sorted, and their rows [U, F]
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def of(self, prompts: Sequence[Prompt], *, step: int) -> tuple[FloatArray, int]:
        """Means [P, F], and 0: no token is run through the model for them.

        Raises:
            ModelError: the embeddings can't be read.
        """
        async with self._reading:  # steps that overlap wait for the first one's reading
            if self._table is None:
                self._table = await asyncio.to_thread(self._read_table)
        return self.means(prompts), 0

    def means(self, prompts: Sequence[Prompt]) -> FloatArray:
        """Means [P, F] of some of the prompts, after reading the embeddings if they haven't been.

        Raises:
            ModelError: the embeddings can't be read.
        """
        if self._table is None:
            self._table = self._read_table()
        return np.stack([_mean(prompt, *self._table) for prompt in prompts])

    def state_dict(self, *, step: int) -> dict[str, NDArray[Any]]:
        """`token_ids` [U] and their `rows` [U, F]; empty before the first states were asked for."""
        return {} if self._table is None else dict(zip(("token_ids", "rows"), self._table, strict=True))

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore the rows from `state_dict`: reading them again needs a model that may be gone (a warm start's), and
        another machine would round otherwise."""
        if state:
            self._table = state["token_ids"], state["rows"]

    def _read_table(self) -> tuple[IntArray, FloatArray]:
        """Read the embeddings of the tokens that occur, and project them."""
        token_ids = _distinct_tokens(self.prompts)
        rows = self.read(token_ids)
        if rows.shape[1] > _MAX_COLUMNS:
            fitted = self.prompts[:: -(-len(self.prompts) // _FITTED_PROMPTS)]
            means = np.stack([_mean(prompt, token_ids, rows) for prompt in fitted]).astype(np.float64)
            centre, directions, variances = principal_components(means, most=_MAX_COLUMNS)
            scaled = directions / np.sqrt(variances[0] or 1.0)
            rows = (rows @ scaled.astype(np.float32) - centre @ scaled).astype(np.float32)
        return token_ids, rows


def _distinct_tokens(prompts: Sequence[Prompt]) -> IntArray:
    """The token ids [U] that occur in prompts, sorted; by marking them, for a training set can have 1e8 tokens."""
    occurs = np.zeros(1 + max(int(prompt.token_ids.max()) for prompt in prompts), dtype=np.bool_)
    for prompt in prompts:
        occurs[prompt.token_ids] = True
    return np.flatnonzero(occurs).astype(np.int32)


def _mean(prompt: Prompt, token_ids: IntArray, rows: FloatArray) -> FloatArray:
    """The mean [F] over a prompt's tokens of their rows; `token_ids` [U] are those of the rows [U, F], sorted."""
    places = np.searchsorted(token_ids, prompt.token_ids)
    return rows[places].mean(axis=0, dtype=np.float64).astype(np.float32)
