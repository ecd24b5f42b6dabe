"""Who answers the policy between its turns."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from gvm_ray.settings import Count, Settings


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
