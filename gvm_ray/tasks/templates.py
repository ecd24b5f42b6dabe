"""A task to the text and the token ids that the model sees, alike in training, evaluation and warm start.

A chat template is a program of the model's makers. It may want contents as text or as a list of parts, leave out a
system prompt, or print the day: what it does is tried with a probe, and what it leaves out is never passed over.
"""

import datetime
import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gvm_ray.config.prompts import TemplateConfig
from gvm_ray.exceptions import ConfigError, ModelError
from gvm_ray.tasks.rows import Task
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

_PROBE, _ANSWER = "Problem4711", "Answer4711"  # nothing that a template would trim or escape
_DATE = "strftime_now"  # the function by which chat templates ask for the day
_OWN_NAMES = {"messages", "raise_exception", _DATE}  # what every template is given
_PRINTED_PART = re.compile(r"""['"]type['"]: ?['"]text['"]""")  # a part of a content as a whole, not its text
# A tag of transformers, which Jinja by itself doesn't know.
_GENERATION_TAG = re.compile(r"{%[-+]?\s*(end)?generation\s*[-+]?%}")


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
        ConfigError: `plain` with settings of a chat; or a chat template that refuses these messages, doesn't take its
            arguments, leaves something out, or isn't there by this name.
        ModelError: `chat`, and the tokenizer has no chat template, or one that can't be used.
    """
    chat = check_template(template, tokenizer=tokenizer)
    if chat is None:
        texts = [task.problem for task in tasks]
        return list(zip(texts, _plain_ids(texts, tokenizer=tokenizer), strict=True))
    texts = [chat.render(task.problem) for task in tasks]
    return list(zip(texts, token_ids(texts, tokenizer=tokenizer), strict=True))


def check_template(template: TemplateConfig, *, tokenizer: "PreTrainedTokenizerBase") -> "Chat | None":
    """The chat that the template makes, None for `plain`; raises as `render_all` does."""
    if template.type == "chat":
        return Chat(template, tokenizer=tokenizer)
    unused = {"system_prompt": "none", "name": None, "arguments": {}, "date": None}
    for name, absent in unused.items():
        if (value := getattr(template, name)) != absent:
            shown = str(value) if name == "date" else value
            raise ConfigError(
                f"template.{name}={shown!r} needs a chat, but template.type='plain' gives the problem as it is; write "
                f"template.type='chat', or leave template.{name} out"
            )
    return None


def reads_date(template: TemplateConfig, *, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the prompts depend on the day, as with the chat templates of Llama 3; raises as `render_all` does."""
    chat = check_template(template, tokenizer=tokenizer)
    return chat is not None and chat.reads_date


def end_token_id(
    template: TemplateConfig, *, tokenizer: "PreTrainedTokenizerBase", end_token_ids: Collection[int]
) -> int:
    """The token that a demonstration ends with: what the chat template ends an answer with, if that ends a response.

    Else the tokenizer's end of sequence.
    """
    chat = check_template(template, tokenizer=tokenizer)
    written: Any = [] if chat is None else tokenizer(chat.answer_end(), add_special_tokens=False)["input_ids"]
    end_of_sequence: Any = tokenizer.eos_token_id
    return written[0] if written and written[0] in end_token_ids else end_of_sequence


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


@dataclass(frozen=True, kw_only=True)
class _Form:
    """Which contents are lists of parts, as templates of multimodal models want them, instead of text."""

    system_parts: bool = False
    user_parts: bool = False


_FORMS = (_Form(), _Form(system_parts=True), _Form(user_parts=True), _Form(system_parts=True, user_parts=True))


class Chat:
    """Renders problems by one of the tokenizer's chat templates, up to where the assistant answers."""

    def __init__(self, template: TemplateConfig, *, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Choose the template and try it.

        Raises:
            ConfigError: there is none of this name, it doesn't take the arguments, or it leaves out the system prompt.
            ModelError: there is none at all, it isn't valid, or it leaves out the problem.
        """
        self._tokenizer = tokenizer
        self._system_prompt = template.system_prompt
        self._wording = WORDINGS[template.system_prompt]
        self._source = _chosen_source(template, tokenizer=tokenizer)
        self._variables = _variables(self._source)
        self._arguments = {**self._checked(template.arguments), **self._pinned(template.date)}
        self._form = self._working_form()

    @property
    def reads_date(self) -> bool:
        """Whether prompts depend on the day."""
        return _DATE in self._variables

    def render(self, problem: str) -> str:
        """The text of a prompt.

        Raises:
            ConfigError: the template refuses the problem, or alters it.
        """
        content = problem + self._wording.user_suffix
        text = self._text(content, form=self._form)
        if isinstance(text, Exception) or content.strip() not in text:
            reason = f": {text}" if isinstance(text, Exception) else ", and what it makes of it has lost some of it"
            raise ConfigError(
                f"the tokenizer's chat template doesn't take the problem {problem[:60]!r} as it is{reason}; leave the "
                "problem out, or write template.type='plain'"
            )
        return text

    def answer_end(self) -> str:
        """What the template writes after an answer; empty where it can't be told."""
        text = self._text(_PROBE, form=self._form, answer=_ANSWER)
        return "" if isinstance(text, Exception) else text.partition(_ANSWER)[2]

    def _checked(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments, all of which the template reads: Jinja itself would say nothing of the others."""
        reserved = inspect.signature(self._tokenizer.apply_chat_template).parameters.keys() - {"tools", "documents"}
        taken = sorted(self._variables - reserved - _OWN_NAMES)
        if unknown := sorted(arguments.keys() - {*taken}):
            raise ConfigError(
                f"template.arguments has {', '.join(unknown)}, which the tokenizer's chat template doesn't take; it "
                f"takes {', '.join(taken) or 'none'}"
            )
        return arguments

    def _pinned(self, date: datetime.date | None) -> dict[str, Any]:
        """What shows the template this day, or the present one, as today's."""
        if not self.reads_date:
            return {}
        day = datetime.datetime.combine(date or datetime.date.today(), datetime.time())
        return {_DATE: day.strftime}

    def _working_form(self) -> _Form:
        """The first form in which system prompt and problem come out."""
        system, content = (self._wording.system or "").strip(), (_PROBE + self._wording.user_suffix).strip()
        texts = {form: self._text(_PROBE + self._wording.user_suffix, form=form) for form in _FORMS}
        rendered = {
            form: text
            for form, text in texts.items()
            if isinstance(text, str) and content in text and not _PRINTED_PART.search(text)
        }
        for form, text in rendered.items():
            if system in text:
                return form
        if rendered:
            raise ConfigError(
                f"the tokenizer's chat template leaves out the system prompt, or alters it, and "
                f"template.system_prompt={self._system_prompt!r} has one; write template.system_prompt='none'"
            )
        first = texts[_FORMS[0]]
        if isinstance(first, Exception) and self._is_refused_for_system_prompt():
            raise ConfigError(
                f"the tokenizer's chat template refuses template.system_prompt={self._system_prompt!r}: {first}; write "
                "template.system_prompt='none'"
            ) from first
        reason = f" ({first})" if isinstance(first, Exception) else ""
        raise ModelError(
            f"the chat template of {_name(self._tokenizer)} leaves the problem out of the prompt{reason}; choose "
            "another by template.name, mend it, or write template.type='plain'"
        )

    def _is_refused_for_system_prompt(self) -> bool:
        """Whether there is a system prompt, and without it the template takes the problem."""
        if self._wording.system is None:
            return False
        texts = (self._text(_PROBE, form=form, system=False) for form in _FORMS)
        return any(isinstance(text, str) for text in texts)

    def _text(self, content: str, *, form: _Form, answer: str | None = None, system: bool = True) -> str | Exception:
        """What the template makes of the messages, or the error that it raises; `answer` ends the chat."""
        messages = [{"role": "user", "content": _content(content, parts=form.user_parts)}]
        if system and self._wording.system is not None:
            system_content = _content(self._wording.system, parts=form.system_parts)
            messages.insert(0, {"role": "system", "content": system_content})
        if answer is not None:
            messages.append({"role": "assistant", "content": _content(answer, parts=form.user_parts)})
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._source,
                tokenize=False,
                add_generation_prompt=answer is None,
                **self._arguments,
            )
        except Exception as error:  # a template is a program, and raises what it likes
            return error
        assert isinstance(text, str)
        return text


def _content(text: str, *, parts: bool) -> str | list[dict[str, str]]:
    return [{"type": "text", "text": text}] if parts else text


def _chosen_source(template: TemplateConfig, *, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The template that `template.name` says, or the only or the default one."""
    sources: Any = tokenizer.chat_template
    if not sources:
        raise ModelError(
            f"template.type='chat', but the tokenizer of {_name(tokenizer)} has no chat template; write "
            "template.type='plain', or take an instruction-tuned model"
        )
    named = {"default": sources} if isinstance(sources, str) else dict(sources)
    name = "default" if template.name is None else template.name
    if name not in named:
        asked = "none is its default" if template.name is None else f"none is called {template.name!r}"
        raise ConfigError(
            f"the tokenizer of {_name(tokenizer)} has the chat templates {', '.join(map(repr, sorted(named)))}, and "
            f"{asked}; write template.name={sorted(named)[0]!r}"
        )
    return named[name]


def _variables(source: str) -> set[str]:
    """The names that a template reads from outside.

    Raises:
        ModelError: it isn't valid.
    """
    from jinja2 import TemplateError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return meta.find_undeclared_variables(environment.parse(_GENERATION_TAG.sub("", source)))
    except TemplateError as error:
        raise ModelError(
            f"the tokenizer's chat template isn't valid: {error}; put the model's own one there"
        ) from error


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return repr(tokenizer.name_or_path or "the model")
