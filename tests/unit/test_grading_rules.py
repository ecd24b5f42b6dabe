# ruff: noqa: RUF001 - look-alike signs are what the cases are about
"""Every rule by which answers are rewritten or decided, and exact comparison: neighbours of each kind, both ways."""

from collections.abc import Sequence

import pytest

from gvm_ray.rewards.answer_pairs import PAIR_RULES, decided
from gvm_ray.rewards.answer_rules import RULES, rewritten
from gvm_ray.rewards.math_verify import can_parse_answer, equal_answers

# name of the rule -> answers that it rewrites, and what they say; then answers that say something else.
REWRITTEN = {
    "Unicode": ([("-5", "−5"), (r"2\sqrt{2}", "2√2"), ("x^2", "x²"), ("3/2", "1½"), (r"\pi", "π")], [("x^2", "x2")]),
    "dollars": ([("13", "$13$"), ("13", r"\(13\)"), ("x+1", "$x$+$1$")], [("13", "$14$")]),
    "boxes": ([("13", r"\fbox{13}"), ("13", r"\boxed{13}"), ("x+1", r"\framebox{x}+1")], [("13", r"\fbox{14}")]),
    "text fonts": ([("13", r"\textsf{13}"), ("13", r"\hbox{13}"), ("5", r"5\mathsf{ cm}")], [("13", r"\textsf{14}")]),
    "decorations": (
        [("13", r"\underline{13}"), ("13", r"\color{red}{13}"), ("13", r"\operatorname{13}"), ("13", r"\emph{13}")],
        [("13", r"\color{red}{14}")],
    ),
    "font switches": ([("13", r"\Large 13"), ("13", r"{\bf 13}"), ("1/2", r"\displaystyle\frac12")], [("1", r"\bf 2")]),
    "bracket sizes": ([("(1,2)", r"\bigl(1,2\bigr)"), ("[0,1]", r"\Big[0,1\Big]"), ("3", r"\left(3\right)")], []),
    "bracketed arrays": (
        [
            (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\left[\begin{array}{cc}1&2\\3&4\end{array}\right]"),
            (r"\left[\begin{array}{c}1\\3\end{array}\right]", r"\begin{bmatrix}1\\3\end{bmatrix}"),
            (r"\begin{pmatrix}1&2\end{pmatrix}", r"A = \left[\begin{matrix}1&2\end{matrix}\right]"),
        ],
        [(r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\left[\begin{array}{cc}1&2\\3&5\end{array}\right]")],
    ),
    "phantoms": (
        [("13", r"\phantom{0}13"), ("1234567", r"1,\!234,\!567"), ("13", r"\text{ }13")],
        [("13", r"\phantom{1}3")],
    ),
    "spaces": ([("5", r"5~\mathrm{cm}"), ("(1,2)", r"(1,\ 2)"), ("5", r"\quad 5\;")], [("(1,2)", r"(1,~3)")]),
    "text numbers": (
        [("73", r"\text{(073)}"), ("1.5", r"\text{1.5}"), ("13", r"\textbf{13}")],
        [("73", r"\text{(074)}")],
    ),
    "fractions": ([("1/2", r"\tfrac12"), ("2/3", r"\cfrac{2}{3}"), ("3/4", r"\dfrac34")], [("1/2", r"\tfrac13")]),
    "beginnings": (
        [("13", "= 13"), ("13", r"\approx 13"), ("13", r"\text{Answer: } 13"), ("13", "answer: 13")],
        [("3", "= -3")],
    ),
    "endings": ([("13", "13,"), ("13", r"13\\"), ("13", r"13 \checkmark"), ("10", "10。")], [("13", "13!")]),
    "ASCII signs": (
        [("x^2", "x**2"), (r"x \le 2", "x<=2"), (r"x \ne 2", "x!=2")],
        [("x^2", "x**3"), (r"x \ge 2", "x<=2")],
    ),
    "infinity": (
        [(r"\infty", "∞"), (r"\infty", r"\text{Infinity}"), (r"\infty", r"+\infty"), (r"(0,\infty)", "(0,inf)")],
        [(r"\infty", r"-\infty"), (r"\infty", r"-\text{infinity}"), (r"\infty", r"\text{infinitely many}")],
    ),
    "minus infinity": (
        [(r"-\infty", r"\text{negative infinity}"), (r"-\infty", "minus infinity"), (r"-\infty", "-∞")],
        [(r"\infty", r"\text{minus infinity}")],
    ),
    "names": ([(r"2\pi", "2pi"), ("2\\pi r", "2pi r"), (r"\theta", "theta")], [(r"2\pi", "3pi")]),
    "roots": (
        [(r"\sqrt{3}", "sqrt(3)"), (r"2\sqrt{3}", r"2\sqrt(3)"), (r"\frac{\sqrt{5}}{2}", "sqrt(5)/2")],
        [(r"\sqrt{3}", "sqrt(5)")],
    ),
    "e-notation": ([("1e-8", "10^{-8}"), ("3e8", "300000000"), ("1.5e3", "1500")], [("1e-8", "2e-8")]),
    "bare points": ([("1/3", "1./3"), ("5", "5."), ("-1./3", r"-\frac13")], [("1/3", "1./4")]),
    "repeating decimals": (
        [("1/3", r"0.\overline{3}"), ("1/6", r"0.1\bar{6}"), ("4/33", r"0.\overline{12}")],
        [("1/7", r"0.1\overline{6}"), ("0.3", r"0.\overline{3}")],
    ),
    "comma groups": ([("1234", "1{,}234"), ("58500", "58{,}500"), ("1000000", "1{,}000{,}000")], [("1234", "1{,}235")]),
    "space groups": ([("1000", "1 000"), ("1234567", r"1\,234\,567"), ("12000", "12~000")], [("1000", "1 001")]),
    "mixed numbers": ([("3/2", "1 1/2"), ("9/4", "2 1/4"), ("1.5", "1 1/2")], [("1/2", "1 1/2"), ("11/2", "1 1/2")]),
    "numbers apart": (
        [("1,2,3", "1 2 3"), ("1,2", "1 2"), (r"\log_2 8", "3")],
        [("13", "1 3"), ("12", "1 2"), ("123", "1 2 3")],
    ),
    "degrees": (
        [("45", "45°"), ("45°", r"45^{\circ}"), ("45", r"45\text{ degrees}"), (r"45^\circ", r"\frac{\pi}{4}")],
        [("45°", "46°"), (r"\frac{\pi}{4}", "45")],
    ),
    "temperatures": ([("30", r"30^\circ\text{C}"), ("5", r"5^\circ \mathrm{F}"), ("5", "5°C")], [("30", "31°C")]),
    "radians": (
        [("1/2", r"\sin 30^\circ"), ("1/2", r"\cos(60^{\circ})"), ("1", r"\tan 45°")],
        [(r"\sin 30^\circ", r"\sin 60^\circ"), (r"\sin 30^\circ", r"\sin 30")],
    ),
    "currencies": ([("5", "€5"), ("5", r"\pounds 5"), ("5", "5¢"), ("5", r"\text{Rs. } 5")], [("5", "€6")]),
    "unit symbols": (
        [("5", r"5\,\Omega"), ("5", r"5 \frac{\text{m}}{\text{s}}"), ("5", r"5\,\mu\Omega")],
        [("5", r"6\,\Omega")],
    ),
    "ordinals": ([("13", r"13^{\text{th}}"), ("3", "3^{rd}"), ("21", r"21^\text{st}")], [("13", r"14^{\text{th}}")]),
    "bases": (
        [("1011_2", r"1011_{\text{two}}"), ("132_4", "(132)_{4}"), ("2A_{16}", "2a_{16}"), ("132_4", "132")],
        [("1011_2", r"1011_{\text{three}}")],
    ),
    "bases in words": (
        [("101_2", r"101\text{ (base 2)}"), ("101_2", r"101\text{ base }2"), ("132_4", r"132\text{ in base four}")],
        [(r"101\text{ base }2", r"101\text{ base }3")],
    ),
    "and": (
        [("A,B", r"\text{A and B}"), ("1,2", r"1 \text{ or } 2"), ("3,4", r"\text{3 and 4}")],
        [("A,B", r"\text{A and C}")],
    ),
    "and between quantities": (
        [("2,3", r"2\text{ s or }3\text{ s}"), ("2,3", r"2\text{ cm and }3")],
        [("2", r"2\text{ s or }3\text{ s}"), ("2", r"\frac{4}{2}\text{ m and }\sqrt{3}\text{ m}")],
    ),
    "several units": (
        [("2,3", r"2\text{ cm}, 3\text{ cm}"), ("(2,3)", r"(2\text{ cm}, 3\text{ cm}^2)")],
        [
            ("2", r"2\text{ cm}, 3\text{ cm}"),
            ("2", r"2\text{ cm}\cdot 3\text{ cm}"),
            ("2", r"2\text{ red}, 3\text{ blue}"),
        ],
    ),
    "quantifiers": (
        [
            (r"2k\pi", r"2\pi k, k \in \mathbb{Z}"),
            ("3n", r"3n \text{ where } n \in \mathbb{N}"),
            ("3n", "3n, n is an integer"),
        ],
        [(r"2k\pi, k\in\mathbb{Z}", r"3k\pi")],
    ),
    "vectors": (
        [("(1,2)", r"\langle 1,2\rangle"), ("(1,2,3)", "⟨1,2,3⟩"), ("(0,1)", r"\left\langle 0,1\right\rangle")],
        [("(1,2)", r"\langle 2,1\rangle")],
    ),
    "empty sets": (
        [(r"\emptyset", "∅"), (r"\emptyset", r"\varnothing"), (r"\emptyset", r"\{\}")],
        [(r"\emptyset", "0")],
    ),
    "groups": ([("13", "{13}"), ("Evelyn", "{Evelyn}"), ("x+1", "{x+1}")], [("13", "{14}")]),
}

# name of the rule -> answers that are the same, and answers that differ though the library finds them equal.
DECIDED = {
    "words": (
        [("yes", r"\text{Yes}"), ("ellipse", r"\text{an ellipse}"), ("xy", "yx"), ("no", r"\text{No.}")],
        [("stop", "post"), ("CABD", "ABCD"), (r"\text{left}", "felt"), ("stop", "(post)"), ("5", "five"), ("no", "on")],
    ),
    "bases": (
        [("4343_6", "4343_{6}"), ("11111_2", "11111"), ("1A_{16}", "1A_{16}")],
        [("101_2", "101_3"), ("12_{5}", "7"), ("31", "11111_2"), ("101_2+1_2", "101_3+1_3")],
    ),
    "ratios": (
        [
            ("2:3:4", "4:6:8"),
            ("1:2", r"\frac12"),
            ("10:30", "10:30"),
            (r"10:30 \text{ a.m.}", "10:30"),
            ("8:30", "08:30"),
        ],
        [("12:00", "11:00"), ("3:45", "1:15"), ("1:2:3", "1:6"), (r"\frac16", "2:3:4"), ("10:30", r"\frac13")],
    ),
    "orders of letters": (
        [("B,C", "C,B"), ("A,B", r"A \text{ and } B"), ("C,A,B", "C,A,B")],
        [("C,A,B,D", "A,B,C,D"), ("B,A", "A,B"), ("A,C", "A,D")],
    ),
    "names of points": (
        [(r"\triangle ABC", r"\triangle ABC"), ("3ABC", "3 ABC")],
        [(r"\triangle ABC", r"\triangle CBA"), (r"\angle ABC", r"\angle BAC"), ("3ABC", "3CBA")],
    ),
    "qualifiers": (
        [(r"5\text{ or more}", r"5\text{ or more}"), ("5", r"5\text{ cm}"), ("5", r"5\text{ more apples}")],
        [
            ("5", r"5\text{ or more}"),
            ("5", r"5\text{(maybe 6)}"),
            ("5", r"5\text{ is wrong}"),
            ("5", r"5\text{ million}"),
            ("3", r"3\text{ if }n>1"),
        ],
    ),
    "marks": (
        [("f'(x)", "f'(x)"), (r"1+2+\ldots", r"1 + 2 + \ldots"), ("5", r"5\text{ o'clock}")],
        [("f'(x)", "f(x)"), ("f(x)", "f'(x)"), ("5", r"5,\ldots"), ("1,2", r"1,2,\dots")],
    ),
    "quantities": (
        [
            (r"1\text{ hour }30\text{ minutes}", r"1\text{ h }30\text{ min}"),
            (r"5\text{ ft }6\text{ in}", r"5\text{ feet }6"),
        ],
        [(r"1\text{ hour }30\text{ minutes}", "1"), (r"1\text{ hour }30\text{ minutes}", r"1\text{ h }31\text{ min}")],
    ),
    "intervals": (
        [("(2,3)", "2<x<3"), ("[2,3]", r"2\le x\le 3"), (r"x\in(2,3)", "2<x<3")],
        [("2,3", "2<x<3"), (r"\{2,3\}", r"2\le x\le 3"), ("2<x<3", "2,3")],
    ),
    "shapes": (
        [("1,2", "2,1"), ("(1,2)", "1,2"), (r"\pm 1", "1,-1"), ("1,2,3", r"\{3,2,1\}"), ("13", "(13)")],
        [
            ("1,2", "1,2,2"),
            ("1,2", "(1,2)"),
            (r"\{1,2\}", "(2,1)"),
            ("(1,2)", r"\{1,2\}"),
            ("13", "[13]"),
            ("10,20", "(10,20)"),
            ("1,234", "1, 234"),
        ],
    ),
}


def test_every_rule_has_cases():
    assert [rule.name for rule in RULES] == list(REWRITTEN)
    assert [rule.name for rule in PAIR_RULES] == list(DECIDED)
    assert all(rule.reason for rule in (*RULES, *PAIR_RULES))


@pytest.mark.parametrize("name", [*REWRITTEN, *DECIDED])
def test_rule(name: str):
    right, wrong = (REWRITTEN | DECIDED)[name]
    assert [pair for pair in right if not equal_answers(*pair)] == []
    assert [pair for pair in wrong if equal_answers(*pair)] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rewriting_rule_changes_one_of_its_cases(rule):
    right, wrong = REWRITTEN[rule.name]
    texts = [text for pair in (*right, *wrong) for text in pair]
    before = RULES[: RULES.index(rule)]
    assert any(rule.apply(text).strip() != text for text in (_through(before, text) for text in texts))


@pytest.mark.parametrize("rule", PAIR_RULES, ids=lambda rule: rule.name)
def test_deciding_rule_decides_its_wrong_cases(rule):
    _, wrong = DECIDED[rule.name]
    pairs = [(rewritten(gold), rewritten(answer)) for gold, answer in wrong]
    assert any(rule.equal(*pair) is False for pair in pairs)
    assert [pair for pair in pairs if decided(*pair)] == []


def _through(rules, text: str) -> str:
    for rule in rules:
        text = rule.apply(text).strip()
    return text


def pairs_of(*answers: str) -> Sequence[tuple[str, str]]:
    """Each answer with the first."""
    return [(answers[0], answer) for answer in answers[1:]]


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        *pairs_of(r"1-\frac{1}{2^{54}}", "1", "1.0", "1.000000", r"1-\frac{1}{2^{55}}"),
        *pairs_of(r"10^{-400}", "0", r"-10^{-400}", r"10^{-401}"),
        *pairs_of(r"\frac{1}{200!}", r"\frac{1}{201!}", "0"),
        *pairs_of(r"\left(\frac{5}{6}\right)^{5000}", r"\left(\frac{4}{5}\right)^{5000}"),
        *pairs_of(r"\pi+10^{-20}", r"\pi"),
        *pairs_of(r"e^{-800}", r"e^{-801}"),
        *pairs_of(r"x+10^{-20}", "x"),
        *pairs_of(r"(10^{-400}, 1)", r"(10^{-401}, 1)"),
        *pairs_of(r"\{10^{-20}, 2\}", r"\{10^{-21}, 2\}"),
        *pairs_of(r"[0,1-2^{-70}]", "[0,1]"),
        *pairs_of(r"\begin{pmatrix}10^{-20}\\1\end{pmatrix}", r"\begin{pmatrix}10^{-21}\\1\end{pmatrix}"),
        *pairs_of(r"x<10^{-20}", r"x<10^{-21}"),
        *pairs_of(r"\frac{1}{3}", "0.333", "0.333333"),
        *pairs_of("1.5e-400", "2.5e-400"),
    ],
)
def test_numbers_that_floating_point_takes_for_equal_are_wrong(gold: str, answer: str):
    assert not equal_answers(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"1-\frac{1}{2^{54}}", r"\frac{2^{54}-1}{2^{54}}"),
        (r"10^{-400}", r"\frac{1}{10^{400}}"),
        (r"e^{-1000}", r"\frac{1}{e^{1000}}"),
        (r"x(1-2^{-60})", r"x-2^{-60}x"),
        ("1.23456789", "1.23456788"),  # decimals are compared to six places
        (r"\sqrt{2}", "1.414214"),
        (r"12.5\%", r"\frac18"),
        (r"33\frac{1}{3}\%", r"\frac13"),
        (r"e^{i\pi}", "-1"),
        (r"\ln 2", r"\log 2"),
        ("5", r"5\text{ m}"),  # units are dropped
        ("x=5", "y=5"),
        ("1<x<2", "2>x>1"),
        ("[0,1)", r"0 \le x < 1"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"),
    ],
)
def test_numbers_and_sets_that_are_equal_are_right(gold: str, answer: str):
    assert equal_answers(gold, answer)


@pytest.mark.parametrize(
    "tower", [r"10^{10^{10}}", "2^{2^{2^{2^{2^{2}}}}}", "9!!!!!!", "99999999!", r"e^{10^{10^{10}}}"]
)
def test_a_number_too_large_to_work_out_is_right_only_where_it_is_spelt_alike(tower: str):
    assert not equal_answers("5", tower)
    assert not equal_answers(tower, tower + "+1")
    assert equal_answers(tower, f" {tower} ")


LABELLED = r"\textbf{(B)}\ \frac{1}{2}"


@pytest.mark.parametrize("answer", ["0.5", r"\frac12", "B", "(B)", r"\text{(B)}", r"\textbf{(B)} 0.5", "B. 1/2"])
def test_a_labelled_gold_answer_is_its_value_and_its_letter(answer: str):
    assert equal_answers(LABELLED, answer)


@pytest.mark.parametrize("answer", ["C", r"\textbf{(C)} \frac12", r"\textbf{(B)} 0.6", "0.6", "A,B", "b+1"])
def test_a_labelled_gold_answer_is_nothing_else(answer: str):
    assert not equal_answers(LABELLED, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("A", "(A)(B)(C)(D)"),
        ("A", r"(A) \text{ or } (B)"),
        ("A", "A) B)"),
        ("(A), (C)", "(A)"),
        ("(A), (C)", "A"),
        ("6", "(A) 5 (B) 6"),
    ],
)
def test_several_choices_are_not_the_first_of_them(gold: str, answer: str):
    assert not equal_answers(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("A, C", "(A), (C)"),
        ("(A), (C)", r"(C) \text{ and } (A)"),
        ("(A) and (C)", "A, C"),
        ("A", "(A) (A)"),
        ("(C) P(A)", "C"),
    ],
)
def test_several_choices_in_any_spelling(gold: str, answer: str):
    assert equal_answers(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("6", r"\sum_{i=1}^{3} i", True),
        ("5", r"\sum_{i=1}^{3} i", False),
        ("5", r"\int_0^1 i\,di", False),
        ("6+i", r"i+\sum_{i=1}^{3} i", True),
        (r"-1", r"e^{i\pi}", True),
    ],
)
def test_i_is_imaginary_where_it_counts_nothing(gold: str, answer: str, equal: bool):
    assert equal_answers(gold, answer) == equal


@pytest.mark.parametrize(
    "gold", [LABELLED, "4343_6", "2:3:4", r"\text{Evelyn}", "(A) 5", r"33\frac{1}{3}\%", r"0.\overline{3}", "45°", "∞"]
)
def test_what_the_reward_can_judge_counts_as_understood(gold: str):
    assert can_parse_answer(gold)
