"""Prompts as rows of numbers: hidden states, token counts and what the source says of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gvm_ray.types import Float64Array, FloatArray, Prompt

_MAX_CATEGORIES = 64


class PromptFeatures:
    """Rows [P, D] of prompts: D is fixed, whatever categories turn up later.

    Hidden states wider than `max_state_features` are projected on random directions, which keeps distances up to a few
    percent (Johnson and Lindenstrauss 1984). Token counts are of ids modulo `token_features`; ids that share a column
    are counted together. Each source feature is one-hot over the first 63 values met, and one more column for all later
    ones.
    """

    def __init__(
        self, *, source_features: Sequence[str], max_state_features: int, seed: int, token_features: int = 0
    ) -> None:
        self._token_features = token_features
        self._source_features = tuple(source_features)
        self._max_state_features = max_state_features
        self._seed = seed
        self._categories: dict[str, dict[str, int]] = {name: {} for name in self._source_features}

    def rows(self, prompts: Sequence[Prompt], states: FloatArray | None) -> Float64Array:
        """[P, D] float64: states (projected), then token counts, then categories."""
        parts = [np.zeros((len(prompts), 0))] if states is None else [self._project(states)]
        if self._token_features:
            parts.append(np.stack([self._token_counts(prompt) for prompt in prompts]))
        for name in self._source_features:
            one_hot = np.zeros((len(prompts), _MAX_CATEGORIES))
            index = np.array([self._category(name, prompt.features.get(name)) for prompt in prompts], dtype=np.int64)
            one_hot[np.arange(len(prompts)), index] = 1.0
            parts.append(one_hot)
        return np.concatenate(parts, axis=1)

    def state_dict(self) -> dict[str, Any]:
        """The categories met, as plain JSON values."""
        return {"categories": {name: list(values) for name, values in self._categories.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the same columns."""
        known = state["categories"]
        self._categories = {
            name: {value: index for index, value in enumerate(known.get(name, ()))} for name in self._source_features
        }

    def _category(self, name: str, value: Any) -> int:
        """The column of a value."""
        known, last = self._categories[name], _MAX_CATEGORIES - 1
        if len(known) < last:
            known.setdefault(repr(value), len(known))
        return known.get(repr(value), last)

    def _token_counts(self, prompt: Prompt) -> Float64Array:
        columns = np.asarray(prompt.token_ids, dtype=np.int64) % self._token_features
        return np.bincount(columns, minlength=self._token_features).astype(np.float64)

    def _project(self, states: FloatArray) -> Float64Array:
        width, num_kept = states.shape[1], self._max_state_features
        if width <= num_kept:
            return states.astype(np.float64)
        directions = np.random.default_rng(self._seed).normal(size=(width, num_kept))
        return states @ directions / np.sqrt(num_kept)
