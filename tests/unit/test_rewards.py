"""Each reward against cases worked out by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest
import reasoning_gym

from gvm_ray.config.rewards import (
    ExactRewardConfig,
    FormatRewardConfig,
    FunctionRewardConfig,
    MathVerifyRewardConfig,
    RewardsConfig,
    TruncatedGrading,
)
from gvm_ray.exceptions import ConfigError
from gvm_ray.rewards import CombinedReward, WeightedTerm, create_reward
from gvm_ray.rewards.exact import ExactReward
from gvm_ray.rewards.format import FormatReward
from gvm_ray.rewards.function import FunctionReward
from gvm_ray.rewards.math_verify import MathVerifyReward, can_parse_answer
from gvm_ray.rewards.reasoning_gym import ReasoningGymReward
from gvm_ray.types import Completion, Prompt
from tests import builders
from tests.builders import completion


def prompt(answer: str = "", **features: object) -> Prompt:
    return builders.prompt(answer=answer, features=features)


@pytest.fixture(scope="module")
def math_verify() -> MathVerifyReward:
    return MathVerifyReward()


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("27", "27.0"),
        ("27.0", "027"),
        (r"\frac12", "0.5"),
        ("1/2", r"\dfrac{1}{2}"),
        ("-1./3", r"-\frac13"),
        (r"\left(3,\frac{\pi}{2}\right)", r"(3, \pi/2)"),
        ("$69$,$84$", "84, 69"),
        ("x=5", "5"),
        ("5", "x=5"),
        (r"90^\circ", "90"),
        (r"\$36", "36"),
        ("58,500", "58500"),
        ("073", r"\textbf{(073)}"),  # as AMC and AIME solutions set their answers
        ("902", r"\textbf{(902) }"),
        (r"62.5\%", "0.625"),
        (r"x \in [-2,7]", "[-2,7]"),
        (r"\text{Evelyn}", "Evelyn"),
        ("4.5e33", r"4.5 \times 10^{33}"),
        ("1.24e-8", r"1.24 \cdot 10^{-8}"),
        (r"\sqrt{2}", "1.414213562"),
        ("e^{t}/3", r"\frac{1}{3} e^t"),
        (r"so it is \boxed{1.6} \mathrm{~cm}", "1.60"),
        ("np.arcsin(10/13)", "np.arcsin(10/13)"),  # not understood, but spelled alike
        (r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}", r"\dfrac{1}{3} E_{1} + \dfrac{2}{3} E_{2}."),
    ],
)
def test_math_verify_accepts(math_verify: MathVerifyReward, gold: str, answer: str):
    assert math_verify(prompt(gold), completion(rf"Hence $\boxed{{{answer}}}$.")) == 1.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("27", "28"),
        ("27", "-27"),
        ("073", r"\textbf{(074)}"),
        (r"\frac12", "0.51"),
        ("(2,4)", "(4,2)"),
        ("[2,4]", "(2,4)"),
        ("1,2", "1,2,3"),
        (r"\text{(C)}", "D"),
        (r"\sqrt{2}", "1.41"),
        ("1.24e-8", "5e-9"),  # both round to 0 at six decimals
        ("2.88e-19", r"1.3 \times 10^{-27}"),
        ("4.5e33", "4.5"),
        (r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}", r"\frac{2}{3}"),  # a fraction inside is not the answer
        ("np.arcsin(10/13)", "13"),
        ("5", ""),
        ("", ""),
    ],
)
def test_math_verify_rejects(math_verify: MathVerifyReward, gold: str, answer: str):
    assert math_verify(prompt(gold), completion(rf"Hence $\boxed{{{answer}}}$.")) == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 5.", 1.0),
        (r"The final answer is $\frac{10}{2}$", 1.0),
        ("first 5, then 4", 0.0),
        (r"\boxed{4}, no: \boxed{5}", 1.0),
        (r"\boxed{5}, no: \boxed{4}", 0.0),
        (r"\boxed{4}. The answer is 5.", 0.0),  # what is boxed counts
        ("The answer is 5. " + "So it goes on. " * 200, 0.0),  # not at the end
        ("", 0.0),
    ],
)
def test_math_verify_finds_the_final_answer(math_verify: MathVerifyReward, text: str, value: float):
    assert math_verify(prompt("5"), completion(text)) == value


def test_math_verify_parses_no_endless_answer(math_verify: MathVerifyReward):
    deep = "(" * 20 + "x" + ")" * 20
    assert math_verify(prompt("x"), completion(rf"\boxed{{{deep}}}")) == 0.0
    assert math_verify(prompt(deep), completion(rf"\boxed{{ {deep} }}")) == 1.0
    long = "x+" * 1500 + "1"
    assert math_verify(prompt("1500x + 1"), completion(rf"\boxed{{{long}}}")) == 0.0
    assert math_verify(prompt(long), completion(rf"\boxed{{ {long} }}")) == 1.0


def test_math_verify_joins_boxes_of_one_answer(math_verify: MathVerifyReward):
    assert math_verify(prompt("1,-2"), completion(r"$\boxed{1}$ and $\boxed{-2}$")) == 1.0
    assert math_verify(prompt("-2"), completion(r"$\boxed{1}$ and $\boxed{-2}$")) == 0.0


def test_math_verify_keeps_no_gold_answer_of_another_prompt(math_verify: MathVerifyReward):
    half, third = completion(r"\boxed{0.5}"), completion(r"\boxed{2/6}")
    values = [math_verify(prompt(gold), c) for gold in (r"\frac12", r"\frac13") for c in (half, third)]
    assert values == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("text", ["The answer is 5.", "<answer>5</answer>", "5"])
def test_a_required_box_leaves_other_answers_wrong(text: str):
    reward = create_reward(RewardsConfig(terms=(MathVerifyRewardConfig(require_boxed=True),)))
    assert reward(prompt("5"), completion(text)) == 0.0
    assert reward(prompt("5"), completion(rf"{text} \boxed{{5}}")) == 1.0
    assert MathVerifyReward()(prompt("5"), completion(text)) == 1.0


@pytest.mark.parametrize(
    ("truncated", "boxed", "unboxed"), [("boxed_only", 1.0, 0.0), ("wrong", 0.0, 0.0), ("as_finished", 1.0, 1.0)]
)
def test_a_truncated_response_is_graded_as_configured(truncated: TruncatedGrading, boxed: float, unboxed: float):
    reward = create_reward(RewardsConfig(terms=(MathVerifyRewardConfig(truncated=truncated),)))
    assert reward(prompt("5"), completion(r"\boxed{5}. Let me check", finish_reason="length")) == boxed
    assert reward(prompt("5"), completion("so that we have 5", finish_reason="length")) == unboxed
    assert reward(prompt("5"), completion("so that we have 5")) == 1.0


def test_can_parse_answer():
    for answer in (
        "27",
        r"\frac12",
        r"\left(3,\frac{\pi}{2}\right)",
        r"hence \boxed{1.6} cm",
        "$(1,1), (3,2)$",
        "1e-5",
    ):
        assert can_parse_answer(answer), answer
    for answer in ("", "np.arcsin(10/13)", "$t(0,4]$"):
        assert not can_parse_answer(answer), answer


def test_exact():
    reward = ExactReward()
    assert reward(prompt("x + 1"), completion(r"\boxed{ x+1 }")) == 1.0
    assert reward(prompt(r"so \boxed{4}"), completion(r"\boxed{4}")) == 1.0
    assert reward(prompt("4"), completion(r"\boxed{4.0}")) == 0.0
    assert reward(prompt("4"), completion("4")) == 0.0
    assert reward(prompt(""), completion(r"\boxed{}")) == 0.0


def test_format():
    reward = FormatReward(r"<think>.*</think>\s*\\boxed\{")
    assert reward(prompt(), completion("<think>a\nb</think>\n\\boxed{1}")) == 1.0
    assert reward(prompt(), completion(r"\boxed{1}")) == 0.0


@pytest.mark.parametrize("content", ["4", r"\frac{1}{2}", "x^{2}", r"\frac{\sqrt{\frac{1}{2}}}{x^{2^{3}}}", r"\{1\}"])
def test_the_default_format_is_a_box_of_any_depth(content: str):
    reward = create_reward(RewardsConfig(terms=(FormatRewardConfig(),)))
    assert reward(prompt(), completion(rf"so $\boxed{{{content}}}$")) == 1.0
    assert reward(prompt(), completion(rf"so $\boxed{{{content}$")) == 0.0


@pytest.mark.parametrize(
    "content",
    [
        "",
        " ",
        "\n",
        "~",
        r"\,",
        r"\ \quad",
        "{}",
        r"\text{ }",
        r"\boxed{}",
        r"\hspace{1cm}",
        r"\phantom{5}",
        r"\(\)",
        "\u200b",
    ],
)
def test_a_blank_box_has_not_the_format(content: str):
    assert FormatReward()(prompt(), completion(rf"so $\boxed{{{content}}}$")) == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"<think>\boxed{5}</think> 5", 0.0),
        (r"<reasoning>\boxed{5}", 0.0),
        (r"<|begin_of_thought|>\boxed{5}<|end_of_thought|> 5", 0.0),
        (r"<think>\boxed{6}</think> \boxed{5}", 1.0),
        (r"so \boxed{...}", 0.0),
        (r"so \boxed{?}", 0.0),
        (r"so \boxed{\text{yes?}}", 1.0),
    ],
)
def test_a_box_in_thinking_or_of_dots_has_not_the_format(text: str, value: float):
    assert FormatReward()(prompt(), completion(text)) == value


def test_a_config_file_with_the_former_default_pattern_still_loads():
    term = FormatRewardConfig.model_validate({"type": "format", "pattern": r"\\boxed\{[^{}]+\}"})
    assert create_reward(RewardsConfig(terms=(term,)))(prompt(), completion(r"\boxed{4}")) == 1.0


def test_function_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_reward.py").write_text(
        "class Grader:\n    @staticmethod\n    def grade(prompt, completion):\n"
        "        return len(completion.text) / len(prompt.answer)\n"
        "LIMIT = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    reward = FunctionReward("my_reward:Grader.grade")
    assert reward(prompt("ab"), completion("abc")) == 1.5
    with pytest.raises(ConfigError, match=r"my_reward:LIMIT.*is a int"):
        FunctionReward("my_reward:LIMIT")
    with pytest.raises(ConfigError, match=r"my_reward:missing.*can't be imported.*AttributeError"):
        FunctionReward("my_reward:missing")


def test_function_that_cannot_be_used():
    with pytest.raises(ConfigError, match=r"no_such_module:f.*ModuleNotFoundError.*module:name"):
        create_reward(RewardsConfig(terms=(FunctionRewardConfig(path="no_such_module:f"),)))
    with pytest.raises(ValueError, match="returned nan"):
        FunctionReward("tests.faulty_rewards:faulty")(prompt(), completion("nan"))


def test_a_users_module_is_imported_only_where_a_term_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "marked_reward.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('imported').touch()\n"
        "def score(prompt, completion):\n    return 2.5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    create_reward(RewardsConfig(terms=(ExactRewardConfig(),)))
    named = RewardsConfig(terms=(FunctionRewardConfig(path="marked_reward:score"),))
    assert not (tmp_path / "imported").exists()  # nor does reading the settings import it
    assert create_reward(named)(prompt(), completion("")) == 2.5
    assert (tmp_path / "imported").exists()


def test_reasoning_gym_uses_the_tasks_scorer():
    entry = {"task": "chain_sum", **reasoning_gym.create_dataset("chain_sum", size=1, seed=3)[0]}
    reward, gold = ReasoningGymReward(), str(entry["answer"])
    asked = prompt(gold, reasoning_gym=entry)
    assert reward(asked, completion(f"thinking ... <answer>{gold}</answer>")) == 1.0
    assert reward(asked, completion(rf"thinking ... \boxed{{{gold}}}")) == 1.0
    assert reward(asked, completion(f" {gold} ")) == 1.0
    assert reward(asked, completion(f"<answer>{int(gold) + 1}</answer> {gold}")) < 1.0
    with pytest.raises(ValueError, match="no feature 'reasoning_gym'"):
        reward(prompt(gold), completion(gold))


@pytest.mark.parametrize("task", ["prime_factorization", "boxnet", "game_of_life"])
def test_what_a_reasoning_gym_scorer_cannot_read_is_malformed_and_worth_nothing(task: str):
    entry = {"task": task, **reasoning_gym.create_dataset(task, size=1, seed=1)[0]}
    reward = CombinedReward([WeightedTerm(name="reasoning_gym", weight=1.0, reward=ReasoningGymReward())])
    asked = prompt(reasoning_gym=entry)
    texts = ["I don't know", "0", "{}", "[1, 2", "<<<"]
    terms = [reward.terms(asked, completion(text)) for text in texts]
    malformed = [term["reasoning_gym"] for term in terms if term["reasoning_gym_malformed"]]
    assert malformed
    assert set(malformed) == {0.0}
    assert all(np.isfinite(term["reasoning_gym"]) for term in terms)


def test_a_reasoning_gym_scorer_that_fails_on_its_gold_answer_leaves_samples_unscored(monkeypatch: pytest.MonkeyPatch):
    def broken(answer: str, entry: dict[str, object]) -> float:
        raise KeyError("no such column")

    monkeypatch.setattr(reasoning_gym, "get_score_answer_fn", lambda task: broken)
    entry = {"task": "chain_sum", "question": "2 + 2 =", "answer": "4", "metadata": {}}
    with pytest.raises(KeyError, match="no such column"):
        ReasoningGymReward()(prompt("4", reasoning_gym=entry), completion("5"))


def test_combined_is_the_weighted_sum_and_names_are_unique():
    reward = create_reward(
        RewardsConfig(
            terms=(
                ExactRewardConfig(weight=2.0),
                FormatRewardConfig(weight=0.5),
                FormatRewardConfig(weight=-1.0, pattern="wait"),
            )
        )
    )
    assert reward.terms(prompt("4"), completion(r"wait: \boxed{4}")) == {"exact": 1.0, "format": 1.0, "format_2": 1.0}
    assert reward(prompt("4"), completion(r"wait: \boxed{4}")) == 1.5
    assert reward(prompt("4"), completion(r"\boxed{5}")) == 0.5


def test_reward_and_terms_of_one_response_cost_one_scoring():
    calls = []

    def count(prompt: Prompt, completion: Completion) -> float:
        calls.append(completion.text)
        return float(len(completion.text))

    reward = CombinedReward([WeightedTerm(name="count", weight=1.0, reward=count)])
    asked, first, second = prompt(), completion("a"), completion("bb")
    assert reward(asked, first) == 1.0
    assert reward.terms(asked, first) == {"count": 1.0}
    assert reward.terms(asked, second) == {"count": 2.0}
    assert reward(asked, first) == 1.0
    assert calls == ["a", "bb", "a"]


def test_the_default_reward_is_math_verify():
    assert [term.type for term in RewardsConfig().terms] == ["math_verify"]
    reward = create_reward(RewardsConfig(terms=(MathVerifyRewardConfig(weight=0.5),)))
    assert reward(prompt(r"\frac12"), completion(r"\boxed{0.5}")) == 0.5
