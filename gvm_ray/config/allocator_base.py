"""What the settings of all allocators share.

Three settings tell the rest of a run what an allocator needs, where it has them: `candidates_per_step`, the prompts it
is shown in a step and selects from; `states`, the hidden states it is shown of them; and `training_gradient_norms`,
whether training measures the norm of every sample's gradient for it.
"""

from dataclasses import dataclass
from typing import Literal

from gvm_ray.config.base import Count, Settings


class PromptStatesConfig(Settings):
    """Hidden states of the candidates: one forward pass over a prompt, charged, and again when it is old."""

    pooling: Literal["mean", "last", "both"] = "mean"  # over the prompt's tokens, of the last layer
    refresh_steps: Count = 1  # a prompt's states serve so many steps


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """What an allocator's settings have to agree with."""

    prompts_per_step: int
    samples_per_prompt: int
    max_staleness: int
    checkpoint_every_steps: int


class AllocatorConfig(Settings):
    """The base of every allocator's settings."""

    @property
    def max_budget_factor(self) -> int:
        """How many times its budget a step may cost at most; whatever it draws is charged."""
        return 1

    def num_candidates(self, prompts_per_step: int) -> int:
        """Prompts that the allocator is shown in a step; one that doesn't select samples all of them."""
        return getattr(self, "candidates_per_step", None) or prompts_per_step

    def check_fits(self, run: RunShape) -> None:
        """Refuse a run whose budget these settings can't spend.

        Raises:
            ValueError: what is wrong, and what to write instead.
        """
