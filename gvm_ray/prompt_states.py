"""Hidden states of prompts for the allocator, cached between steps so that few must be recomputed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gvm_ray.allocators.base import PromptStatesConfig
from gvm_ray.protocols import Learners
from gvm_ray.types import FloatArray, Prompt


@dataclass(kw_only=True)
class CachedPromptStates:
    """Protocol `PromptStateSource`: a computed state is reused for `refresh_steps` steps."""

    learners: Learners
    config: PromptStatesConfig | None  # None: the run needs no states
    _known: dict[str, tuple[int, FloatArray]] = field(default_factory=dict)  # prompt_id -> (step computed at, [F])

    async def of(self, prompts: Sequence[Prompt], *, step: int) -> tuple[FloatArray | None, int]:
        """States [P, F], and the number of prompt tokens that were run through the model for them."""
        if self.config is None:
            return None, 0
        self._forget(step)
        states = {p.prompt_id: self._known[p.prompt_id][1] for p in prompts if p.prompt_id in self._known}
        missing = [prompt for prompt in prompts if prompt.prompt_id not in states]
        if missing:
            computed = await self.learners.prompt_states(missing, pooling=self.config.pooling)
            states |= zip((prompt.prompt_id for prompt in missing), computed, strict=True)
            self._known |= {prompt.prompt_id: (step, states[prompt.prompt_id]) for prompt in missing}
        return np.stack([states[prompt.prompt_id] for prompt in prompts]), sum(len(p.token_ids) for p in missing)

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
