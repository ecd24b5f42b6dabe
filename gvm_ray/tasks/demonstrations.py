"""Demonstrations for the warm start: problems with reference rationales, rendered as prompts and responses."""

import random
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gvm_ray.config.prompts import GeneratedSourceConfig, PromptsConfig, ReasoningGymSourceConfig
from gvm_ray.exceptions import DataError, ModelError
from gvm_ray.tasks.prompt_set import chain_family, clean_tasks, load_tasks, shown_ids
from gvm_ray.tasks.rows import Task
from gvm_ray.tasks.sources.reasoning_gym import reasoning_gym_demonstrations
from gvm_ray.tasks.templates import end_token_id, longest_problem, render_all, token_ids
from gvm_ray.types import Demonstration, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_SEPARATOR = re.compile(r"(?<=\d),(?=\d{3})")
_LONGEST_ANSWER = 200  # characters
_MOST_CHECKED = 2000  # a judge takes milliseconds for each
_LAYOUT = re.compile(r"[\s$]")


@dataclass(frozen=True, kw_only=True)
class RationaleReport:
    """Counts of a source's rationales, and the ids of those that don't give their gold answer."""

    num: int
    num_checked: int
    without_answer_ids: tuple[str, ...] = ()

    def lines(self, name: str) -> list[str]:
        """Lines to print: the number of rationales, and a warning if some don't give their answer."""
        lines = [f"{name}: {self.num} rationales to learn from"]
        if ids := self.without_answer_ids:
            checked = "" if self.num_checked == self.num else f" of {self.num_checked} that were checked"
            lines.append(
                f"  warning: {len(ids)}{checked} don't give the gold answer, so they teach what earns nothing: "
                f"{shown_ids(ids)}; correct them, or name another rationale_field"
            )
        return lines


def check_rationales(config: PromptsConfig, *, is_right: Callable[[Task], bool] | None = None) -> RationaleReport:
    """Count the rationales of a source that doesn't make its own problems, and find those without their gold answer.

    Of many rationales some are checked, evenly spread.

    Args:
        config: The source is its `train`; problems of `eval` are left out.
        is_right: Judges a task's rationale. None looks for the answer as text, without spaces and dollar signs; a
            number must stand by itself, and long answers, such as the tests of a program, aren't looked for.

    Raises:
        DataError: the source can't be loaded.
    """
    tasks = _with_rationales(config)
    checked = tasks[:: -(-len(tasks) // _MOST_CHECKED) or 1]
    judge = _has_answer if is_right is None else is_right
    without = tuple(task.prompt_id for task in checked if not judge(task))
    return RationaleReport(num=len(tasks), num_checked=len(checked), without_answer_ids=without)


def _has_answer(task: Task) -> bool:
    text, wanted = _SEPARATOR.sub("", task.rationale or ""), _LAYOUT.sub("", _SEPARATOR.sub("", task.answer))
    if _NUMBER.fullmatch(wanted):
        return re.search(rf"(?<![\d.]){re.escape(wanted)}(\.0+)?(?!\.?\d)", text) is not None
    return len(wanted) > _LONGEST_ANSWER or wanted in _LAYOUT.sub("", text)


def _with_rationales(config: PromptsConfig) -> list[Task]:
    return [task for task in clean_tasks(config)[0].tasks if task.rationale is not None]


def generated_demonstrations(
    config: GeneratedSourceConfig, *, num: int, seed: int, excluded: frozenset[str]
) -> Iterator[tuple[str, str]]:
    """Draw `num` pairs (problem, response) from a source that makes its own problems.

    Args:
        config: The source; its size, seed and half are ignored.
        num: The number of demonstrations.
        seed: Of the draws.
        excluded: Problems never to show, e.g. those of the evaluation.

    Raises:
        DataError: a level has no problem left, or the source has no format for responses.
    """
    match config:
        case ReasoningGymSourceConfig():
            return reasoning_gym_demonstrations(config, num=num, seed=seed, excluded=excluded)
        case _:
            return chain_family(config).demonstrations(config, num=num, seed=seed, excluded=excluded)


def demonstrations(
    config: PromptsConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    num: int,
    seed: int,
    end_token_ids: Collection[int] = (),
    source_name: str = "prompts.train",
) -> list[Demonstration]:
    """Draw `num` demonstrations from the training source, none on an evaluation problem, the same for the same seed.

    Sources that make their own problems make demonstrations too. Others give their rationales in random order, repeated
    until `num` is reached. A response ends with the token that the chat template writes after an answer if it is in
    `end_token_ids`, else with the tokenizer's end-of-sequence token. Prompts of more than `max_tokens` tokens are left
    out.

    Raises:
        DataError: the source has no rationales, or none with a prompt that is short enough.
        ModelError: the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'!r} has no end-of-sequence token, so the model "
            "can't learn to end a response; set eos_token in its tokenizer_config.json"
        )
    if isinstance(config.train, GeneratedSourceConfig):
        tasks = _generated(config.train, config=config, num=num, seed=seed)
    else:
        tasks = _with_rationales(config)
    end = end_token_id(config.template, tokenizer=tokenizer, end_token_ids=end_token_ids)
    tokenized = _tokenized(tasks, config=config, tokenizer=tokenizer, end_token_id=end)
    if not tokenized:
        raise DataError(
            f"{source_name} ({config.train.type!r}) gives no demonstration: {len(tasks)} of its tasks have a reference "
            f"rationale, and no prompt of these has at most max_tokens={config.max_tokens} tokens; write "
            "rationale_field = '...', or a larger prompts.max_tokens"
        )
    return tokenized if len(tokenized) == num else _repeated(tokenized, num=num, seed=seed)


def _generated(source: GeneratedSourceConfig, *, config: PromptsConfig, num: int, seed: int) -> list[Task]:
    held_out = frozenset() if config.eval is None else frozenset(task.problem for task in load_tasks(config.eval))
    return [
        Task(prompt_id=problem, problem=problem, answer="", rationale=response)
        for problem, response in generated_demonstrations(source, num=num, seed=seed, excluded=held_out)
    ]


def _tokenized(
    tasks: list[Task], *, config: PromptsConfig, tokenizer: "PreTrainedTokenizerBase", end_token_id: int
) -> list[Demonstration]:
    bound = longest_problem(config.max_tokens, tokenizer=tokenizer)
    tasks = [task for task in tasks if len(task.problem) <= bound]
    prompts = render_all(tasks, template=config.template, tokenizer=tokenizer)
    responses = token_ids([task.rationale or "" for task in tasks], tokenizer=tokenizer)
    end: IntArray = np.array([end_token_id], dtype=np.int32)
    return [
        Demonstration(prompt_token_ids=prompt, response_token_ids=np.concatenate([response, end]))
        for (_, prompt), response in zip(prompts, responses, strict=True)
        if len(prompt) <= config.max_tokens
    ]


def _repeated(items: list[Demonstration], *, num: int, seed: int) -> list[Demonstration]:
    """`num` items: random orders of all items, one after the other, the last one cut short."""
    rng = random.Random(f"demonstration order {seed}")
    chosen: list[Demonstration] = []
    while len(chosen) < num:
        chosen += rng.sample(items, k=len(items))
    return chosen[:num]
