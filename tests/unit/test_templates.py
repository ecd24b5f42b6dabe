"""Rendering: exactly one beginning-of-sequence token, the wordings to the letter, contradictions refused."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gvm_ray.config.prompts import TemplateConfig
from gvm_ray.envs.task import Task
from gvm_ray.envs.templates import render, render_all
from gvm_ray.exceptions import ConfigError, ModelError

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
