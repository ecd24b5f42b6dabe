"""The prompts of a run: load tasks, render, filter and count them."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gvm_ray.config.prompts import (
    ArithmeticSourceConfig,
    ChainSourceConfig,
    EnvironmentSourceConfig,
    FileSourceConfig,
    FunctionSourceConfig,
    HuggingFaceSourceConfig,
    ListProgramSourceConfig,
    PromptsConfig,
    ReasoningGymSourceConfig,
    SourceSettings,
)
from gvm_ray.exceptions import DataError
from gvm_ray.tasks.rows import Task, normalised
from gvm_ray.tasks.sources.chains import ChainFamily, arithmetic_family, list_program_family
from gvm_ray.tasks.sources.environment import environment_tasks
from gvm_ray.tasks.sources.file import check_file, file_tasks
from gvm_ray.tasks.sources.function import function_tasks
from gvm_ray.tasks.sources.huggingface import check_folder, huggingface_tasks
from gvm_ray.tasks.sources.reasoning_gym import generous_tasks, reasoning_gym_tasks
from gvm_ray.tasks.templates import check_template, longest_problem, render_all
from gvm_ray.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_IDS = 5  # ids named in a report line; the others are only counted


def shown_ids(ids: Sequence[str]) -> str:
    """The first few ids, and the number of the others; for a report line."""
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return ", ".join(ids[:SHOWN_IDS]) + more


@dataclass(frozen=True, kw_only=True)
class SourceReport:
    """Counts and ids of one source's tasks; loaded = kept + duplicates + overlapping + too long."""

    loaded: int
    kept: int
    duplicate_ids: tuple[str, ...] = ()  # dropped: the id or the problem occurred before
    overlapping_ids: tuple[str, ...] = ()  # training only; dropped: the evaluation has the problem too
    too_long_ids: tuple[str, ...] = ()  # dropped: more prompt tokens than prompts.max_tokens
    unparsable_answer_ids: tuple[str, ...] = ()  # kept, but a response is right only if it spells the answer alike
    generous_tasks: tuple[str, ...] = ()  # reasoning-gym tasks whose scorer rewards any text

    def lines(self, name: str) -> list[str]:
        """Lines to print: one with counts, and one for each problem that a person may want to mend."""
        lines = [f"{name}: {self.kept} of {self.loaded} prompts"]
        for what, ids in (
            ("dropped as duplicates", self.duplicate_ids),
            ("dropped because the evaluation has them too", self.overlapping_ids),
            ("dropped as longer than prompts.max_tokens", self.too_long_ids),
            ("kept, but their gold answer can't be parsed", self.unparsable_answer_ids),
        ):
            if ids:
                lines.append(f"  {len(ids)} {what}: {shown_ids(ids)}")
        for task in self.generous_tasks:
            lines.append(f"  warning: the scorer of reasoning-gym task {task!r} pays for any text, right or not")
        return lines


@dataclass(frozen=True, kw_only=True)
class PromptReport:
    """Counts and ids of a run's tasks."""

    train: SourceReport
    eval: SourceReport | None = None

    def lines(self) -> list[str]:
        """Lines to print for both sources."""
        lines = self.train.lines("training")
        return lines if self.eval is None else lines + self.eval.lines("evaluation")


def check_source(config: SourceSettings, *, setting: str) -> None:
    """Refuse a source whose file or folder doesn't exist. Nothing is read.

    Args:
        config: the source.
        setting: its table, for the message.

    Raises:
        DataError: it names the setting.
    """
    try:
        match config:
            case FileSourceConfig():
                check_file(config.path)
            case HuggingFaceSourceConfig():
                check_folder(config.path)
            case _:
                pass
    except DataError as error:
        raise DataError(f"{setting}.path: {error}") from error


def load_tasks(config: SourceSettings) -> list[Task]:
    """The tasks of a source in its order, at least one, duplicates included.

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
        case EnvironmentSourceConfig():
            return environment_tasks(config)
        case ReasoningGymSourceConfig():
            return reasoning_gym_tasks(config)
        case ArithmeticSourceConfig() | ListProgramSourceConfig():
            return chain_family(config).tasks(config)


def chain_family(config: ChainSourceConfig) -> ChainFamily:
    """The family of operation chains that a source draws from."""
    match config:
        case ArithmeticSourceConfig():
            return arithmetic_family(config)
        case ListProgramSourceConfig():
            return list_program_family(config)


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptSets:
    """The prompts of a run. Ids are distinct within each set."""

    train: tuple[Prompt, ...]
    eval: tuple[Prompt, ...]  # empty without prompts.eval
    report: PromptReport


@dataclass(kw_only=True)
class _Cleaned:
    """Tasks of one source without duplicates and without the evaluation's problems."""

    loaded: int
    tasks: list[Task] = field(default_factory=list)
    duplicate_ids: list[str] = field(default_factory=list)
    overlapping_ids: list[str] = field(default_factory=list)


def load_prompts(
    config: PromptsConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    verify_answer: Callable[[str], bool] | None = None,
    train_name: str = "prompts.train",
) -> PromptSets:
    """The training and evaluation prompts, rendered and tokenized.

    Args:
        config: Sources, template and the limit on prompt tokens.
        tokenizer: The model's tokenizer.
        verify_answer: Returns True if a gold answer can be parsed; not called for tasks with their own scorer.
        train_name: The user's name for `config.train`, for messages.

    Raises:
        DataError: a source can't be loaded, or none of its prompts is left.
        ConfigError, ModelError: the template contradicts itself or doesn't fit the tokenizer.
    """
    check_template(config.template, tokenizer=tokenizer)
    cleaned_train, cleaned_eval = clean_tasks(config)
    train, train_report = _prompts(
        cleaned_train, name=train_name, config=config, tokenizer=tokenizer, verify_answer=verify_answer
    )
    if cleaned_eval is None:
        return PromptSets(train=train, eval=(), report=PromptReport(train=train_report))
    evaluation, eval_report = _prompts(
        cleaned_eval, name="prompts.eval", config=config, tokenizer=tokenizer, verify_answer=verify_answer
    )
    return PromptSets(train=train, eval=evaluation, report=PromptReport(train=train_report, eval=eval_report))


def clean_tasks(config: PromptsConfig) -> tuple[_Cleaned, _Cleaned | None]:
    """Training and evaluation tasks; a problem in both stays only in the evaluation."""
    cleaned_eval = None if config.eval is None else _clean(load_tasks(config.eval), held_out=frozenset())
    held_out = frozenset(normalised(task.problem) for task in cleaned_eval.tasks) if cleaned_eval else frozenset()
    return _clean(load_tasks(config.train), held_out=held_out), cleaned_eval


def _clean(tasks: Sequence[Task], *, held_out: frozenset[str]) -> _Cleaned:
    cleaned = _Cleaned(loaded=len(tasks))
    seen_ids: set[str] = set()
    seen_problems: set[str] = set()
    for task in tasks:
        problem = normalised(task.problem)
        if task.prompt_id in seen_ids or problem in seen_problems:
            cleaned.duplicate_ids.append(task.prompt_id)
        elif problem in held_out:
            cleaned.overlapping_ids.append(task.prompt_id)
        else:
            cleaned.tasks.append(task)
        seen_ids.add(task.prompt_id)
        seen_problems.add(problem)
    return cleaned


def _prompts(
    cleaned: _Cleaned,
    *,
    name: str,
    config: PromptsConfig,
    tokenizer: "PreTrainedTokenizerBase",
    verify_answer: Callable[[str], bool] | None,
) -> tuple[tuple[Prompt, ...], SourceReport]:
    bound = longest_problem(config.max_tokens, tokenizer=tokenizer)
    tasks = [task for task in cleaned.tasks if len(task.problem) <= bound]
    rendered = render_all(tasks, template=config.template, tokenizer=tokenizer)
    prompts: list[Prompt] = []
    too_long = [task.prompt_id for task in cleaned.tasks if len(task.problem) > bound]
    unparsable: list[str] = []
    for task, (text, ids) in zip(tasks, rendered, strict=True):
        if len(ids) > config.max_tokens:
            too_long.append(task.prompt_id)
            continue
        if not len(ids):
            raise DataError(
                f"{name}: prompt {task.prompt_id!r} gives no token, for the model's tokenizer knows none of "
                f"its characters ({task.problem[:40]!r}); remove the prompt, or take another model"
            )
        prompts.append(
            Prompt(prompt_id=task.prompt_id, text=text, token_ids=ids, answer=task.answer, features=task.features)
        )
        if verify_answer is not None and not task.has_own_score and not verify_answer(task.answer):
            unparsable.append(task.prompt_id)
    report = SourceReport(
        loaded=cleaned.loaded,
        kept=len(prompts),
        duplicate_ids=tuple(cleaned.duplicate_ids),
        overlapping_ids=tuple(cleaned.overlapping_ids),
        too_long_ids=tuple(too_long),
        unparsable_answer_ids=tuple(unparsable),
        generous_tasks=generous_tasks([entry for task in tasks if (entry := task.features.get("reasoning_gym"))]),
    )
    if not prompts:
        raise DataError(
            f"{name} has no prompt left:\n" + "\n".join(report.lines(name)) + "\nwrite a larger "
            f"prompts.max_tokens (now {config.max_tokens}), or sources that don't share problems"
        )
    return tuple(prompts), report


def prompts_digest(prompts: Iterable[Prompt]) -> str:
    """16 hex digits that identify the prompts and their order."""
    return hashlib.sha256("".join(map(prompt_digest, prompts)).encode()).hexdigest()[:16]


def prompt_digest(prompt: Prompt) -> str:
    """16 hex digits that identify a prompt: its id, text, tokens and gold answer."""
    digest = hashlib.sha256(prompt.token_ids.astype("<i4").tobytes())
    for text in (prompt.prompt_id, prompt.text, prompt.answer):
        digest.update(b"\0" + text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]
