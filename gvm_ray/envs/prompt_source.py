"""Where tasks come from: one function over the closed union of sources."""

from gvm_ray.config.prompts import (
    ArithmeticSourceConfig,
    ChainSourceConfig,
    FileSourceConfig,
    HuggingFaceSourceConfig,
    ListProgramSourceConfig,
    ReasoningGymSourceConfig,
    SourceSettings,
)
from gvm_ray.envs.arithmetic import arithmetic_family
from gvm_ray.envs.chains import ChainFamily
from gvm_ray.envs.file_source import file_tasks
from gvm_ray.envs.huggingface_source import huggingface_tasks
from gvm_ray.envs.list_programs import list_program_family
from gvm_ray.envs.reasoning_gym_source import reasoning_gym_tasks
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
        case ReasoningGymSourceConfig():
            return reasoning_gym_tasks(config)
        case ArithmeticSourceConfig() | ListProgramSourceConfig():
            return chain_family(config).tasks(config)


def chain_family(config: ChainSourceConfig) -> ChainFamily:
    """The family of chains of operations that a source draws from."""
    match config:
        case ArithmeticSourceConfig():
            return arithmetic_family(config)
        case ListProgramSourceConfig():
            return list_program_family(config)
