"""Hidden states of prompts for the allocator, kept between steps so that few of them are computed anew."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gvm_ray.config.allocator_base import PromptStatesConfig
from gvm_ray.protocols import Learners
from gvm_ray.types import FloatArray, Prompt


@dataclass(kw_only=True)
class CachedPromptStates:
    """Protocol `PromptStates`: the learners compute a prompt's states, which then serve `refresh_steps` steps.

    They are no part of a checkpoint: a resumed run computes them anew.
    """

    learners: Learners
    config: PromptStatesConfig | None  # none: the run needs no states
    _known: dict[str, tuple[int, FloatArray]] = field(default_factory=dict)  # prompt_id -> step computed at, [F]

    async def of(self, prompts: Sequence[Prompt], *, step: int) -> tuple[FloatArray | None, int]:
        """[P, F] states, and the prompt tokens that were run through the model for them."""
        if self.config is None:
            return None, 0
        for prompt_id in [id_ for id_, (at, _) in self._known.items() if step - at >= self.config.refresh_steps]:
            del self._known[prompt_id]
        states = {p.prompt_id: self._known[p.prompt_id][1] for p in prompts if p.prompt_id in self._known}
        missing = [prompt for prompt in prompts if prompt.prompt_id not in states]
        if missing:
            computed = await self.learners.prompt_states(missing, pooling=self.config.pooling)
            states |= zip((prompt.prompt_id for prompt in missing), computed, strict=True)
            self._known |= {prompt.prompt_id: (step, states[prompt.prompt_id]) for prompt in missing}
        return np.stack([states[prompt.prompt_id] for prompt in prompts]), sum(len(p.token_ids) for p in missing)
