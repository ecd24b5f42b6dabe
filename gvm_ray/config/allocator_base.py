"""What the settings of all allocators share.

Three settings tell the rest of a run what an allocator needs, where it has them: `candidates_per_step`, the prompts it
is shown in a step and selects from; `states`, the hidden states it is shown of them; and `training_gradient_norms`,
whether training measures the norm of every sample's gradient for it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from gvm_ray.config.base import Count, NonNegativeCount, Positive, Settings


class PromptStatesConfig(Settings):
    """Hidden states of the candidates: one forward pass over a prompt, charged, and again when it is old.

    An allocator that predicts without them, with `states = "none"`, pays nothing for its candidates.
    """

    pooling: Literal["mean", "last", "both"] = "mean"  # over the prompt's tokens, of the last layer
    refresh_steps: Count = 20  # a prompt's states serve so many steps


# TOML has no null: "none" is written there.
OptionalPromptStates = Annotated[
    PromptStatesConfig | None, BeforeValidator(lambda value: None if value == "none" else value)
]


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """What an allocator's settings have to agree with."""

    prompts_per_step: int
    samples_per_prompt: int
    max_staleness: int
    checkpoint_every_steps: int
    max_prompt_tokens: int = 1024
    max_response_tokens: int = 3072
    prefill_price: float = 1.0  # generated tokens charged for a prefilled one


@dataclass(frozen=True, kw_only=True)
class SmallestGroup:
    """The fewest samples that a prompt which is trained on may get, and the setting that says so."""

    setting: str  # with its table, as "allocator.min_samples"
    value: int  # of the setting; one that is 0 allows groups of one


class AllocatorConfig(Settings, ABC):
    """The base of every allocator's settings."""

    baseline_setting: ClassVar[str | None] = (
        None  # name of one that, set, gives every prompt a baseline before sampling
    )

    @property
    def knows_accept_rates(self) -> bool:
        """Whether every sampled prompt has an accept rate that the samples averaged over had no part in."""
        return False

    @abstractmethod
    def smallest_group(self, run: RunShape) -> SmallestGroup | None:
        """What keeps groups from being small; None where the settings can't tell."""

    @property
    def max_budget_factor(self) -> int:
        """How many times its budget a step may cost at most; whatever it draws is charged."""
        return 1

    def num_candidates(self, prompts_per_step: int) -> int:
        """Prompts that the allocator is shown in a step; one that doesn't select samples all of them."""
        return getattr(self, "candidates_per_step", None) or prompts_per_step

    def num_candidates_of(self, run: RunShape) -> int:
        """The same, of an allocator whose choice depends on more of the run."""
        return self.num_candidates(run.prompts_per_step)

    def check_fits(self, run: RunShape) -> None:
        """Refuse a run whose budget these settings can't spend.

        Raises:
            ValueError: what is wrong, and what to write instead.
        """


class PredictorConfig(Settings):
    """What an allocator expects of a prompt before it is sampled: learned on the way from the run's own samples."""

    forgetting: Annotated[float, Field(gt=0, le=1)] = 0.9  # factor on the weight of samples for each step they are old
    # Standard deviation, a priori, of what the features explain of a prompt's logit: the ridge penalty on the
    # coefficients of D standardised features is D / prior_deviation^2. Larger fits faster, and overfits more.
    prior_deviation: Positive = 2.0
    history_trials: Positive = 8.0  # the features' prediction counts as so many samples of the prompt itself
    token_features: NonNegativeCount = 0  # columns of the prompt's token counts, id modulo their number; not charged
    source_features: tuple[str, ...] = ()  # names in Prompt.features whose values are categories, e.g. level
    max_state_features: Count = 256  # wider hidden states are projected down at random
    window_rows: Count = 2048  # latest groups learned from
