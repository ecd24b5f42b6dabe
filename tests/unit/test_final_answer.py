# ruff: noqa: RUF001 - look-alike signs are what some cases are about
"""The final answer of a response: its boxes, and what is no answer."""

import pytest

from gvm_ray.maths.final_answer import final_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"$\boxed{1}\quad\text{and}\quad\boxed{2}$", "1, 2"),
        (r"\(\boxed{1}\) and \(\boxed{2}\)", "1, 2"),
        (r"\boxed{1}; \boxed{2}", "1, 2"),
        (r"\boxed{1}\boxed{2}", "1, 2"),
        ("\\boxed{1}\n\n\\boxed{2}", "1, 2"),
        (r"**\boxed{1}** / **\boxed{2}**", "1, 2"),
        (r"\boxed{1}\hspace{1cm}\text{or}~\boxed{2}", "1, 2"),
        (r"\boxed{1}\hfill\textbf{or}\thinspace\boxed{2}", "1, 2"),
        (r"\boxed{1}，“\boxed{2}”", "1, 2"),
        (r"\boxed{1} &nbsp;<br> • \boxed{2}", "1, 2"),
        (r"\boxed{5} and \boxed{5}", "5"),
        ("1. \\boxed{6}\n2. \\boxed{5}", "6, 5"),
        (r"(a) \boxed{6} (b) \boxed{5}", "6, 5"),
        ("i) \\boxed{6}\nii) \\boxed{5}", "6, 5"),
        ("- \\boxed{6}\n- \\boxed{5}", "6, 5"),
        (r"\item \boxed{6} \item \boxed{5}", "6, 5"),
        ("**Answer 1:** \\boxed{6}\n**Answer 2:** \\boxed{5}", "6, 5"),
        (r"\boxed{6} or maybe \boxed{5}", "6, 5"),
        (r"\boxed{6} vs. \boxed{5}", "6, 5"),
        ("\\boxed{6}\n\n---\n\n\\boxed{5}", "6, 5"),
        (r"$\boxed{6} \Rightarrow \boxed{5}$", "6, 5"),
        (r"$\boxed{6}$ → $\boxed{5}$", "6, 5"),
        (r"\boxed{6} \cup \boxed{5}", "6, 5"),
        (r"\boxed{6} \mid \boxed{5}", "6, 5"),
        (r"\boxed{5}\boxed(6)", "5, 6"),
        (r"\boxed{6} \boxed{} \boxed{5}", "6, 5"),
        ("Step 1: \\boxed{6}\nStep 2: \\boxed{5}", "5"),
        ("\\boxed{6}\n\nFinal answer: \\boxed{5}", "5"),
        (r"\boxed{2} + \boxed{3} = \boxed{5}", "5"),
        (r"There are $\boxed{6}$ pears. 2. Adding the apples gives \boxed{5}", "5"),
        (r"\boxed{5}, so the box is \boxed{...}", "5"),
        (r"\boxed{?}", None),
        (r"\boxed{\ldots}", None),
        (r"\boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{\boxed{6} 5}", r"\boxed{6} 5"),
        (r"\boxed{5}, and I was asked for a \boxed{}", "5"),
        (r"\boxed(5)", "5"),
        (r"\box{5}", "5"),
        ("\boxed{5}", "5"),  # a backspace
        (r"<think>\boxed{6}</think> \boxed{5}", "5"),
        (r"so \boxed{6}</think> \boxed{5}", "5"),
        (r"<think>\boxed{5}", None),
        (r"<think>\boxed{5}</think>", None),
        (r"so \boxed{5}</think>", None),
        (r"<think >\boxed{5}</think >", None),
        (r'<think type="long">\boxed{6}</think> \boxed{5}', "5"),
        (r"<reasoning>\boxed{5}</reasoning>", None),
        (r"<thought>\boxed{6}</thought> \boxed{5}", "5"),
        (r"<|begin_of_thought|>\boxed{5}<|end_of_thought|>", None),
        (r"\boxed{6}<|end_of_thought|> \boxed{5}", "5"),
        (r"[THINK]\boxed{6}[/THINK] \boxed{5}", "5"),
        (r"◁think▷\boxed{6}◁/think▷ \boxed{5}", "5"),
        (r"I think \boxed{5}, by this reasoning", "5"),
        ("<answer>6</answer> or <answer>5</answer>", "5"),
        ("The answer is **5**.", "5"),
        ("The answer is (1, 2).", "(1, 2)"),
        ("The answer is 5 or 6.", "5 or 6"),
        ("The answer is not 5.", None),
        ("The answer is not 5 but 6.", "6"),
        ("It isn't clear, but there are 7 apples.", "7"),
        ("I don't know", None),
    ],
)
def test_final_answer(text: str, answer: str | None):
    found = final_answer(text)
    assert (None if found is None else found.text) == answer
