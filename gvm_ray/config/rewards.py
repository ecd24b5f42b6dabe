"""What a response is worth."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from gvm_ray.settings import Count, NonNegative, Positive, Settings

TruncatedGrading = Literal["boxed_only", "wrong", "as_finished"]


class MathVerifyRewardConfig(Settings):
    """1 if Math-Verify finds the response's final answer equal to the gold answer, else 0."""

    type: Literal["math_verify"] = "math_verify"
    weight: float = 1.0
    require_boxed: bool = False  # true: an answer outside \boxed{} is wrong; for prompts that ask for a box
    # A response cut at sampling.max_tokens: "boxed_only" takes what it boxed before the cut, "wrong" is 0, and
    # "as_finished" takes its last number too, where it was cut by accident.
    truncated: TruncatedGrading = "boxed_only"


class ExactRewardConfig(Settings):
    """1 if the content of the last \\boxed{} equals the gold answer to the letter (spaces aside), else 0."""

    type: Literal["exact"] = "exact"
    weight: float = 1.0


class ReasoningGymRewardConfig(Settings):
    """The score of the reasoning-gym task that made the prompt, in [0, 1]."""

    type: Literal["reasoning_gym"] = "reasoning_gym"
    weight: float = 1.0


class FormatRewardConfig(Settings):
    """1 if the response has a \\boxed{} that isn't blank or, with `pattern`, matches a regular expression, else 0."""

    type: Literal["format"] = "format"
    weight: float = 1.0
    pattern: str | None = None

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        import re

        if value is None:
            return None
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"pattern {value!r} is not a regular expression: {error}") from error
        return value


class FunctionRewardConfig(Settings):
    """Any importable `module:function` taking (prompt, completion) and returning a finite float."""

    type: Literal["function"] = "function"
    weight: float = 1.0
    path: str = Field(pattern=r"^[\w.]+:[\w.]+$")


RewardTerm = Annotated[
    MathVerifyRewardConfig | ExactRewardConfig | ReasoningGymRewardConfig | FormatRewardConfig | FunctionRewardConfig,
    Field(discriminator="type"),
]


class RewardsConfig(Settings):
    """A weighted sum of terms, computed in reward actors under a hard bound on time and memory."""

    terms: tuple[RewardTerm, ...] = (MathVerifyRewardConfig(),)
    accept_threshold: float = 0.5  # a response is accepted (correct) when its reward is at least this
    num_actors: Count = 1
    cpus_per_actor: NonNegative = 0.5
    timeout_s: Positive = 5.0  # wall clock for one response; past it the process is killed, the sample is unscored
    memory_mb: Annotated[int, Field(ge=256)] = 4096  # address space of the process that runs the reward
    allow_network: bool = False  # true: that process can open connections; false: not, where the system can forbid it
    # Names of environment variables which it is given although they look like secrets, e.g. "OPENAI_API_KEY".
    pass_env: tuple[str, ...] = ()

    @field_validator("terms")
    @classmethod
    def _has_terms(cls, value: tuple[RewardTerm, ...]) -> tuple[RewardTerm, ...]:
        if not value:
            raise ValueError("terms is empty; write at least one, e.g. terms = [{type = 'math_verify'}]")
        return value

    @field_validator("pass_env")
    @classmethod
    def _names_variables(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(name.isidentifier() for name in value):
            # The message starts with the setting's name, so that the value, which may be the secret, isn't shown.
            raise ValueError(
                'rewards.pass_env takes names of environment variables, e.g. pass_env = ["OPENAI_API_KEY"]'
            )
        return value
