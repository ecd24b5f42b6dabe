"""Sizes of files and functions, counted, the first words of docstrings, and names that a module gives twice.

What outgrows these bounds is several things and wants several names; what is small and has one user belongs to it.
"""

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.house import function_lengths, small_and_lonely

ROOT = Path(__file__).parents[2]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
MAX_LOOP_FUNCTION_LINES = 40

# A docstring begins with the noun or verb that a reader searches for.
INDIRECT = {"What", "Who", "Whose", "Which", "How", "Where", "Likewise"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

FILES = sorted(path for folder in ("gvm_ray", "examples", "tests") for path in (ROOT / folder).rglob("*.py"))


def test_function_lengths_counts_nested_async_and_decorated() -> None:
    source = "@d\ndef a():\n    async def b():\n        pass\n    return b\n"
    assert function_lengths(source) == {"a:2": 4, "b:3": 2}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_and_its_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    limit = MAX_LOOP_FUNCTION_LINES if path == ROOT / "gvm_ray" / "loop.py" else MAX_FUNCTION_LINES
    num_lines = len(source.splitlines())
    assert num_lines <= MAX_FILE_LINES, f"{path.name} has {num_lines} lines"
    long = {name: length for name, length in function_lengths(source).items() if length > limit}
    assert not long, f"functions of {path.name} over {limit} lines: {long}"


def test_a_small_module_has_several_users() -> None:
    assert small_and_lonely() == [], "fewer than 40 lines and two importers: move them to where they are used"


@pytest.mark.parametrize("path", sorted((ROOT / "gvm_ray").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_noun_or_a_verb(path: Path) -> None:
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, DOCUMENTED)]
    first_words = [(ast.get_docstring(node) or "-").split(maxsplit=1)[0] for node in nodes]
    assert not INDIRECT & set(first_words)


@pytest.mark.parametrize("path", sorted((ROOT / "gvm_ray").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_gives_a_name_once(path: Path) -> None:
    """ruff sees it of functions and classes only."""
    names: Counter[str] = Counter()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names.update(target.id for target in targets if isinstance(target, ast.Name))
    assert [name for name, number in names.items() if number > 1] == []
