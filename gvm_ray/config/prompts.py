"""Settings of prompt sources and prompt templates."""

import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from gvm_ray.config.environments import HostedEnvironmentSettings
from gvm_ray.settings import Count, NonNegativeCount, Positive, Probability, Settings

# Half of a split. The halves never share a prompt: tune on one, confirm on the other.
Half = Literal["both", "first", "second"]

SYSTEM_PROMPTS = ("none", "qwen-boxed", "qwen25-math-cot", "hendrydong-longcot")


def _is_name_or_names(value: object) -> object:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError('write the name of a field, or a list of names: ["Body", "Question"]')
    return value


FieldNames = Annotated[str | tuple[str, ...], BeforeValidator(_is_name_or_names)]


class TemplateConfig(Settings):
    """The prompt's format: `plain` tokenizes the problem as it is; `chat` applies the tokenizer's chat template."""

    # "chat" for instruct models, with their own chat template; "plain" for base models and tiny ones.
    type: Literal["plain", "chat"] = "plain"
    # Wording of a chat around the problem, by name: all but "none" ask for an answer in \boxed{}.
    system_prompt: Literal["none", "qwen-boxed", "qwen25-math-cot", "hendrydong-longcot"] = "none"
    name: str | None = None  # of a chat template, if the tokenizer has several; none = its default template
    arguments: dict[str, Any] = Field(default_factory=dict)  # of the chat template, e.g. {enable_thinking = false}
    # The date that a chat template takes for today's if it prints one, e.g. "2026-11-30". None = the day on which the
    # run starts; a resumed run keeps it.
    date: datetime.date | None = None


class FileSourceConfig(Settings):
    """A JSONL, JSON, Parquet or CSV file, one task per row."""

    type: Literal["file"] = "file"
    path: str = Field(min_length=1)  # relative to the folder that the run is started in; ~ is the home folder
    prompt_field: FieldNames = "problem"  # the texts of several, e.g. ["Body", "Question"], are joined by a space
    answer_field: str = "answer"  # as in all field names, a dot leads into a field: "reward_model.ground_truth"
    id_field: str | None = None  # none = the id is a hash of the content
    rationale_field: str | None = None  # reference rationales, for the warm start
    feature_fields: tuple[str, ...] = ()  # kept with the prompt, e.g. level, subject
    limit: Count | None = None  # only the first rows


class HuggingFaceSourceConfig(Settings):
    """A dataset for the `datasets` library: a hub id or a local folder."""

    type: Literal["huggingface"] = "huggingface"
    path: str = Field(min_length=1)  # of a folder with data files or of `save_to_disk`, or OWNER/NAME on the hub
    name: str | None = None  # configuration of the dataset, e.g. "main" for openai/gsm8k
    split: str = "train"
    prompt_field: FieldNames = "problem"  # as for a file
    answer_field: str = "answer"  # as for a file
    id_field: str | None = None  # none = the id is a hash of the content
    rationale_field: str | None = None  # reference rationales, for the warm start
    feature_fields: tuple[str, ...] = ()  # kept with the prompt, e.g. level, subject
    limit: Count | None = None  # only the first rows


class FunctionSourceConfig(Settings):
    """Rows returned by the function at `module:function`, one task per row. It is called once, where the run starts.

    Rows are dicts with the fields below, in a list, a generator or a dataset of the `datasets` library.
    """

    type: Literal["function"] = "function"
    path: str = Field(pattern=r"^[\w.]+:[\w.]+$")  # e.g. "my_package.problems:rows"
    parameters: dict[str, Any] = Field(default_factory=dict)  # keyword arguments of the function
    prompt_field: FieldNames = "problem"  # as for a file
    answer_field: str = "answer"  # as for a file
    id_field: str | None = None  # none = the id is a hash of the content
    rationale_field: str | None = None  # reference rationales, for the warm start
    feature_fields: tuple[str, ...] = ()  # kept with the prompt, e.g. level, subject
    limit: Count | None = None  # only the first rows


class EnvironmentSourceConfig(Settings):
    """The prompts of an environment of another library: a verifiers data set, or a gymnasium episode for each seed."""

    type: Literal["environment"] = "environment"
    environment: HostedEnvironmentSettings | None = None  # none = that of [environment]
    split: Literal["train", "eval"] = "train"  # of a verifiers data set
    size: Count | None = None  # the first prompts; none = all of a data set, 1,000 episodes
    seed: NonNegativeCount = 0  # of the first gymnasium episode; the next ones have the seeds after it


class LevelConfig(Settings):
    """The share of one difficulty level in a source."""

    weight: Positive = 1.0  # share of the prompts, relative to the other levels
    demonstration_weight: Positive | None = None  # share of the demonstrations; none = as of the prompts

    @property
    def share_of_demonstrations(self) -> float:
        """The level's share of the demonstrations, relative to the other levels."""
        return self.weight if self.demonstration_weight is None else self.demonstration_weight


class ReasoningGymLevelConfig(LevelConfig):
    """One difficulty level of a task."""

    parameters: dict[str, Any] = Field(default_factory=dict)  # added to the source's parameters
    demonstration_accuracy: Probability = 1.0  # otherwise a demonstration answers another problem of the level


class ReasoningGymSourceConfig(Settings):
    """A task of the reasoning-gym library by name, graded by the task's own scorer (reward `reasoning_gym`).

    The formats are `str.format` strings over an entry's question, answer and metadata. Lists are joined by spaces, and
    `{name!c}` is the value without whitespace: "{numbers}={target}" and "{expression!c}" for task countdown.
    """

    type: Literal["reasoning_gym"] = "reasoning_gym"
    task: str = Field(min_length=1)  # as in the library, e.g. "countdown"
    # Of the task, e.g. {min_numbers = 3}; a level adds its own.
    parameters: dict[str, Any] = Field(default_factory=dict)
    levels: tuple[ReasoningGymLevelConfig, ...] = ()
    prompt_format: str | None = None  # none = the prompt is the question
    rationale_format: str | None = None  # reference responses, for the warm start
    size: Count = 1000  # distinct problems, over all levels
    seed: NonNegativeCount = 0  # of the problems
    split: Literal["all", "train", "test"] = "all"  # by content: "train" and "test" never share a prompt
    # A part of the split by content, to tune on one half and confirm on the other; they never share a prompt.
    half: Half = "both"


class ChainLevelConfig(LevelConfig):
    """One difficulty level: chains of `num_operations` operations, with `operator` as the hardest."""

    num_operations: Count = 3  # length of the chain
    operator: str  # the hardest that occurs, e.g. "*"; the source's operators are ordered from easy to hard


class _ChainSourceBase(Settings):
    """Settings shared by the families of operation chains."""

    operators: ClassVar[str]  # from easy to hard

    levels: tuple[ChainLevelConfig, ...]
    size: Count = 2048  # distinct problems, over all levels by weight
    seed: NonNegativeCount = 0  # of the problems
    split: Literal["train", "test"] = "train"  # the two never share a prompt
    # A part of the split by content, to tune on one half and confirm on the other; they never share a prompt.
    half: Half = "both"
    # In demonstrations only: operator -> probability that a worked step with it is right; 1 for the others. Mistakes
    # leave the warm-started model unsure of the hard operators, so that reinforcement learning has something to learn.
    step_accuracy: dict[str, Probability] = Field(default_factory=dict)
    skip_probability: Probability = 0.2  # of leaving out a running result, in demonstrations
    max_operations: Count = 6  # problems are padded to the width of this number of operations

    @model_validator(mode="after")
    def _levels_and_operators_fit(self) -> Self:
        if not self.levels:
            raise ValueError(
                "levels is empty; write at least one, e.g. "
                f"levels = [{{num_operations = 2, operator = '{self.operators[0]}'}}]"
            )
        for name in (*(level.operator for level in self.levels), *self.step_accuracy):
            if len(name) != 1 or name not in self.operators:
                raise ValueError(f"operator {name!r} is unknown; write one of {', '.join(map(repr, self.operators))}")
        longest = max(level.num_operations for level in self.levels)
        if longest > self.max_operations:
            raise ValueError(
                f"max_operations={self.max_operations} is less than the {longest} operations of a level; "
                f"write max_operations={longest}"
            )
        return self


class ArithmeticSourceConfig(_ChainSourceBase):
    """Procedural chains of arithmetic modulo a small number, worked from left to right with running results."""

    operators: ClassVar[str] = "+-*@"

    type: Literal["arithmetic"] = "arithmetic"
    # Results are remainders of a division by this, so each is one digit.
    modulus: Annotated[int, Field(ge=2, le=10)] = 7
    levels: tuple[ChainLevelConfig, ...] = (
        ChainLevelConfig(num_operations=2, operator="+", weight=10),
        ChainLevelConfig(num_operations=4, operator="-", weight=5),
        ChainLevelConfig(num_operations=3, operator="*", weight=1),
        ChainLevelConfig(num_operations=3, operator="@", weight=1),
    )


class ListProgramSourceConfig(_ChainSourceBase):
    """Procedural programs on a list of digits (reverse, turn, increment, complement), with intermediate lists."""

    operators: ClassVar[str] = "rtic"

    type: Literal["list_programs"] = "list_programs"
    length: Annotated[int, Field(ge=2, le=10)] = 4  # digits of the list
    levels: tuple[ChainLevelConfig, ...] = (
        ChainLevelConfig(num_operations=1, operator="t", weight=10),
        ChainLevelConfig(num_operations=2, operator="i", weight=5),
        ChainLevelConfig(num_operations=3, operator="c", weight=1),
    )


ChainSourceConfig = ArithmeticSourceConfig | ListProgramSourceConfig
GeneratedSourceConfig = ReasoningGymSourceConfig | ChainSourceConfig

SourceSettings = Annotated[
    FileSourceConfig
    | HuggingFaceSourceConfig
    | FunctionSourceConfig
    | EnvironmentSourceConfig
    | ReasoningGymSourceConfig
    | ArithmeticSourceConfig
    | ListProgramSourceConfig,
    Field(discriminator="type"),
]


class PromptsConfig(Settings):
    """Training and evaluation prompts. Prompts that occur in both are removed from the training set."""

    train: SourceSettings
    eval: SourceSettings | None = None
    template: TemplateConfig = TemplateConfig()
    max_tokens: Count = 1024  # longer prompts are dropped and counted before allocation
    shuffle: bool = True  # a new order every epoch, from the run's seed
