"""What stands between a source and the allocator: duplicates, overlap and over-long prompts leave, and are reported."""

import json
from collections import Counter

import pytest

from gvm_ray.config.prompts import (
    ArithmeticSourceConfig,
    ChainLevelConfig,
    FileSourceConfig,
    PromptsConfig,
    TemplateConfig,
)
from gvm_ray.exceptions import ConfigError, DataError
from gvm_ray.learner.scratch_model import build_character_tokenizer
from gvm_ray.tasks import demonstrations, load_prompts
from gvm_ray.tasks.demonstrations import check_rationales


@pytest.fixture(scope="module")
def tokenizer():
    return build_character_tokenizer()


def source(path, *rows, rationale_field=None):
    """A JSONL source of (id, problem, answer[, rationale]) rows."""
    names = ("id", "problem", "answer", "rationale")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=False))) + "\n" for row in rows))
    return FileSourceConfig(path=str(path), id_field="id", rationale_field=rationale_field)


def test_every_prompt_that_leaves_is_counted_and_named(tmp_path, tokenizer):
    train = source(
        tmp_path / "train.jsonl",
        ("a", "1+1=", "2"),
        ("b", "1+2=", "3"),
        ("a", "1+1=", "2"),  # an earlier one again
        ("c", " 1+1= ", "2"),  # problem of an earlier one
        ("d", "held  out\n", "5"),  # in the evaluation, spaces aside
        ("e", "1+2+3+4+5+6=", "21"),  # 12 tokens
        ("f", "1+x=", "?"),
    )
    evaluation = source(tmp_path / "eval.jsonl", ("z", "held out", "5"), ("y", "1+2+3+4+5+7=", "22"))
    config = PromptsConfig(train=train, eval=evaluation, max_tokens=11)
    sets = load_prompts(config, tokenizer, verify_answer=str.isdigit)
    assert [prompt.prompt_id for prompt in sets.train] == ["a", "b", "f"]
    assert [prompt.prompt_id for prompt in sets.eval] == ["z"]
    assert [tokenizer.decode(prompt.token_ids) for prompt in sets.train] == ["1+1=", "1+2=", "1+x="]
    assert [prompt.answer for prompt in sets.train] == ["2", "3", "?"]
    report = sets.report.train
    assert (report.loaded, report.kept) == (7, 3)
    assert report.duplicate_ids == ("a", "c")
    assert report.overlapping_ids == ("d",)
    assert report.too_long_ids == ("e",)
    assert report.unparsable_answer_ids == ("f",)
    assert sets.report.lines() == [
        "training: 3 of 7 prompts",
        "  2 dropped as duplicates: a, c",
        "  1 dropped because the evaluation has them too: d",
        "  1 dropped as longer than prompts.max_tokens: e",
        "  1 kept, but their gold answer can't be parsed: f",
        "evaluation: 1 of 2 prompts",
        "  1 dropped as longer than prompts.max_tokens: y",
    ]


def test_long_lists_of_ids_are_cut_in_print_but_not_in_the_report(tmp_path, tokenizer):
    train = source(tmp_path / "train.jsonl", *[("same", "1=", "1") for _ in range(9)])
    sets = load_prompts(PromptsConfig(train=train), tokenizer)
    assert sets.eval == ()
    assert len(sets.report.train.duplicate_ids) == 8
    assert sets.report.lines()[1].endswith("same, same, same, same, same and 3 more")


def test_no_prompt_left_says_why(tmp_path, tokenizer):
    train = source(tmp_path / "train.jsonl", ("a", "1+1=", "2"))
    with pytest.raises(DataError, match=r"prompts.train has no prompt left(.|\n)*longer.*(.|\n)*write a larger"):
        load_prompts(PromptsConfig(train=train, max_tokens=3), tokenizer)
    with pytest.raises(DataError, match=r"^benchmark 'sums' has no prompt left:\nbenchmark 'sums': 0 of 1 prompts"):
        load_prompts(PromptsConfig(train=train, max_tokens=3), tokenizer, train_name="benchmark 'sums'")
    with pytest.raises(DataError, match=r"prompts.train has no prompt left(.|\n)*the evaluation has them too: a"):
        load_prompts(PromptsConfig(train=train, eval=train), tokenizer)


def test_a_contradictory_template_is_found_before_the_data_is_read(tokenizer):
    config = PromptsConfig(
        train=FileSourceConfig(path="nowhere.jsonl"), template=TemplateConfig(system_prompt="qwen-boxed")
    )
    with pytest.raises(ConfigError, match="template"):
        load_prompts(config, tokenizer)


def test_rationales_become_demonstrations_that_end(tmp_path, tokenizer):
    train = source(
        tmp_path / "train.jsonl",
        ("a", "1+1=", "2", "\\boxed{2}"),
        ("b", "1+2=", "3", "3 \\boxed{3}"),
        ("c", "1+3=", "4", ""),
        ("d", "1+4=", "5", "held out"),
        ("e", "1+1+1+1=", "4", "too long"),
        rationale_field="rationale",
    )
    evaluation = source(tmp_path / "eval.jsonl", ("z", "1+4=", "5"))
    config = PromptsConfig(train=train, eval=evaluation, max_tokens=4)
    shown = demonstrations(config, tokenizer, num=7, seed=0)
    texts = Counter((tokenizer.decode(d.prompt_token_ids), tokenizer.decode(d.response_token_ids)) for d in shown)
    assert set(texts) == {("1+1=", "\\boxed{2}<|endoftext|>"), ("1+2=", "3 \\boxed{3}<|endoftext|>")}
    assert sorted(texts.values()) == [3, 4]
    assert all(d.response_token_ids[-1] == tokenizer.eos_token_id for d in shown)


def test_demonstrations_of_a_chat_end_as_its_answers_do(tmp_path, tokenizer):
    """This chat ends every message with a line break, which the model's files may name as an end of a response."""
    line_break = tokenizer("\n")["input_ids"][0]
    train = source(tmp_path / "train.jsonl", ("a", "1+1=", "2", "\\boxed{2}"), rationale_field="rationale")
    config = PromptsConfig(train=train, template=TemplateConfig(type="chat"))
    for end_token_ids, end in (
        ({tokenizer.eos_token_id, line_break}, "\n"),
        ({tokenizer.eos_token_id}, "<|endoftext|>"),
    ):
        (shown,) = demonstrations(config, tokenizer, num=1, seed=0, end_token_ids=end_token_ids)
        assert tokenizer.decode(shown.response_token_ids) == "\\boxed{2}" + end


def test_a_source_without_rationales_gives_no_demonstrations(tmp_path, tokenizer):
    train = source(tmp_path / "train.jsonl", ("a", "1+1=", "2"))
    with pytest.raises(DataError, match=r"0 of its tasks have a reference rationale.*write rationale_field"):
        demonstrations(PromptsConfig(train=train), tokenizer, num=1, seed=0)


def test_rationales_without_their_answer_are_counted_and_named(tmp_path, tokenizer):
    rows = [
        ("right", "1+1=", "2", "1 + 1 = \\boxed{2}"),
        ("wrong", "1+2=", "3", "1 + 2 = \\boxed{4}"),
        ("inside", "1+3=", "4", "\\boxed{14}"),  # 4 is only a digit of another number
        ("decimal", "1+4=", "5", "so 5.0 it is"),
        ("thousands", "999+1=", "1000", "$1,000 in all"),
        ("fraction", "1/2=", "\\frac12", "It is $ \\frac 12 $."),
        ("unfinished", "2+2=", "4", "2 + 2 ="),
        ("no rationale", "3+3=", "6", None),
        ("tests", "print 1", "assert " * 40, "print(1)"),  # of a program: nothing that a response repeats
        ("held out", "1+5=", "6", "wrong, but never shown"),
    ]
    train = source(tmp_path / "train.jsonl", *rows, rationale_field="rationale")
    evaluation = source(tmp_path / "eval.jsonl", ("z", "1+5=", "6"))
    report = check_rationales(PromptsConfig(train=train, eval=evaluation))
    assert report.num == 8
    assert report.without_answer_ids == ("wrong", "inside", "unfinished")
    first, second = report.lines("warm start")
    assert first == "warm start: 8 rationales to learn from"
    assert "3 don't give the gold answer" in second
    assert "wrong, inside, unfinished; correct them" in second


def test_arithmetic_demonstrations_keep_off_the_evaluation(tokenizer):
    levels = (ChainLevelConfig(num_operations=1, operator="+"),)
    # Evaluated on problems of the training split too: the demonstrations must still not show them.
    config = PromptsConfig(
        train=ArithmeticSourceConfig(levels=levels, size=10),
        eval=ArithmeticSourceConfig(levels=levels, size=20, seed=1),
    )
    evaluated = {prompt.text for prompt in load_prompts(config, tokenizer).eval}
    shown = demonstrations(config, tokenizer, num=300, seed=0)
    assert len(shown) == 300
    assert not evaluated & {tokenizer.decode(d.prompt_token_ids) for d in shown}


def test_demonstrations_depend_on_the_seed_alone(tokenizer):
    config = PromptsConfig(train=ArithmeticSourceConfig())
    drawn = [
        [d.response_token_ids.tolist() for d in demonstrations(config, tokenizer, num=20, seed=s)] for s in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
