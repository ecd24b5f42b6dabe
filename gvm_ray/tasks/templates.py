"""Rendering of tasks to text and token ids, the same in training, evaluation and warm start.

A chat template is a program written by the model's makers. It may want contents as text or as a list of parts, leave
out a system prompt, or print the date. So it is tried with a probe, and refused if it leaves something out.
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
    """The texts around the problem in a chat prompt."""

    system: str | None
    user_suffix: str = ""


_STEP_BY_STEP = " Let's think step by step and output the final answer within \\boxed{}"

# The exact wordings of the GVM experiments (arXiv 2505.02391) and their base models.
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

_PROBE, _ANSWER = "Problem4711", "Answer4711"  # texts that no template would trim or escape
_DATE = "strftime_now"  # the function that chat templates call for the date
_OWN_NAMES = {"messages", "raise_exception", _DATE}  # given to every template
_PRINTED_PART = re.compile(r"""['"]type['"]: ?['"]text['"]""")  # a content part printed as a dict instead of its text
# A tag of transformers that Jinja itself doesn't know.
_GENERATION_TAG = re.compile(r"{%[-+]?\s*(end)?generation\s*[-+]?%}")


def render(task: Task, *, template: TemplateConfig, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, IntArray]:
    """The text given to the tokenizer, and its token ids [T]."""
    return render_all([task], template=template, tokenizer=tokenizer)[0]


def render_all(
    tasks: Sequence[Task], *, template: TemplateConfig, tokenizer: "PreTrainedTokenizerBase"
) -> list[tuple[str, IntArray]]:
    """Render many tasks, with one call of the tokenizer.

    `plain` gives the problem as it is, after one beginning-of-sequence token if the tokenizer puts one before text.
    `chat` applies the tokenizer's chat template, up to the start of the assistant's answer. The template writes its own
    special tokens, so none is added.

    Raises:
        ConfigError: `plain` with settings of a chat; or a chat template that refuses these messages, doesn't take its
            arguments, leaves something out, or doesn't exist under this name.
        ModelError: `chat`, but the tokenizer has no chat template, or an unusable one.
    """
    chat = check_template(template, tokenizer=tokenizer)
    if chat is None:
        texts = [task.problem for task in tasks]
        return list(zip(texts, _plain_ids(texts, tokenizer=tokenizer), strict=True))
    texts = [
        chat.render(task.problem) if task.messages is None else chat.render_messages(task.messages) for task in tasks
    ]
    return list(zip(texts, token_ids(texts, tokenizer=tokenizer), strict=True))


def check_template(template: TemplateConfig, *, tokenizer: "PreTrainedTokenizerBase") -> "Chat | None":
    """The checked chat template, or None for `plain`; raises as `render_all` does."""
    if template.type == "chat":
        return Chat(template, tokenizer=tokenizer)
    unused = {"system_prompt": "none", "name": None, "arguments": {}, "date": None}
    for name, absent in unused.items():
        if (value := getattr(template, name)) != absent:
            shown = str(value) if name == "date" else value
            raise ConfigError(
                f"template.{name}={shown!r} needs a chat, but template.type='plain' gives the problem as it is; write "
                f"template.type='chat', or leave out template.{name}"
            )
    return None


def reads_date(template: TemplateConfig, *, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """True if the prompts depend on the date, as with Llama 3's chat templates; raises as `render_all` does."""
    chat = check_template(template, tokenizer=tokenizer)
    return chat is not None and chat.reads_date


def end_token_id(
    template: TemplateConfig, *, tokenizer: "PreTrainedTokenizerBase", end_token_ids: Collection[int]
) -> int:
    """The last token of a demonstration: the one that the chat template writes after an answer, if it is in
    `end_token_ids`, else the tokenizer's end-of-sequence token."""
    chat = check_template(template, tokenizer=tokenizer)
    written: Any = [] if chat is None else tokenizer(chat.answer_end(), add_special_tokens=False)["input_ids"]
    end_of_sequence: Any = tokenizer.eos_token_id
    return written[0] if written and written[0] in end_token_ids else end_of_sequence


def longest_problem(max_tokens: int, *, tokenizer: "PreTrainedTokenizerBase") -> int:
    """The number of characters above which a problem surely has more than `max_tokens` tokens.

    This bound (`max_tokens` times the longest token) saves tokenizing problems that are too long anyway: a text of a
    million characters would take seconds and a gigabyte.
    """
    return max_tokens * max(map(len, tokenizer.get_vocab()))


def token_ids(texts: Sequence[str], *, tokenizer: "PreTrainedTokenizerBase") -> list[IntArray]:
    """Token ids [T] of each text, without special tokens. Equal texts, common in demonstrations, share an array."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    encoded = tokenizer(distinct, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    arrays = {text: np.array(ids, dtype=np.int32) for text, ids in zip(distinct, encoded, strict=True)}
    return [arrays[text] for text in texts]


def _plain_ids(texts: Sequence[str], *, tokenizer: "PreTrainedTokenizerBase") -> list[IntArray]:
    """Token ids of each text, after one beginning-of-sequence token if the tokenizer adds one; never two."""
    arrays = token_ids(texts, tokenizer=tokenizer)
    bos = tokenizer.bos_token_id
    probe = tokenizer("a", add_special_tokens=True)["input_ids"]
    if bos is None or probe[0] != bos:
        return arrays
    return [ids if len(ids) and ids[0] == bos else np.concatenate([np.array([bos], np.int32), ids]) for ids in arrays]


@dataclass(frozen=True, kw_only=True)
class _Form:
    """Contents given as lists of parts, which templates of multimodal models want, instead of text."""

    system_parts: bool = False
    user_parts: bool = False


_FORMS = (_Form(), _Form(system_parts=True), _Form(user_parts=True), _Form(system_parts=True, user_parts=True))


class Chat:
    """Renders problems with one of the tokenizer's chat templates, up to the start of the assistant's answer."""

    def __init__(self, template: TemplateConfig, *, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Choose the template and try it.

        Raises:
            ConfigError: no template has this name, it doesn't take the arguments, or it leaves out the system prompt.
            ModelError: the tokenizer has no template, it isn't valid, or it leaves out the problem.
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
        """True if prompts depend on the date."""
        return _DATE in self._variables

    def render(self, problem: str) -> str:
        """The text of a prompt.

        Raises:
            ConfigError: the template refuses the problem, or alters it.
        """
        content = problem + self._wording.user_suffix
        text = self._text(content, form=self._form)
        if isinstance(text, Exception) or content.strip() not in text:
            reason = f": {text}" if isinstance(text, Exception) else ", and its text lacks a part of it"
            raise ConfigError(
                f"the tokenizer's chat template doesn't take the problem {problem[:60]!r} as it is{reason}; leave the "
                "problem out, or write template.type='plain'"
            )
        return text

    def render_messages(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of a prompt that is a whole chat.

        Raises:
            ConfigError: the settings have a wording of their own, or the template refuses the chat or alters it.
        """
        if self._wording != WORDINGS["none"]:
            raise ConfigError(
                f"template.system_prompt={self._system_prompt!r}, but the prompts of the environment are whole chats "
                "with a wording of their own; write template.system_prompt='none'"
            )
        system = self._form.system_parts
        contents = [
            {
                **each,
                "content": _content(
                    each["content"], parts=system if each["role"] == "system" else self._form.user_parts
                ),
            }
            for each in messages
        ]
        text = self._applied(contents, add_generation_prompt=True)
        lost = [each["content"] for each in messages if isinstance(text, str) and each["content"].strip() not in text]
        if isinstance(text, Exception) or lost:
            reason = f": {text}" if isinstance(text, Exception) else f", and its text lacks {lost[0][:60]!r}"
            roles = ", ".join(each["role"] for each in messages)
            raise ConfigError(
                f"the tokenizer's chat template doesn't take the environment's chat ({roles}) as it is{reason}; take "
                "another template with template.name, or write template.type='plain'"
            )
        return text

    def answer_end(self) -> str:
        """The text that the template writes after an answer; empty if the template raises."""
        text = self._text(_PROBE, form=self._form, answer=_ANSWER)
        return "" if isinstance(text, Exception) else text.partition(_ANSWER)[2]

    def _checked(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments, if the template reads all of them; Jinja itself would silently ignore the others."""
        reserved = inspect.signature(self._tokenizer.apply_chat_template).parameters.keys() - {"tools", "documents"}
        taken = sorted(self._variables - reserved - _OWN_NAMES)
        if unknown := sorted(arguments.keys() - {*taken}):
            raise ConfigError(
                f"template.arguments has {', '.join(unknown)}, which the tokenizer's chat template doesn't take; it "
                f"takes {', '.join(taken) or 'none'}"
            )
        return arguments

    def _pinned(self, date: datetime.date | None) -> dict[str, Any]:
        """The argument that makes the template take `date`, or the current day, for today's date."""
        if not self.reads_date:
            return {}
        day = datetime.datetime.combine(date or datetime.date.today(), datetime.time())
        return {_DATE: day.strftime}

    def _working_form(self) -> _Form:
        """The first form whose text contains both system prompt and problem."""
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
                f"the tokenizer's chat template leaves out the system prompt, or alters it, but "
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
            "another with template.name, correct it, or write template.type='plain'"
        )

    def _is_refused_for_system_prompt(self) -> bool:
        """True if the template takes the problem only without the system prompt."""
        if self._wording.system is None:
            return False
        texts = (self._text(_PROBE, form=form, system=False) for form in _FORMS)
        return any(isinstance(text, str) for text in texts)

    def _text(self, content: str, *, form: _Form, answer: str | None = None, system: bool = True) -> str | Exception:
        """The template's text for the messages, or the error that it raises. `answer` is an optional last message."""
        messages = [{"role": "user", "content": _content(content, parts=form.user_parts)}]
        if system and self._wording.system is not None:
            system_content = _content(self._wording.system, parts=form.system_parts)
            messages.insert(0, {"role": "system", "content": system_content})
        if answer is not None:
            messages.append({"role": "assistant", "content": _content(answer, parts=form.user_parts)})
        return self._applied(messages, add_generation_prompt=answer is None)

    def _applied(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str | Exception:
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._source,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self._arguments,
            )
        except Exception as error:  # a template is a program and may raise anything
            return error
        assert isinstance(text, str)
        return text


def _content(text: str, *, parts: bool) -> str | list[dict[str, str]]:
    return [{"type": "text", "text": text}] if parts else text


def _chosen_source(template: TemplateConfig, *, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The source of the template called `template.name`, or of the only or default one."""
    sources: Any = tokenizer.chat_template
    if not sources:
        raise ModelError(
            f"template.type='chat', but the tokenizer of {_name(tokenizer)} has no chat template; write "
            "template.type='plain', or choose an instruction-tuned model"
        )
    named = {"default": sources} if isinstance(sources, str) else dict(sources)
    name = "default" if template.name is None else template.name
    if name not in named:
        asked = "none is its default" if template.name is None else f"none is called {template.name!r}"
        raise ConfigError(
            f"the tokenizer of {_name(tokenizer)} has the chat templates {', '.join(map(repr, sorted(named)))}, but "
            f"{asked}; write template.name={sorted(named)[0]!r}"
        )
    return named[name]


def _variables(source: str) -> set[str]:
    """The names of the variables that a template takes.

    Raises:
        ModelError: the template isn't valid.
    """
    from jinja2 import TemplateError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return meta.find_undeclared_variables(environment.parse(_GENERATION_TAG.sub("", source)))
    except TemplateError as error:
        raise ModelError(
            f"the tokenizer's chat template isn't valid: {error}; replace it with the model's original one"
        ) from error


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return repr(tokenizer.name_or_path or "the model")
