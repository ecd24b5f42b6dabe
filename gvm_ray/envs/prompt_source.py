"""Where tasks come from: one function over the closed union of sources."""

from collections.abc import Iterator

from gvm_ray.config.prompts import (
    ArithmeticSourceConfig,
    ChainSourceConfig,
    FileSourceConfig,
    FunctionSourceConfig,
    GeneratedSourceConfig,
    HuggingFaceSourceConfig,
    ListProgramSourceConfig,
    ReasoningGymSourceConfig,
    SourceSettings,
)
from gvm_ray.envs.arithmetic import arithmetic_family
from gvm_ray.envs.chains import ChainFamily
from gvm_ray.envs.file_source import file_tasks
from gvm_ray.envs.function_source import function_tasks
from gvm_ray.envs.huggingface_source import huggingface_tasks
from gvm_ray.envs.list_programs import list_program_family
from gvm_ray.envs.reasoning_gym_source import reasoning_gym_demonstrations, reasoning_gym_tasks
from gvm_ray.envs.task import Task


def load_tasks(config: SourceSettings) -> list[Task]:
    """The tasks of a source in its order, never none; duplicates are still among them.

    Raises:
        DataError: the source is missing, empty or has a bad row; the message says where and what to write.
    """
    match config:
        case FileSourceConfig():
            return file_tasks(config)
        case HuggingFaceSourceConfig():
            return huggingface_tasks(config)
        case FunctionSourceConfig():
            return function_tasks(config)
        case ReasoningGymSourceConfig():
            return reasoning_gym_tasks(config)
        case ArithmeticSourceConfig() | ListProgramSourceConfig():
            return chain_family(config).tasks(config)


def generated_demonstrations(
    config: GeneratedSourceConfig, *, num: int, seed: int, excluded: frozenset[str]
) -> Iterator[tuple[str, str]]:
    """`num` pairs (problem, response) from a source that makes its own problems.

    Args:
        config: The source; its size, seed and half play no part.
        num: Demonstrations to draw.
        seed: Of the draws.
        excluded: Problems never to show, e.g. those of the evaluation.

    Raises:
        DataError: a level has no problem left, or the source is told no form of a response.
    """
    match config:
        case ReasoningGymSourceConfig():
            return reasoning_gym_demonstrations(config, num=num, seed=seed, excluded=excluded)
        case _:
            return chain_family(config).demonstrations(config, num=num, seed=seed, excluded=excluded)


def chain_family(config: ChainSourceConfig) -> ChainFamily:
    """The family of chains of operations that a source draws from."""
    match config:
        case ArithmeticSourceConfig():
            return arithmetic_family(config)
        case ListProgramSourceConfig():
            return list_program_family(config)
