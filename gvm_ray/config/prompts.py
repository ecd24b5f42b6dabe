"""Where prompts come from and how they are rendered."""

import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from gvm_ray.settings import Count, NonNegativeCount, Positive, Probability, Settings

# Of a split; the two never share a prompt: one to tune on, one to confirm on.
Half = Literal["both", "first", "second"]

SYSTEM_PROMPTS = ("none", "qwen-boxed", "qwen25-math-cot", "hendrydong-longcot")


def _is_name_or_names(value: object) -> object:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError('write the name of a field, or a list of several: ["Body", "Question"]')
    return value


FieldNames = Annotated[str | tuple[str, ...], BeforeValidator(_is_name_or_names)]


class TemplateConfig(Settings):
    """`plain` gives the tokenizer the problem as it is; `chat` applies the tokenizer's chat template."""

    type: Literal["plain", "chat"] = "plain"
    system_prompt: Literal["none", "qwen-boxed", "qwen25-math-cot", "hendrydong-longcot"] = "none"
    name: str | None = None  # of one of the tokenizer's chat templates, where it has several; without it the default
    arguments: dict[str, Any] = Field(default_factory=dict)  # of the chat template, e.g. {enable_thinking = false}
    # The day, e.g. "2026-11-30", that a chat template is shown as today's if it prints that. Without it the day of the
    # start, which the run keeps when it is resumed.
    date: datetime.date | None = None


class FileSourceConfig(Settings):
    """A JSONL, JSON, Parquet or CSV file, one task a row."""

    type: Literal["file"] = "file"
    path: str = Field(min_length=1)
    prompt_field: FieldNames = "problem"  # of several, as ["Body", "Question"], the texts are joined by a blank
    answer_field: str = "answer"  # of any field: "reward_model.ground_truth" is a field in a field
    id_field: str | None = None  # without it the id is a hash of the content
    rationale_field: str | None = None  # reference rationales, for the warm start
    feature_fields: tuple[str, ...] = ()  # kept with the prompt, e.g. level, subject
    limit: Count | None = None


class HuggingFaceSourceConfig(Settings):
    """A dataset of the `datasets` library: a hub id, or a local folder."""

    type: Literal["huggingface"] = "huggingface"
    path: str = Field(min_length=1)
    name: str | None = None
    split: str = "train"
    prompt_field: FieldNames = "problem"
    answer_field: str = "answer"
    id_field: str | None = None
    rationale_field: str | None = None
    feature_fields: tuple[str, ...] = ()
    limit: Count | None = None


class FunctionSourceConfig(Settings):
    """Whatever rows the function at `module:function` returns, one task a row; it is called once, where the run starts.

    Rows are dicts with the fields below. A list, a generator or a dataset of the `datasets` library will do.
    """

    type: Literal["function"] = "function"
    path: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    parameters: dict[str, Any] = Field(default_factory=dict)  # keyword arguments of the function
    prompt_field: FieldNames = "problem"
    answer_field: str = "answer"
    id_field: str | None = None
    rationale_field: str | None = None
    feature_fields: tuple[str, ...] = ()
    limit: Count | None = None


class LevelConfig(Settings):
    """How much of a source is of one difficulty level."""

    weight: Positive = 1.0  # share of the prompts, relative to the other levels
    demonstration_weight: Positive | None = None  # share of the demonstrations; without it that of the prompts

    @property
    def share_of_demonstrations(self) -> float:
        """Relative to the other levels."""
        return self.weight if self.demonstration_weight is None else self.demonstration_weight


class ReasoningGymLevelConfig(LevelConfig):
    """One difficulty level of a task."""

    parameters: dict[str, Any] = Field(default_factory=dict)  # besides the source's
    demonstration_accuracy: Probability = 1.0  # else a demonstration answers another problem of the level


class ReasoningGymSourceConfig(Settings):
    """A task of the reasoning-gym library by name; graded by the task's own scorer (reward `reasoning_gym`).

    The formats are those of `str.format` over an entry's question, answer and metadata, lists joined by spaces, and
    `{name!c}` is the value without whitespace: "{numbers}={target}" and "{expression!c}" for task countdown.
    """

    type: Literal["reasoning_gym"] = "reasoning_gym"
    task: str = Field(min_length=1)
    parameters: dict[str, Any] = Field(default_factory=dict)
    levels: tuple[ReasoningGymLevelConfig, ...] = ()
    prompt_format: str | None = None  # without it the prompt is the question
    rationale_format: str | None = None  # reference responses, for the warm start
    size: Count = 1000
    seed: NonNegativeCount = 0
    split: Literal["all", "train", "test"] = "all"  # by content: "train" and "test" never share a prompt
    half: Half = "both"


class ChainLevelConfig(LevelConfig):
    """One difficulty level: chains of `num_operations` operations, the hardest of which is `operator`."""

    num_operations: Count = 3
    operator: str


class _ChainSourceBase(Settings):
    """What the families of chains of operations share."""

    operators: ClassVar[str]  # from easy to hard

    levels: tuple[ChainLevelConfig, ...]
    size: Count = 2048
    seed: NonNegativeCount = 0
    split: Literal["train", "test"] = "train"  # the two never share a prompt
    half: Half = "both"
    # Demonstrations only: probability that a worked step with this operator is right (1 where it isn't named), which
    # leaves the warm-started model unsure of the hard operators, and reinforcement learning something to do.
    step_accuracy: dict[str, Probability] = Field(default_factory=dict)
    skip_probability: Probability = 0.2  # of not writing down a running result, in demonstrations
    max_operations: Count = 6  # problems are padded to the width of this many

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
    """Procedural chains of arithmetic modulo a small number, worked left to right with running results."""

    operators: ClassVar[str] = "+-*@"

    type: Literal["arithmetic"] = "arithmetic"
    modulus: Annotated[int, Field(ge=2, le=10)] = 7
    levels: tuple[ChainLevelConfig, ...] = (
        ChainLevelConfig(num_operations=2, operator="+", weight=10),
        ChainLevelConfig(num_operations=4, operator="-", weight=5),
        ChainLevelConfig(num_operations=3, operator="*", weight=1),
        ChainLevelConfig(num_operations=3, operator="@", weight=1),
    )


class ListProgramSourceConfig(_ChainSourceBase):
    """Procedural programs on a list of digits (reverse, turn, increment, complement), worked with the lists between."""

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
    | ReasoningGymSourceConfig
    | ArithmeticSourceConfig
    | ListProgramSourceConfig,
    Field(discriminator="type"),
]


class PromptsConfig(Settings):
    """Training and evaluation prompts. Prompts in both leave the training set."""

    train: SourceSettings
    eval: SourceSettings | None = None
    template: TemplateConfig = TemplateConfig()
    max_tokens: Count = 1024  # longer prompts are dropped and counted before allocation
    shuffle: bool = True  # a new order every epoch, from the run's seed
