"""Settings of the environment that answers the policy between its turns, and of environments of other libraries."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gvm_ray.settings import Count, Settings


def _names_the_observation(value: str) -> str:
    if "{observation}" not in value:
        raise ValueError(f"observation_template={value!r} has no place for the answer; write e.g. '{{observation}}'")
    return value


ObservationTemplate = Annotated[str, AfterValidator(_names_the_observation)]


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
    observation_template: ObservationTemplate = "\n{observation}\n"
    max_observation_characters: Annotated[Count, Field(le=16384)] = 4096  # the rest of an answer is left out


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
    path: str = Field(pattern=r"^[\w.]+:[\w.]+$")  # e.g. "my_package.environments:answer"


class _HostedConfig(Settings):
    """An environment of another library: it has prompts (source `environment`) and a score (reward `environment`).

    An episode is played again from its start for every turn and for the score, so that it can continue in any process;
    the environment must answer the same turns in the same way.
    """

    id: str = Field(min_length=1)  # of the environment in its library
    arguments: dict[str, Any] = Field(default_factory=dict)  # keyword arguments of its constructor
    max_turns: Count = 1  # of the policy; after the last one the response is scored as it is
    # Around an answer, as for the environment "calculator".
    observation_template: ObservationTemplate = "\n{observation}\n"
    max_observation_characters: Annotated[Count, Field(le=16384)] = 4096  # the rest of an answer is left out


class VerifiersEnvironmentConfig(_HostedConfig):
    """An environment of the `verifiers` library: its data set, its rubric and, with `max_turns` above 1, its turns."""

    type: Literal["verifiers"] = "verifiers"


class GymnasiumEnvironmentConfig(_HostedConfig):
    """A gymnasium environment with `Text` observations and actions, by its id or `module:id`."""

    type: Literal["gymnasium"] = "gymnasium"


HostedEnvironmentSettings = Annotated[
    VerifiersEnvironmentConfig | GymnasiumEnvironmentConfig, Field(discriminator="type")
]
EnvironmentSettings = Annotated[
    SingleTurnConfig
    | CalculatorConfig
    | FunctionEnvironmentConfig
    | VerifiersEnvironmentConfig
    | GymnasiumEnvironmentConfig,
    Field(discriminator="type"),
]


def with_environment(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's values in which sources and rewards of type `environment` that name none have that of [environment]."""
    environment = values.get("environment")
    if _type_of(environment) not in ("verifiers", "gymnasium"):
        return dict(values)
    prompts, rewards = values.get("prompts"), values.get("rewards")
    filled = dict(values)
    if prompts is not None:
        sources = {name: _filled(source, environment) for name in ("train", "eval") if (source := _get(prompts, name))}
        filled["prompts"] = _updated(prompts, sources)
    if rewards is not None and isinstance(terms := _get(rewards, "terms"), list | tuple):
        filled["rewards"] = _updated(rewards, {"terms": [_filled(term, environment) for term in terms]})
    return filled


def _filled(table: Any, environment: Any) -> Any:
    missing = _type_of(table) == "environment" and _get(table, "environment") is None
    return _updated(table, {"environment": environment}) if missing else table


def _type_of(table: Any) -> Any:
    return _get(table, "type")


def _get(table: Any, name: str) -> Any:
    return table.get(name) if isinstance(table, Mapping) else getattr(table, name, None)


def _updated(table: Any, changes: Mapping[str, Any]) -> Any:
    """A table as it is read from a file, or its settings object."""
    values = table if isinstance(table, Mapping) else {name: getattr(table, name) for name in type(table).model_fields}
    return {**values, **changes}
