"""Settings of rewards, and of the environment that answers the policy between its turns."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from gvm_ray.settings import Count, NonNegative, Positive, Settings

TruncatedGrading = Literal["boxed_only", "wrong", "as_finished"]


class MathVerifyRewardConfig(Settings):
    """1 if Math-Verify finds the response's final answer equal to the gold answer, else 0."""

    type: Literal["math_verify"] = "math_verify"
    weight: float = 1.0
    require_boxed: bool = False  # true: an answer outside \boxed{} is wrong; for prompts that ask for a box
    # The grade of a response cut at sampling.max_tokens: "boxed_only" takes an answer that it boxed before the cut,
    # "wrong" gives 0, and "as_finished" also takes the last number, although the cut was arbitrary.
    truncated: TruncatedGrading = "boxed_only"


class ExactRewardConfig(Settings):
    """1 if the content of the last \\boxed{} equals the gold answer letter by letter (ignoring spaces), else 0."""

    type: Literal["exact"] = "exact"
    weight: float = 1.0


class ReasoningGymRewardConfig(Settings):
    """The score of the reasoning-gym task that made the prompt, in [0, 1]."""

    type: Literal["reasoning_gym"] = "reasoning_gym"
    weight: float = 1.0


class FormatRewardConfig(Settings):
    """1 if the response has a non-blank \\boxed{} or, with `pattern`, matches that regular expression, else 0."""

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
    accept_threshold: float = 0.5  # a response is accepted (correct) if its reward is at least this
    num_actors: Count = 1
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


class SingleTurnConfig(Settings):
    """One response to each prompt, which is then scored."""

    type: Literal["single_turn"] = "single_turn"


class _MultiTurnConfig(Settings):
    """Turns of the policy, each ended by its end-of-sequence token, with the environment's answers between them.

    `sampling.max_tokens` bounds all of them together.
    """

    max_turns: Annotated[int, Field(ge=2)] = 4  # of the policy; after the last one the response is scored as it is
    # What stands around an answer, e.g. "\n<|im_start|>user\n{observation}<|im_end|>\n<|im_start|>assistant\n" for a
    # Qwen chat model, whose end-of-sequence token is <|im_end|>.
    observation_template: str = "\n{observation}\n"
    max_observation_characters: Annotated[Count, Field(le=16384)] = 4096  # the rest of an answer is left out

    @field_validator("observation_template")
    @classmethod
    def _names_the_observation(cls, value: str) -> str:
        if "{observation}" not in value:
            raise ValueError(
                f"observation_template={value!r} has no place for the answer; write e.g. '{{observation}}'"
            )
        return value


class CalculatorConfig(_MultiTurnConfig):
    """Answers with the value of the last `<calculator>expression</calculator>` of a turn; a turn without one is the
    last."""

    type: Literal["calculator"] = "calculator"


class FunctionEnvironmentConfig(_MultiTurnConfig):
    """Any importable `module:function` or class taking (prompt, turns), the policy's turns so far as texts.

    It returns the answer to the last one, or None where the response is over. It must not remember anything: the next
    turn may reach another process.
    """

    type: Literal["function"] = "function"
    path: str = Field(pattern=r"^[\w.]+:[\w.]+$")


EnvironmentSettings = Annotated[
    SingleTurnConfig | CalculatorConfig | FunctionEnvironmentConfig, Field(discriminator="type")
]
