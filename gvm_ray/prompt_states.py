"""Hidden states of prompts for the allocator, kept between steps so that few of them are computed anew."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gvm_ray.config.allocator_base import PromptStatesConfig
from gvm_ray.protocols import Learners
from gvm_ray.types import FloatArray, Prompt


@dataclass(kw_only=True)
class CachedPromptStates:
    """Protocol `PromptStates`: the learners compute a prompt's states, which then serve `refresh_steps` steps."""

    learners: Learners
    config: PromptStatesConfig | None  # none: the run needs no states
    _known: dict[str, tuple[int, FloatArray]] = field(default_factory=dict)  # prompt_id -> step computed at, [F]

    async def of(self, prompts: Sequence[Prompt], *, step: int) -> tuple[FloatArray | None, int]:
        """[P, F] states, and the prompt tokens that were run through the model for them."""
        if self.config is None:
            return None, 0
        missing = [prompt for prompt in prompts if self._is_due(prompt.prompt_id, step=step)]
        if missing:
            computed = await self.learners.prompt_states(missing, pooling=self.config.pooling)
            for prompt, state in zip(missing, computed, strict=True):
                self._known[prompt.prompt_id] = (step, state)
        states = np.stack([self._known[prompt.prompt_id][1] for prompt in prompts])
        return states, sum(len(prompt.token_ids) for prompt in missing)

    def _is_due(self, prompt_id: str, *, step: int) -> bool:
        assert self.config is not None
        known = self._known.get(prompt_id)
        return known is None or step - known[0] >= self.config.refresh_steps
