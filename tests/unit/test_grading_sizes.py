"""Answers that would take long to work out are wrong before they are worked out; others are compared."""

import pytest

from gvm_ray.rewards.exact_values import TooLarge, check_sizes
from gvm_ray.rewards.math_verify import equal_answers, parse_formula


@pytest.mark.parametrize(
    "formula",
    [
        r"\pi^{\pi^{20}}",
        "e^{e^{20}}",
        r"\int_0^\infty e^{-x^2} dx",
        r"\int_0^1 x^x dx",
        r"\sum_{n=1}^{\infty}\frac1{n^3}",
        r"\sum_{n=1}^{1000000}\frac1n",
        r"\sum_{i=1}^{100}\sum_{j=1}^{100} ij",
        r"\prod_{n=1}^{\infty}(1+\frac{1}{n^2})",
        r"\lim_{x\to 0}\frac{\sin x}{x}",
        "(x+1)^{1000}",
        "(x+y+z)^{100}",
        r"(1+\sqrt2)^{1000}",
        "x^{10^9}",
        r"\cosh(\cosh(\cosh(\cosh(9))))",
        r"\lfloor\pi^{\pi^{20}}\rfloor",
        r"\begin{pmatrix}(x+1)^{1000}\\1\end{pmatrix}",
    ],
)
def test_what_may_never_be_finished_is_not_begun(formula: str):
    value = parse_formula(formula)
    assert value is not None
    with pytest.raises(TooLarge):
        check_sizes(value)
    assert not equal_answers("5", formula)
    assert equal_answers(formula, f" {formula} ")


@pytest.mark.parametrize(
    "formula",
    [
        r"\binom{1000000000}{500000000}",
        r"\gcd(10^{99999999},3)",
        r"\gcd(9^{9^{9^9}},3)",
        r"[0,9^{9^{9^{9}}}]",
        r"\pi^{\pi^{\pi^{\pi^\pi}}}",
        "e^{e^{e^{e^{e}}}}",
    ],
)
def test_what_the_parser_would_work_out_is_not_parsed(formula: str):
    assert parse_formula(formula) is None
    assert not equal_answers("5", formula)
    assert equal_answers(formula, f" {formula} ")


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("(x+1)^3", "x^3+3x^2+3x+1", True),
        ("(x+1)^3", "x^3+3x^2+3x+2", False),
        ("e^{e^2}", r"\exp(e^2)", True),
        ("2598960", r"\binom{52}{5}", True),
        ("6", r"\gcd(12,18)", True),
        ("1<x<2", "2<2x<4", True),
        ("0<x<1", r"1<x^{1000}+x+1<2", False),
        ("5", r"\begin{pmatrix}1&1\\1&x\end{pmatrix}^{1000}", False),
        ("x^{2024}", r"x^{2023}\cdot x", True),
        (r"\frac{x^{100}-1}{x-1}", r"\frac{1-x^{100}}{1-x}", True),
        (r"\frac{137}{60}", r"\sum_{n=1}^{5}\frac1n", True),
        (r"\frac{137}{60}", r"\sum_{n=1}^{6}\frac1n", False),
        ("120", r"\prod_{n=1}^{5} n", True),
        ("5", r"\frac{5x}{x}", True),
        ("5", r"\frac{x^{1000}-1}{x-1}", False),
        (r"\pi^{\pi^\pi}", r"\pi^{\pi^{\pi}+1}", False),
    ],
)
def test_what_can_be_finished_is_compared(gold: str, answer: str, equal: bool):
    assert equal_answers(gold, answer) == equal
