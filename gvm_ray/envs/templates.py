"""A task to the text and the token ids that the model sees, alike in training, evaluation and warm start."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gvm_ray.config.prompts import TemplateConfig
from gvm_ray.envs.task import Task
from gvm_ray.exceptions import ConfigError, ModelError
from gvm_ray.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ChatWording:
    """What stands around the problem in a chat prompt."""

    system: str | None
    user_suffix: str = ""


_STEP_BY_STEP = " Let's think step by step and output the final answer within \\boxed{}"

# The wordings that the GVM experiments (arXiv 2505.02391) and their base models use, to the letter.
WORDINGS: dict[str, ChatWording] = {
    "none": ChatWording(system=None),
    "qwen-boxed": ChatWording(
        system="You are a helpful assistant.",
        user_suffix="\nPlease reason step by step, and put your final answer within \\boxed{}.",
    ),
    "qwen25-math-cot": ChatWording(
        system="Please reason step by step, and put your final answer within \\boxed{}.", user_suffix=_STEP_BY_STEP
    ),
    "hendrydong-longcot": ChatWording(
        system=(
            "Please provide a detailed, step-by-step explanation of your reasoning. Enclose your full thought process "
            "within <think> and </think> tags. Finally, present your final answer enclosed in \\boxed{...}."
        ),
        user_suffix=_STEP_BY_STEP,
    ),
}


def render(task: Task, *, template: TemplateConfig, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, IntArray]:
    """The text given to the tokenizer, and its token ids [T]."""
    return render_all([task], template=template, tokenizer=tokenizer)[0]


def render_all(
    tasks: Sequence[Task], *, template: TemplateConfig, tokenizer: "PreTrainedTokenizerBase"
) -> list[tuple[str, IntArray]]:
    """`render` of many tasks, with one call of the tokenizer.

    `plain` gives the problem as it is, with one beginning-of-sequence token where the tokenizer puts one before text.
    `chat` gives the tokenizer's chat template up to where the assistant answers; the template writes its own special
    tokens, so none is added.

    Raises:
        ConfigError: `plain` with a system prompt, or a chat template that refuses these messages.
        ModelError: `chat`, and the tokenizer has no chat template.
    """
    check_template(template, tokenizer=tokenizer)
    if template.type == "plain":
        texts = [task.problem for task in tasks]
        return list(zip(texts, _plain_ids(texts, tokenizer=tokenizer), strict=True))
    texts = [_chat_text(task, template=template, tokenizer=tokenizer) for task in tasks]
    return list(zip(texts, token_ids(texts, tokenizer=tokenizer), strict=True))


def check_template(template: TemplateConfig, *, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise if the template contradicts itself or doesn't fit the tokenizer; see `render_all`."""
    if template.type == "plain" and template.system_prompt != "none":
        raise ConfigError(
            f"template.system_prompt={template.system_prompt!r} needs a chat, but template.type='plain' gives the "
            "problem as it is; write template.type='chat', or template.system_prompt='none'"
        )
    if template.type == "chat" and not tokenizer.chat_template:
        raise ModelError(
            f"template.type='chat', but the tokenizer of {tokenizer.name_or_path or 'the model'!r} has no chat "
            "template; write template.type='plain', or take an instruction-tuned model"
        )


def longest_problem(max_tokens: int, *, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Characters above which a problem surely has more than `max_tokens` tokens: none is longer than the longest.

    A text of a million characters would take seconds and a gigabyte to tokenize, only to be found too long.
    """
    return max_tokens * max(map(len, tokenizer.get_vocab()))


def token_ids(texts: Sequence[str], *, tokenizer: "PreTrainedTokenizerBase") -> list[IntArray]:
    """Token ids [T] of each text, no special token added; equal texts, common among demonstrations, share an array."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    encoded = tokenizer(distinct, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    arrays = {text: np.array(ids, dtype=np.int32) for text, ids in zip(distinct, encoded, strict=True)}
    return [arrays[text] for text in texts]


def _plain_ids(texts: Sequence[str], *, tokenizer: "PreTrainedTokenizerBase") -> list[IntArray]:
    """Token ids with the beginning-of-sequence token in front where the tokenizer adds one by itself; never two."""
    arrays = token_ids(texts, tokenizer=tokenizer)
    bos = tokenizer.bos_token_id
    probe = tokenizer("a", add_special_tokens=True)["input_ids"]
    if bos is None or probe[0] != bos:
        return arrays
    return [ids if len(ids) and ids[0] == bos else np.concatenate([np.array([bos], np.int32), ids]) for ids in arrays]


def _chat_text(task: Task, *, template: TemplateConfig, tokenizer: "PreTrainedTokenizerBase") -> str:
    from jinja2 import TemplateError

    wording = WORDINGS[template.system_prompt]
    messages = [{"role": "user", "content": task.problem + wording.user_suffix}]
    if wording.system is not None:
        messages.insert(0, {"role": "system", "content": wording.system})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ConfigError(
            f"the tokenizer's chat template refuses template.system_prompt={template.system_prompt!r}: {error}; write "
            "template.system_prompt='none'"
        ) from error
    assert isinstance(text, str)
    return text
