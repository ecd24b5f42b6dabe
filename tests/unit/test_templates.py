"""Rendering: exactly one beginning-of-sequence token, the wordings to the letter, contradictions refused."""

import datetime

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gvm_ray.config.prompts import TemplateConfig
from gvm_ray.exceptions import ConfigError, ModelError
from gvm_ray.tasks.rows import Task
from gvm_ray.tasks.templates import end_token_id, reads_date, render, render_all

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def word_tokenizer(*, adds_bos: bool, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Words of a small vocabulary; <s> is 0, and stands before text where `adds_bos` says so, with </s> behind."""
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, "one": 3, "two": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=chat_template,
    )


def task(problem="one two"):
    return Task(prompt_id="a", problem=problem, answer="3")


def test_plain_text_gets_no_special_token_where_the_tokenizer_adds_none():
    text, ids = render(task(), template=TemplateConfig(), tokenizer=word_tokenizer(adds_bos=False))
    assert text == "one two"
    assert ids.dtype == np.int32
    assert ids.tolist() == [3, 4]


@pytest.mark.parametrize("problem", ["one two", "<s> one two"])
def test_plain_text_gets_exactly_one_bos_and_no_eos_where_the_tokenizer_adds_them(problem):
    _, ids = render(task(problem), template=TemplateConfig(), tokenizer=word_tokenizer(adds_bos=True))
    assert ids.tolist() == [0, 3, 4]


def test_many_tasks_render_as_each_alone():
    tokenizer = word_tokenizer(adds_bos=True)
    tasks = [task("one"), task("two one"), task("three")]
    together = render_all(tasks, template=TemplateConfig(), tokenizer=tokenizer)
    alone = [render(each, template=TemplateConfig(), tokenizer=tokenizer) for each in tasks]
    assert [(text, ids.tolist()) for text, ids in together] == [(text, ids.tolist()) for text, ids in alone]
    assert render_all([], template=TemplateConfig(), tokenizer=tokenizer) == []


STEP_BY_STEP = "P Let's think step by step and output the final answer within \\boxed{}[assistant]"


@pytest.mark.parametrize(
    ("system_prompt", "expected"),
    [
        ("none", "[user]P[assistant]"),
        (
            "qwen-boxed",
            "[system]You are a helpful assistant."
            "[user]P\nPlease reason step by step, and put your final answer within \\boxed{}.[assistant]",
        ),
        (
            "qwen25-math-cot",
            "[system]Please reason step by step, and put your final answer within \\boxed{}.[user]" + STEP_BY_STEP,
        ),
        (
            "hendrydong-longcot",
            "[system]Please provide a detailed, step-by-step explanation of your reasoning. Enclose your full thought "
            "process within <think> and </think> tags. Finally, present your final answer enclosed in \\boxed{...}."
            "[user]" + STEP_BY_STEP,
        ),
    ],
)
def test_chat_wordings_are_to_the_letter(system_prompt, expected):
    template = TemplateConfig(type="chat", system_prompt=system_prompt)
    text, _ = render(task("P"), template=template, tokenizer=word_tokenizer(adds_bos=False, chat_template=CHAT))
    assert text == expected


def test_a_chat_template_writes_its_own_bos():
    tokenizer = word_tokenizer(adds_bos=True, chat_template="<s> {{ messages[0]['content'] }}")
    text, ids = render(task(), template=TemplateConfig(type="chat"), tokenizer=tokenizer)
    assert text == "<s> one two"
    assert ids.tolist() == [0, 3, 4]


def test_plain_with_a_system_prompt_is_a_contradiction():
    template = TemplateConfig(type="plain", system_prompt="qwen-boxed")
    with pytest.raises(ConfigError, match=r"qwen-boxed.*needs a chat.*write template.type='chat'"):
        render(task(), template=template, tokenizer=word_tokenizer(adds_bos=False))


def test_chat_without_a_chat_template_is_refused():
    with pytest.raises(ModelError, match=r"no chat template; write template.type='plain'"):
        render(task(), template=TemplateConfig(type="chat"), tokenizer=word_tokenizer(adds_bos=False))


def test_a_chat_template_without_a_system_role_says_what_to_write():
    tokenizer = word_tokenizer(adds_bos=False, chat_template=NO_SYSTEM + CHAT)
    template = TemplateConfig(type="chat", system_prompt="qwen-boxed")
    with pytest.raises(ConfigError, match=r"System role not supported; write template.system_prompt='none'"):
        render(task(), template=template, tokenizer=tokenizer)
    assert render(task("P"), template=TemplateConfig(type="chat"), tokenizer=tokenizer)[0] == "[user]P[assistant]"


def chat_text(chat_template, *, problem="P", **settings):
    """The prompt that a chat template makes of a problem."""
    tokenizer = word_tokenizer(adds_bos=False, chat_template=chat_template)
    return render(task(problem), template=TemplateConfig(type="chat", **settings), tokenizer=tokenizer)[0]


THINKING = CHAT + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"


def test_a_chat_template_is_given_the_arguments_that_it_takes():
    assert chat_text(THINKING) == "[user]P[assistant]"
    assert chat_text(THINKING, arguments={"enable_thinking": True}) == "[user]P[assistant]"
    assert chat_text(THINKING, arguments={"enable_thinking": False}) == "[user]P[assistant]<think></think>"
    in_a_loop = "{% for m in messages %}{% if loop.index > limit %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    assert chat_text(in_a_loop, arguments={"limit": 1}) == "P"
    tagged = "{% generation %}{{ messages[0].content }}{{ last or 'none' }}{%- endgeneration %}"
    assert chat_text(tagged, arguments={"last": ["a", 1]}) == "P['a', 1]"


@pytest.mark.parametrize("name", ["enable_thinkin", "messages", "add_generation_prompt", "tokenize", "strftime_now"])
def test_an_argument_that_a_chat_template_does_not_take_is_refused(name):
    with pytest.raises(ConfigError, match=rf"template.arguments has {name}, which .* it takes enable_thinking$"):
        chat_text(THINKING, arguments={name: False, "enable_thinking": False})
    with pytest.raises(ConfigError, match=r"it takes none$"):
        chat_text(CHAT, arguments={name: False})


NAMED = {"rag": "[rag]{{ messages[0].content }}", "short": "[short]{{ messages[0].content }}"}


def test_several_chat_templates_are_told_apart_by_name():
    assert chat_text(NAMED, name="rag") == "[rag]P"
    assert chat_text({**NAMED, "default": CHAT}) == "[user]P[assistant]"
    assert chat_text({**NAMED, "default": CHAT}, name="short") == "[short]P"
    with pytest.raises(ConfigError, match=r"'rag', 'short', but none is its default; write template.name='rag'"):
        chat_text(NAMED)
    with pytest.raises(ConfigError, match=r"'rag', 'short', but none is called 'tool_use'"):
        chat_text(NAMED, name="tool_use")
    with pytest.raises(ConfigError, match=r"templates 'default', but none is called 'rag'"):
        chat_text(CHAT, name="rag")


DATED = (  # as in Llama 3
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "[{{ date_string }}]" + CHAT
)


def test_the_day_that_a_chat_template_prints_is_the_settings():
    assert chat_text(DATED, date="2024-07-06") == "[06 Jul 2024][user]P[assistant]"
    in_a_macro = "{% macro day(f) %}{{ strftime_now(f) }}{% endmacro %}" + CHAT + "{{ day('%Y-%m-%d %H:%M') }}"
    assert chat_text(in_a_macro, date="2024-07-06").endswith("2024-07-06 00:00")
    assert chat_text(DATED, arguments={"date_string": "now"}) == "[now][user]P[assistant]"
    today = datetime.date.today()
    assert chat_text(DATED) in {f"[{day:%d %b %Y}][user]P[assistant]" for day in (today, datetime.date.today())}


def test_only_some_chat_templates_depend_on_the_day():
    for chat_template, expected in ((DATED, True), (CHAT, False)):
        tokenizer = word_tokenizer(adds_bos=False, chat_template=chat_template)
        assert reads_date(TemplateConfig(type="chat"), tokenizer=tokenizer) == expected
        assert not reads_date(TemplateConfig(), tokenizer=tokenizer)


PARTS = (  # as in templates of multimodal models
    "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endfor %}[assistant]"
)
FIRST_PART = "{% for m in messages %}[{{ m.role }}]{{ m.content[0]['text'] }}{% endfor %}[assistant]"
USER_PARTS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content if m.role == 'system' else m.content[0].text }}{% endfor %}"
    "[assistant]"
)


@pytest.mark.parametrize("chat_template", [CHAT, PARTS, FIRST_PART, USER_PARTS])
def test_templates_get_contents_in_the_form_that_they_print(chat_template):
    assert chat_text(chat_template) == "[user]P[assistant]"
    expected = (
        "[system]You are a helpful assistant.[user]P\nPlease reason step by step, and put your final answer within "
        "\\boxed{}.[assistant]"
    )
    assert chat_text(chat_template, system_prompt="qwen-boxed") == expected


@pytest.mark.parametrize(
    "chat_template",
    [
        "[user][assistant]",
        "{% for m in messages %}{{ m.text }}{% endfor %}",
        "{{ messages[0].content | upper }}",
        "{{ messages[0].content[:4] }}",
        "{{ messages[1].content }}",
    ],
)
def test_a_prompt_without_the_problem_is_refused(chat_template):
    with pytest.raises(ModelError, match=r"leaves the problem out of the prompt.*choose another with template.name"):
        chat_text(chat_template)


def test_a_problem_that_a_chat_template_cuts_or_refuses_is_named():
    cutting = CHAT.replace("m['content']", "m['content'].split('</think>')[-1] | trim")
    assert chat_text(cutting, problem=" one two \n") == "[user]one two[assistant]"
    with pytest.raises(ConfigError, match=r"doesn't take the problem 'one</think>two' as it is, and .*lacks a part"):
        chat_text(cutting, problem="one</think>two")
    short = "{% if messages[0].content | length > 20 %}{{ raise_exception('too long') }}{% endif %}" + CHAT
    with pytest.raises(ConfigError, match=r"doesn't take the problem 'one two .* as it is: too long"):
        chat_text(short, problem="one two " * 9)


def test_a_system_prompt_that_a_chat_template_leaves_out_is_refused():
    silent = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    assert chat_text(silent) == "[user]P"
    with pytest.raises(ConfigError, match=r"leaves out the system prompt.*write template.system_prompt='none'"):
        chat_text(silent, system_prompt="qwen-boxed")


def test_a_chat_template_that_is_not_valid_is_refused():
    with pytest.raises(ModelError, match=r"chat template isn't valid: .*'endfor'"):
        chat_text("{% for m in messages %}{{ m.content }}")


@pytest.mark.parametrize(
    ("name", "value"), [("name", "rag"), ("arguments", {"enable_thinking": False}), ("date", "2026-11-30")]
)
def test_plain_with_settings_of_a_chat_is_a_contradiction(name, value):
    template = TemplateConfig.model_validate({name: value})
    with pytest.raises(ConfigError, match=rf"template\.{name}=.*needs a chat.*leave out template\.{name}"):
        render(task(), template=template, tokenizer=word_tokenizer(adds_bos=False))


def test_demonstrations_end_as_the_chat_template_ends_an_answer():
    """</s> is 1; this chat ends answers with the word `two`, 4."""
    tokenizer = word_tokenizer(adds_bos=False, chat_template="{% for m in messages %}{{ m.content }} two {% endfor %}")
    chat = TemplateConfig(type="chat")
    assert end_token_id(chat, tokenizer=tokenizer, end_token_ids={1, 4}) == 4
    assert end_token_id(chat, tokenizer=tokenizer, end_token_ids={1}) == 1
    assert end_token_id(TemplateConfig(), tokenizer=tokenizer, end_token_ids={1, 4}) == 1
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert end_token_id(chat, tokenizer=tokenizer, end_token_ids={1, 4}) == 1


def test_a_chat_template_that_refuses_every_message_is_not_blamed_on_the_system_prompt():
    with pytest.raises(ModelError, match=r"leaves the problem out of the prompt \(no chat here\); choose another"):
        chat_text("{{ raise_exception('no chat here') }}", system_prompt="qwen-boxed")
