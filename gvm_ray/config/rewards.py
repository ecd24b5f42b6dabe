"""Settings of rewards."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from gvm_ray.config.environments import HostedEnvironmentSettings
from gvm_ray.settings import Count, NonNegative, Positive, Settings

TruncatedGrading = Literal["boxed_only", "wrong", "as_finished"]


class MathVerifyRewardConfig(Settings):
    """1 if Math-Verify finds the response's final answer equal to the gold answer, else 0."""

    type: Literal["math_verify"] = "math_verify"
    weight: float = 1.0  # factor of the term in the sum
    require_boxed: bool = False  # true: an answer outside \boxed{} is wrong; for prompts that ask for a box
    # The grade of a response cut at sampling.max_tokens: "boxed_only" takes an answer that it boxed before the cut,
    # "wrong" gives 0, and "as_finished" also takes the last number, although the cut was arbitrary.
    truncated: TruncatedGrading = "boxed_only"


class ExactRewardConfig(Settings):
    """1 if the content of the last \\boxed{} equals the gold answer letter by letter (ignoring spaces), else 0."""

    type: Literal["exact"] = "exact"
    weight: float = 1.0  # factor of the term in the sum


class ReasoningGymRewardConfig(Settings):
    """The score of the reasoning-gym task that made the prompt, in [0, 1]."""

    type: Literal["reasoning_gym"] = "reasoning_gym"
    weight: float = 1.0  # factor of the term in the sum


class FormatRewardConfig(Settings):
    """1 if the response has a non-blank \\boxed{} or, with `pattern`, matches that regular expression, else 0."""

    type: Literal["format"] = "format"
    weight: float = 1.0  # factor of the term in the sum
    pattern: str | None = None  # a regular expression to find in the response, in place of a box

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
    weight: float = 1.0  # factor of the term in the sum
    path: str = Field(pattern=r"^[\w.]+:[\w.]+$")  # e.g. "my_package.scoring:score"


class EnvironmentRewardConfig(Settings):
    """The score that the environment gives: a verifiers rubric's, or the sum of a gymnasium episode's rewards."""

    type: Literal["environment"] = "environment"
    weight: float = 1.0  # factor of the term in the sum
    environment: HostedEnvironmentSettings | None = None  # none = that of [environment]


RewardTerm = Annotated[
    MathVerifyRewardConfig
    | ExactRewardConfig
    | ReasoningGymRewardConfig
    | FormatRewardConfig
    | FunctionRewardConfig
    | EnvironmentRewardConfig,
    Field(discriminator="type"),
]


class RewardsConfig(Settings):
    """A weighted sum of terms, computed in reward actors under a hard bound on time and memory."""

    terms: tuple[RewardTerm, ...] = (MathVerifyRewardConfig(),)
    accept_threshold: float = 0.5  # a response is accepted (correct) if its reward is at least this
    num_actors: Count = 1  # actors that score in parallel
    # Ray's logical CPUs.
    cpus_per_actor: NonNegative = 0.5
    timeout_s: Positive = 5.0  # wall clock for one response; after it the process is killed and the sample is unscored
    memory_mb: Annotated[int, Field(ge=256)] = 4096  # address space of the process that runs the reward
    allow_network: bool = False  # false: that process can't open connections, if the system can forbid it
    # Environment variables that the process gets although their names look like secrets, e.g. "OPENAI_API_KEY".
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
            # A message that starts with the setting's name is shown without the value, which may be a secret.
            raise ValueError(
                'rewards.pass_env takes names of environment variables, e.g. pass_env = ["OPENAI_API_KEY"]'
            )
        return value
