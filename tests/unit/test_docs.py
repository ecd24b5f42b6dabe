"""The pages hold what they say: snippets run, settings and commands exist, links lead somewhere, messages are real."""

import ast
import csv
import importlib
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gvm_ray.cli import create_parser
from gvm_ray.cli.settings import sections
from gvm_ray.config import load_config, parse_config
from gvm_ray.config.load import merged
from gvm_ray.reporting.progress import step_line
from tests.house import with_floor_plan

ROOT = Path(__file__).parents[2]
RIVALS = ROOT / "docs" / "results" / "compare" / "rivals"
GUIDES = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "guide").glob("*.md"))]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *GUIDES]
LINKING_PAGES = [
    *PAGES,
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "gvm_ray").rglob("*.md")),
    *sorted((ROOT / "configs").rglob("*.md")),
]
QUICKSTART = ROOT / "configs" / "quickstart.toml"
MINIMAL: dict[str, Any] = {
    "name": "docs",
    "model": {"type": "scratch"},
    "prompts": {"train": {"type": "arithmetic", "levels": [{"operator": "+"}]}},
}
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PLACEHOLDER = re.compile(r"[A-Z]+|\.\.\.")  # what a reader puts something in place of: CONFIG, N, ...

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, info: str) -> list[str]:
    return [m["body"] for m in FENCE.finditer(page.read_text(encoding="utf-8")) if m["info"] == info]


def prose(page: Path) -> str:
    """The page without its fences."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


# --- snippets ---------------------------------------------------------------------------------------------------------
@every_page
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page, one after the other, from a folder that looks like the root of the repository.

    A snippet that would start Ray fails at once, for no cluster answers at that address: mark it `python no-run`.
    """
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, Any] = {"__name__": page.stem}
    for body in blocks(page, "python"):
        exec(compile(body, str(page), "exec"), names)


@every_page
def test_python_that_needs_a_run_compiles_and_finds_its_imports(page: Path) -> None:
    for body in blocks(page, "python no-run"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                module = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)], ast.unparse(node)


@every_page
def test_toml_is_accepted(page: Path) -> None:
    for body in blocks(page, "toml"):
        parse_config(merged(MINIMAL, tomllib.loads(body)), origin=page.name)


def test_no_fence_goes_unread() -> None:
    infos = {m["info"] for page in PAGES for m in FENCE.finditer(page.read_text(encoding="utf-8"))}
    assert infos <= {"", "python", "python no-run", "toml", "json"}


# --- commands ---------------------------------------------------------------------------------------------------------
def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every gvm-ray command of a page, in fences and in the text."""
    lines = [line for body in blocks(page, "") for line in body.replace("\\\n", " ").splitlines()]
    for line in [*lines, *(m[1] for m in INLINE.finditer(prose(page)) if m[1].startswith("gvm-ray "))]:
        if re.search(r"(^|[ /])gvm-ray ", line):
            words = shlex.split(line.partition("gvm-ray ")[2], comments=True)
            arguments = itertools.takewhile(lambda word: word not in ("&&", "|", ";"), words)
            yield [part for word in arguments for part in expanded(word)]


def expanded(word: str) -> list[str]:
    """`a/{b,c}.toml` as the shell expands it; settings in braces are left alone."""
    braces = re.fullmatch(r"([^{}=]*)\{([^{}=]+)\}([^{}=]*)", word)
    return [braces[1] + part + braces[3] for part in braces[2].split(",")] if braces else [word]


def test_braces_are_expanded_as_a_shell_does() -> None:
    assert expanded("c/{a,b+}.toml") == ["c/a.toml", "c/b+.toml"]
    assert expanded('rewards.terms=[{type="exact"}]') == ['rewards.terms=[{type="exact"}]']


@every_page
def test_commands_are_accepted(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for arguments in commands(page):
        if all(re.fullmatch("[a-z]+", word) for word in arguments[:2]) and len(arguments) <= 2:
            arguments = [*arguments, "--help"]  # the name of a command, in a sentence
        try:
            options = create_parser().parse_args([number(word) for word in arguments])
        except SystemExit as end:
            assert end.code == 0, f"gvm-ray {shlex.join(arguments)}"  # noqa: PT017
            continue
        check_files_and_settings(options)


def number(word: str) -> str:
    """N stands for a number."""
    return "1" if word == "N" else word


def check_files_and_settings(options: Any) -> None:
    """What a command names of the repository exists, and what it sets is a setting."""
    overrides = [text for text in getattr(options, "overrides", ()) if not PLACEHOLDER.fullmatch(text.split("=", 1)[1])]
    overrides = [text for text in overrides if "NAME" not in text]
    given = getattr(options, "config", None) or getattr(options, "comparison", None) or []
    paths = [given] if isinstance(given, str) else list(given)
    shipped = [path for path in paths if path.startswith("configs/") and "NAME" not in path]
    assert not [path for path in shipped if not Path(path).is_file()]
    if not shipped or not shipped[0].startswith(("configs/compare/", "configs/estimator/", "configs/predictor/")):
        load_config(shipped or QUICKSTART, overrides)


# --- settings, links, messages ----------------------------------------------------------------------------------------
def settings() -> set[str]:
    """Every table and setting with its dots, `prompts.train.path`."""
    known = set()
    for section in sections():
        for path in section.paths:
            known |= {path, f"{path}.type"} | {f"{path}.{s.name}".removeprefix(".") for s in section.settings}
    return known


@every_page
def test_settings_that_a_page_names_exist(page: Path) -> None:
    known = settings()
    tables = {name.split(".")[0] for name in known if "." in name}
    text = prose(page)
    if page.name == "from_verl_and_trl.md":
        text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.MULTILINE)  # the first column is theirs
    named = {m[1].split(" = ")[0] for m in INLINE.finditer(text)}
    dotted = {name for name in named if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", name) and name.split(".")[0] in tables}
    assert not {name for name in dotted if name not in known and not name.endswith(".py")}


def test_the_second_column_of_the_migration_tables_is_ours() -> None:
    names = {part for name in settings() for part in name.split(".")}
    rows = [
        line.split("|")[2] for line in prose(ROOT / "docs" / "from_verl_and_trl.md").splitlines() if line[:1] == "|"
    ]
    words = {m[1].split(" = ")[0] for row in rows for m in INLINE.finditer(row)}
    plain = {word for word in words if re.fullmatch(r"[a-z]+(_[a-z]+)+", word)}
    assert {"prompts_per_step", "runs_dir"} <= plain <= names


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", LINKING_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = prose(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(file), flags=re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, target


def test_every_shipped_configuration_is_listed() -> None:
    configs = ROOT / "configs"
    linked = re.findall(r"\]\(([^)\s]+\.toml)\)", prose(configs / "README.md"))
    assert sorted(linked) == sorted(path.relative_to(configs).as_posix() for path in configs.rglob("*.toml"))


def texts_of_the_source() -> list[str]:
    """Every string of the package, what f-strings put in as a zero byte."""
    texts = []
    for path in (ROOT / "gvm_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_messages_are_quoted_as_the_source_has_them() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^- \*\*`([^`\n]+)`\*\*", page, flags=re.MULTILINE)
    assert len(quoted) >= 30
    source = "\n".join(texts_of_the_source())
    missing = [m for m in quoted if not re.search("[^\n]*".join(map(re.escape, m.split("…"))), source)]
    assert not missing


# --- the front page ---------------------------------------------------------------------------------------------------
def test_the_readme_can_be_read_in_one_sitting() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1300
    assert len(text.splitlines()) <= 180


def test_a_steps_line_is_shown_as_the_console_prints_it() -> None:
    metrics = {"reward/mean": 0.672, "eval/accuracy": 0.706, "cost/generated_tokens": 43_300, "staleness/mean": 0.0}
    metrics |= {"tokens/useful_fraction": 0.68, "allocation/min": 4, "allocation/max": 50, "allocation/zero": 0}
    line = step_line(9, num_steps=40, metrics=metrics | {"logprob_difference/mean": 5.5e-8}, step_s=1.8)
    for page in (ROOT / "README.md", ROOT / "docs" / "guide" / "runs.md"):
        assert re.findall(r"^step .*$", page.read_text(encoding="utf-8"), re.MULTILINE) == [line]


def test_the_readmes_gains_are_those_of_the_tables() -> None:
    """Each row's stretches, and bold exactly where the area excludes 0; every other decimal is in a CSV too."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## What it gains") : text.index("## What it does")]
    rows = table_rows(RIVALS / "confirmation" / "comparison.csv")
    lines = [line for line in section.splitlines() if line.startswith("| ") and "[" in line]
    assert len(lines) == 6
    for line in lines:
        problems, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        training_set = "balanced" if problems.startswith("balanced") else "mostly_solved"
        algorithm = problems.rsplit(", ")[-1].lower()
        family = re.findall(r"`(\w+)`", problems)
        place = (family[0], "b") if family else ("(all)", "(all)")
        # RAFT++ takes no baseline, so that where it is from makes no difference.
        default, control = (
            ("gvm_pool_singles_pcl", "uniform_singles")
            if algorithm == "raft++"
            else ("gvm_pool_singles_pcl_history", "uniform_singles_history")
        )
        charged = [(arm, "charged_tokens") for arm in (default, "gvm_pool_pcl", control)]
        for cell, (arm, cost) in zip(cells, [*charged, (default, "h100_seconds")], strict=True):
            row = rows[(training_set, algorithm, *place, arm)]
            low, high = (float(row[f"balanced/{cost}/area_{end}"]) for end in ("low", "high"))
            stretch = "{:.2f} [{:.2f}, {:.2f}]".format(
                *(float(row[name]) for name in columns("balanced", cost, "stretch"))
            )
            assert cell == (f"**{stretch}**" if low > 0 or high < 0 else stretch), (problems, arm, cost)
    quoted = set(estimates(section))
    assert quoted <= published_estimates()
    assert {*re.findall(r"\d+\.\d\d", section)} <= {*re.findall(r"\d+\.\d\d", " ".join(quoted))}


@pytest.mark.parametrize(
    ("page", "start", "end"),
    [
        ("results.md", "## Against the methods nearest to it", "## Single samples, and"),
        ("results.md", "## On real text?", "[Its page]"),
        ("allocators.md", "## Which one to take", "## The shipped ones"),
    ],
)
def test_areas_and_stretches_with_intervals_are_those_of_the_tables(page: str, start: str, end: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    quoted = set(estimates(text[text.index(start) : text.index(end)]))
    assert len(quoted) > 8
    assert quoted <= published_estimates()


def estimates(text: str) -> list[str]:
    """Values with an interval, as in "+0.048 [+0.033, +0.063]", with the minus sign of prose as "-"."""
    return re.findall(r"[+-]?\d+\.\d+ \[[+-]?\d+\.\d+, [+-]?\d+\.\d+\]", text.replace("\u2212", "-"))


def published_estimates() -> set[str]:
    """Areas and stretches of the tables of `rivals` and `word_problems`, on both tests and over all costs, as pages
    print them."""
    found = set()
    tables = ("rivals/*/comparison.csv", "rivals/*/against_*.csv", "word_problems/*/comparison.csv")
    for path in itertools.chain.from_iterable(RIVALS.parent.glob(table) for table in tables):
        for row in table_rows(path).values():
            for test, cost in itertools.product(
                ("balanced", "train"), ("charged_tokens", "cpu_seconds", "h100_seconds")
            ):
                for what, form in (("area", "{:+.3f} [{:+.3f}, {:+.3f}]"), ("stretch", "{:.2f} [{:.2f}, {:.2f}]")):
                    cells = [row.get(name) for name in columns(test, cost, what)]
                    if all(cells):
                        found.add(form.format(*map(float, filter(None, cells))))
    return found


def table_rows(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """(Training set, algorithm, family, base, arm) -> row of a comparison's table."""
    names = ("training_set", "algorithm", "family", "base", "arm")
    with path.open(encoding="utf-8", newline="") as file:
        return {tuple(row[name] for name in names): row for row in csv.DictReader(file)}


def columns(test: str, cost: str, what: str) -> list[str]:
    return [f"{test}/{cost}/{what}{end}" for end in ("", "_low", "_high")]


# --- the architecture -------------------------------------------------------------------------------------------------
def test_the_floor_plan_is_that_of_pyproject() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert page == with_floor_plan(page), "python -m tests.house --write"


def test_files_that_the_architecture_names_exist() -> None:
    page = prose(ROOT / "ARCHITECTURE.md")
    names = {name for name in INLINE.findall(page) if re.fullmatch(r"[\w/]+(\.py|/)", name)}
    known = [path.relative_to(ROOT / "gvm_ray").as_posix() for path in (ROOT / "gvm_ray").rglob("*.py")]
    lost = {
        name for name in names if not any(f"/{each}".endswith(f"/{name}") or each.startswith(name) for each in known)
    }
    assert not lost
