"""Prompts as rows of numbers: hidden states and what the source says of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gvm_ray.types import Float64Array, FloatArray, Prompt

_MAX_CATEGORIES = 64


class PromptFeatures:
    """Rows [P, D] of prompts: D is fixed, whatever categories turn up later.

    Hidden states wider than `max_state_features` are projected on random directions, which keeps distances up to a few
    percent (Johnson and Lindenstrauss 1984). Each source feature is one-hot over the first 64 values met.
    """

    def __init__(self, *, source_features: Sequence[str], max_state_features: int, seed: int) -> None:
        self._source_features = tuple(source_features)
        self._max_state_features = max_state_features
        self._seed = seed
        self._categories: dict[str, dict[str, int]] = {name: {} for name in self._source_features}
        self._projection: Float64Array | None = None

    def rows(self, prompts: Sequence[Prompt], states: FloatArray | None) -> Float64Array:
        """[P, D] float64: states (projected), then categories."""
        parts = [np.zeros((len(prompts), 0))] if states is None else [self._project(states)]
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
        self._categories = {
            name: {value: index for index, value in enumerate(values)} for name, values in state["categories"].items()
        }

    def _category(self, name: str, value: Any) -> int:
        """The column of a value; the last one is shared by those that came too late."""
        known = self._categories[name]
        return min(known.setdefault(repr(value), len(known)), _MAX_CATEGORIES - 1)

    def _project(self, states: FloatArray) -> Float64Array:
        width = states.shape[1]
        if width <= self._max_state_features:
            return states.astype(np.float64)
        if self._projection is None:
            rng = np.random.default_rng(self._seed)
            self._projection = rng.normal(size=(width, self._max_state_features)) / np.sqrt(width)
        return states @ self._projection
