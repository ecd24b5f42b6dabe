"""Measures of the package, printed by `python -m tests.house` and `make house`: how many modules, and how large.

With `--write` the floor plan of ARCHITECTURE.md is made again from the layers in pyproject.toml.

Nothing fails by these numbers but the floor that `tests/unit/test_sizes.py` checks: they are there to notice.
"""

import ast
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "ARCHITECTURE.md"
MIN_LINES = 40
# A part that a setting names is a file of its own by design, however short: every file of these folders but those that
# the parts share.
STRATEGIES = {
    "gvm_ray/algorithms": ("base", "loss"),
    "gvm_ray/allocators": ("base", "driver", "memory", "predictive", "predictor", "selection"),
    "gvm_ray/allocators/rivals": (),
    "gvm_ray/engines": ("open_requests", "server", "turns", "weight_receiver"),
    "gvm_ray/rewards": (
        "answer_pairs",
        "answer_rules",
        "exact_values",
        "sandbox",
        "sandbox_child",
        "sandbox_messages",
        "votes",
    ),
    "gvm_ray/tasks/sources": (),
}


def function_lengths(source: str) -> dict[str, int]:
    """Lines of every function and method, its docstring included and its decorators not."""
    functions = (
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return {f"{node.name}:{node.lineno}": (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}


@dataclass(frozen=True, kw_only=True)
class Module:
    """One file of the package."""

    name: str  # dotted
    path: Path

    @cached_property
    def source(self) -> str:
        """The file's text."""
        return self.path.read_text(encoding="utf-8")

    @property
    def num_lines(self) -> int:
        """Lines, blank ones and comments too."""
        return len(self.source.splitlines())

    @property
    def is_face(self) -> bool:
        """Whether it is what a package shows (`__init__`), or how one is run (`__main__`)."""
        return self.path.stem in ("__init__", "__main__")

    @property
    def is_strategy(self) -> bool:
        """Whether a setting names it."""
        shared = STRATEGIES.get(str(self.path.parent.relative_to(ROOT)))
        return shared is not None and self.path.stem not in ("__init__", *shared)


def modules() -> dict[str, Module]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / "gvm_ray").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = Module(name=name, path=path)
    return found


def importers(package: dict[str, Module]) -> dict[str, set[str]]:
    """Module -> the other modules that import it or a name of it, anywhere in their text, for types alone too.

    A name that a package's face passes on counts for the face: who takes it there doesn't know the file.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for name, module in package.items():
        for node in ast.walk(ast.parse(module.source)):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [each if each in package else node.module for each in inner]
            else:
                continue
            for target in targets:
                if target in package and target != name:
                    found[target].add(name)
    return found


def small_and_lonely() -> list[str]:
    """Modules of fewer than 40 lines that fewer than two others import; no faces, and no strategies."""
    package = modules()
    users = importers(package)
    return [
        name
        for name, module in package.items()
        if module.num_lines < MIN_LINES and len(users[name]) < 2 and not (module.is_face or module.is_strategy)
    ]


def table() -> str:
    """The measures, one a line."""
    package = modules()
    users = importers(package)
    counted = [module for module in package.values() if not (module.is_face or module.is_strategy)]
    longest = max(package.values(), key=lambda module: module.num_lines)
    functions = {
        (module.name, name): length
        for module in package.values()
        for name, length in function_lengths(module.source).items()
    }
    (where, function), length = max(functions.items(), key=lambda item: item[1])
    loop = max(function_lengths(package["gvm_ray.loop"].source).values())
    rows = [
        ("modules", len(package)),
        ("  of these faces (__init__, __main__)", sum(module.is_face for module in package.values())),
        ("lines", f"{sum(module.num_lines for module in package.values()):,}"),
        ("modules under 40 lines", sum(module.num_lines < MIN_LINES for module in counted)),
        ("modules with exactly one importer", sum(len(users[module.name]) == 1 for module in counted)),
        ("longest file", f"{longest.num_lines}  {longest.name}"),
        ("longest function", f"{length}  {where}.{function.partition(':')[0]}"),
        ("longest function of the loop", loop),
    ]
    return "\n".join(f"{what:40}{value}" for what, value in rows)


def floor_plan() -> str:
    """The layers of pyproject.toml from top to bottom, each with the comment beside it."""
    layers = re.search(
        r"^layers = \[[^\n]*\n(.*?)^\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert layers is not None, "pyproject.toml has no layers"
    rows = re.findall(r'^ *"([^"]+)",(?: *# *(.*))?$', layers[1], re.MULTILINE)
    width = max(len(names) for names, _ in rows) + 2
    return "\n".join(f"{names:{width}}{comment}".rstrip() for names, comment in rows)


def with_floor_plan(page: str) -> str:
    """The text of ARCHITECTURE.md with the present floor plan in its marked block."""
    begin, end = "<!-- floor plan: python -m tests.house --write -->\n```\n", "```\n<!-- end -->"
    before, _, rest = page.partition(begin)
    _, marked, after = rest.partition(end)
    assert marked, f"{PAGE.name} has no block between {begin!r} and {end!r}"
    return f"{before}{begin}{floor_plan()}\n{end}{after}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(with_floor_plan(PAGE.read_text("utf-8")), "utf-8")
    print(table())
    print("\n(under 40 lines, and with one importer: faces and strategies apart)")
