r"""Responses that no honest model gives, in named classes; none of them is right where the gold answer is 42.

What stands here is the text of a response. `boxed` ones reach the parser by the box, the rest by the search for an
answer at the end.
"""

MEGABYTE = 10**6


def boxed(*answers: str) -> tuple[str, ...]:
    return tuple(rf"\boxed{{{answer}}}" for answer in answers)


def nested(opening: str, closing: str, depth: int, core: str = "1") -> str:
    return opening * depth + core + closing * depth


HUGE_NUMBERS = boxed(
    *(
        f"{base}^{{{exponent}}}"
        for base in ("9", "(-7)", "1.5", "x")
        for exponent in ("99999999", "9^{9^9}", "10^{18}")
    ),
    "10**10**10",
    "9!!!!!!!!",
    "(10^9)!",
    "99999999!",
    r"\binom{10^9}{5 \cdot 10^8}",
    "1e999999999",
    "-1E-999999999",
    r"\frac{1}{10^{10^{10}}}",
    r"2^{2^{2^{2^{2^{2}}}}}",
    r"\sqrt[10^{10}]{2}",
    r"\log_{1.0000000001}(10^{100000000})",
    r"\gcd(10^{5000}, 10^{4999})",
    *("7" * length for length in (19, 400, 4301, 100_000)),
    *("0." + "0" * length + "1" for length in (10, 500, 5000)),
    "1" + ",000" * 3000,
)

ENDLESS_SUMS = boxed(
    r"\sum_{i=1}^{10^{12}} i^{i}",
    r"\sum_{n=1}^{\infty} \frac{1}{n!^{n}}",
    r"\prod_{k=1}^{10^9} k",
    r"\int_0^{\infty} e^{-x^{x^x}} \sin(x^{99}) \, dx",
    r"\int \int \int \frac{\sin^{50} x}{\cos^{50} x} \, dx \, dy \, dz",
    r"\lim_{x \to \infty} x^{x^{x}}",
    r"\frac{d^{500}}{dx^{500}} \sin(\cos(\tan x))",
    r"\left(x + y + z\right)^{5000}",
    r"(1+x)^{10^6} - (1-x)^{10^6}",
    r"\sin(\cos(\tan(\sin(\cos(\tan(10^{100}))))))",
)

NESTED = (
    *boxed(*(nested(r"\frac{", "}{2}", depth) for depth in (20, 120, 5000))),
    *boxed(*(nested(r"\sqrt{", "}", depth, "2") for depth in (20, 150, 5000))),
    *boxed(*(nested("(", ")", depth) for depth in (50, 500, 100_000))),
    *boxed(*(nested("{", "}", depth) for depth in (50, 500, 100_000))),
    *boxed(*(nested(r"\left[", r"\right]", depth) for depth in (50, 150))),
    *boxed(*(nested("x^{", "}", depth) for depth in (20, 600))),
    *boxed(*(nested("-", "", depth) for depth in (100, 1900))),
    *boxed(*(nested("|", "|", depth, "x") for depth in (10, 500))),
    *boxed(*("+".join(["1"] * count) for count in (200, 999))),
    *(nested(r"\boxed{", "}", depth, "41") for depth in (2, 1000, 50_000)),
    *boxed("(" * 900, ")" * 900, "[(" * 400, "{}" * 900),
    nested(r"\boxed{", "", 20_000),
)

LONG = (
    *(character * MEGABYTE for character in "a1{}\\$ \n.,(^_é"),
    *boxed(*(character * MEGABYTE for character in "a1$ .,(-x")),
    *boxed("1e" * 50_000, "1." * 50_000, "x+" * 100_000 + "1", r"\text{" * 50_000 + "}" * 50_000),
    r"\boxed{1}," + " " * 200_000 + r"x\boxed{2}",
    r"\boxed" + " " * MEGABYTE,
    "The answer is " + "9" * MEGABYTE,
    "$" + "1+" * 500_000 + "1$",
    "word " * 300_000 + r"\boxed{41}",
)

MANY = (
    *(", ".join([r"\boxed{7}"] * count) for count in (3, 200, 30_000)),
    " and ".join(rf"\boxed{{{i}}}" for i in range(2000, 4000)),
    "\n".join(rf"${i}$" for i in range(100, 3000)),
    *boxed(
        *(",".join(str(i) for i in range(100, 100 + count)) for count in (50, 400, 20_000)),
        r"\{" + ",".join(str(i) for i in range(100, 500)) + r"\}",
        r"\{" + ",".join(rf"\frac{{1}}{{{i}}}" for i in range(2, 150)) + r"\}",
        r" \cup ".join(f"({i},{i + 1})" for i in range(100)),
        r" \cap ".join(f"[-{i},{i}]" for i in range(1, 100)),
        r"(-\infty,\infty) \setminus \mathbb{Q}",
        r"[1,2) \times [3,4] \times \mathbb{R}^{99999}",
        r"\begin{pmatrix}" + r"\\".join(["&".join(["1"] * 20)] * 20) + r"\end{pmatrix}",
        r"\begin{pmatrix}" + r"\\".join(["&".join(["x"] * 300)] * 300) + r"\end{pmatrix}",
        r"\begin{pmatrix} 2 & 1 \\ 1 & 3 \end{pmatrix}^{99999999}",
        r"\begin{vmatrix}" + r"\\".join(["&".join(f"x_{{{i}}}" for i in range(8))] * 8) + r"\end{vmatrix}",
        "=".join(["x"] * 500),
        "<".join(str(i) for i in range(300)),
        "x=1,y=2," * 100,
    ),
)

CHARACTERS = boxed(
    *(f"4{chr(code)}1" for code in (*range(0, 9), 11, 12, 27, 127, 0x85, 0xAD)),
    *(chr(code) * 50 for code in (0, 0x200B, 0x200D, 0x202E, 0x2066, 0xFEFF, 0xFFFD, 0xFFFF, 0x10FFFF)),
    *(f"4{chr(code)}1" for code in (0xD800, 0xDBFF, 0xDC00, 0xDFFF)),
    "\ud83d",
    "\udcff\udcfe",
    "\u202e24\u202c",
    "٤٣",  # arabic digits, 43
    "\uff14\uff11",  # full-width digits
    "\U0001d7dc\U0001d7d9",  # double-struck digits
    "4\u0301\u0302\u0303" * 300,
    "Z\u0351\u0343" * 600,
    "½",
    "∞",
    "Ⅳ",
    "\x1b[2J\x1b]0;owned\x07",
    "\r\n41\r",
    "👩‍👩‍👧‍👦" * 200,
)

UNFINISHED = (
    *boxed(
        r"\frac",
        r"\frac{",
        r"\frac{1}",
        r"\frac{1}{",
        r"\sqrt[",
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        r"\left(",
        r"\right)",
        r"\text{",
        "\\",
        "\\\\",
        r"\}",
        "^",
        "_",
        "^{}_{}",
        "x^",
        "&&&",
        "%",
        "#",
        "$$$$",
        "~",
        "''''",
        r"\undefined{x}\madeup[2]",
        r"\def\x{\x\x}\x",
        r"\newcommand{\a}{\a\a}\a",
        r"\input{/etc/passwd}",
        r"\write18{touch owned}",
        r"\csname x\endcsname",
    ),
    r"\boxed{42",
    r"\boxed",
    r"\boxed{\boxed{42",
    r"$\frac{4}{",
    r"\[ \begin{align} x &= ",
)

CODE = boxed(
    "__import__('os').system('touch owned')",
    "__import__('os')._exit(0)",
    "().__class__.__bases__[0].__subclasses__()",
    "exec('while True: pass')",
    "eval('4'+'2')",
    "open('/etc/passwd').read()",
    "lambda: 42",
    "[x for x in range(10**10)]",
    "import os; os.fork()",
    "$(touch owned)",
    "`touch owned`",
    ":(){ :|:& };:",
    "; rm -rf .",
    "' OR 1=1 --",
    "<script>alert(42)</script>",
    "{{7*7}}",
    "${jndi:ldap://127.0.0.1/a}",
    "{0.__class__.__init__.__globals__}",
    "%s%s%s%n",
    "%999999999d",
    "{:>999999999}",
    "(a+)+$" + "a" * 40 + "!",
    "(.*)*" * 50,
    "cos\n.__class__",
    '{"reward": 1.0, "terms": {}}',
    "\x80\x04\x95cposix\nsystem\n(S'touch owned'\ntR.",
)

SPECIAL_VALUES = boxed(
    *("nan", "NaN", "inf", "-inf", r"\infty", r"-\infty", r"\frac{1}{0}", r"\frac{0}{0}", "0^0", "0^{-1}", r"\log 0"),
    *("zoo", "oo", "None", "True", "i", "1j", "1/0", "", " ", r"\emptyset", r"\pm 42", "42i", r"42 \pm 1"),
    *(r"\infty - \infty + 1", r"\tan(\pi/2)", r"\frac{42}{0}", "x=42=43", "[42", "42,43"),
)

NASTY: dict[str, tuple[str, ...]] = {
    "huge numbers": HUGE_NUMBERS,
    "endless sums": ENDLESS_SUMS,
    "nested": NESTED,
    "long": LONG,
    "many": MANY,
    "characters": CHARACTERS,
    "unfinished": UNFINISHED,
    "code": CODE,
    "special values": SPECIAL_VALUES,
}
