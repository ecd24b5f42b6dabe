"""Problems with more tokens than a run would take."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gvm_ray.config.prompts import TemplateConfig
from gvm_ray.data.rejection import Rejection
from gvm_ray.envs.task import Task
from gvm_ray.envs.templates import longest_problem, render_all

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1000  # problems tokenized at once


def too_long(
    tasks: Sequence[Task],
    *,
    tokenizer: "PreTrainedTokenizerBase",
    max_tokens: int,
    on_progress: Callable[[int], Any] = lambda num: None,
) -> dict[int, Rejection]:
    """By index, the tasks whose problem alone, no chat template applied, has more than `max_tokens` tokens."""
    bound = longest_problem(max_tokens, tokenizer=tokenizer)
    lengths: dict[int, str] = {}
    for start in range(0, len(tasks), _CHUNK):
        chunk = dict(enumerate(tasks[start : start + _CHUNK], start=start))
        short = {index: task for index, task in chunk.items() if len(task.problem) <= bound}
        rendered = render_all(list(short.values()), template=TemplateConfig(), tokenizer=tokenizer)
        lengths |= {index: f"{len(task.problem)} characters" for index, task in chunk.items() if index not in short}
        for index, (_, ids) in zip(short, rendered, strict=True):
            if len(ids) > max_tokens:
                lengths[index] = f"{len(ids)} tokens"
        on_progress(len(chunk))
    return {index: Rejection(reason="too_long", detail=length) for index, length in lengths.items()}
