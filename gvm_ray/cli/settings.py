"""`gvm-ray settings`: the reference of all settings, made from their classes and the comments beside them."""

import argparse
import ast
import difflib
import inspect
import io
import json
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticUndefined

from gvm_ray.cli.options import Commands
from gvm_ray.config.run import RunConfig
from gvm_ray.config.schema import settings_in
from gvm_ray.exceptions import ConfigError
from gvm_ray.settings import Settings

_HEAD = """\
# Settings

TOML files with these tables describe a run; `gvm-ray settings` prints this page. Any setting can be overridden on the
command line: `--set engine.num_generators=4`. `gvm-ray train FILE.toml --dry-run` prints a file's settings with all
defaults.

"""
_WORDS = {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text", "object": "table"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of the reference."""

    name: str
    values: str  # "integer >= 1"
    default: str  # as in TOML or JSON; "required" if there is none
    meaning: str  # empty if the name says it all


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table of a settings file, or one type of it."""

    paths: tuple[str, ...]  # the tables with these settings, e.g. "prompts.train"; "" is the top level
    type: str | None  # if a table has several types
    about: str
    settings: tuple[Setting, ...]

    @property
    def title(self) -> str:
        """The heading, e.g. "`[prompts.train]`, `[prompts.eval]`: `type = "file"`"."""
        tables = ", ".join(f"`[{path}]`" if path else "top level" for path in self.paths)
        return tables if self.type is None else f'{tables}: `type = "{self.type}"`'

    def markdown(self) -> str:
        """Title, text and table."""
        rows = [f"| `{s.name}` | {s.values} | {s.default} | {s.meaning} |" for s in self.settings]
        table = ["| setting | values | default | |", "|---|---|---|---|", *rows] if rows else []
        return "\n".join([f"## {self.title}", "", self.about, "", *table])


def sections() -> list[Section]:
    """Every table of a run's settings, in the order of a settings file."""
    paths: dict[type[Settings], list[str]] = {}
    for path, kind in _tables(RunConfig, ""):
        paths.setdefault(kind, []).append(path)
    return [_section(kind, tuple(dict.fromkeys(places))) for kind, places in paths.items()]


def reference(only: str | None = None) -> str:
    """The reference as Markdown, or only its sections at and below one table.

    Raises:
        ConfigError: the table is unknown.
    """
    chosen = [s for s in sections() if only is None or any(_is_below(path, only) for path in s.paths)]
    if not chosen:
        tables = sorted({path for section in sections() for path in section.paths if path})
        parent = str(only).rpartition(".")[0]
        near = [parent] if parent in tables else difflib.get_close_matches(str(only), tables, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the tables are {', '.join(tables)}"
        raise ConfigError(f"there is no table {only!r}; {hint}")
    return ("" if only else _HEAD) + "\n\n".join(section.markdown() for section in chosen) + "\n"


def _is_below(path: str, table: str) -> bool:
    return path == table or path.startswith(f"{table}.")


def _tables(kind: type[Settings], path: str) -> Iterator[tuple[str, type[Settings]]]:
    """A settings class and the classes of its tables, each with its dotted path."""
    yield path, kind
    for name, field in kind.model_fields.items():
        for part in settings_in(field.annotation):
            yield from _tables(part, f"{path}.{name}" if path else name)


def _section(kind: type[Settings], paths: tuple[str, ...]) -> Section:
    comments = _comments(kind)
    properties = kind.model_json_schema(by_alias=False)["properties"]
    leaves = [
        Setting(
            name=name,
            values=_values(properties[name]),
            default=_default(field.get_default(call_default_factory=True)),
            meaning=comments.get(name, "").replace("|", "\\|"),
        )
        for name, field in kind.model_fields.items()
        if name != "type" and not settings_in(field.annotation)
    ]
    type_field = kind.model_fields.get("type")
    is_one_of_several = type_field is not None and len(properties["type"].get("enum", ())) < 2
    return Section(
        paths=paths,
        type=type_field.default if type_field is not None and is_one_of_several else None,
        about=inspect.cleandoc(kind.__doc__ or ""),
        settings=tuple(leaves) if is_one_of_several or type_field is None else (_choice(kind), *leaves),
    )


def _choice(kind: type[Settings]) -> Setting:
    """The row for the `type` of a table with one class for all its types."""
    schema = kind.model_json_schema()["properties"]["type"]
    return Setting(name="type", values=_values(schema), default=_default(kind.model_fields["type"].default), meaning="")


def _values(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        parts = [_values(part) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join([*parts, *(["none"] if len(parts) < len(schema["anyOf"]) else [])])
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if schema.get("type") == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})]
        return "list of " + " and ".join(dict.fromkeys(_values(item) for item in items))
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in schema and schema[key] < 2**63 - 1
    ]
    return " ".join([_WORDS.get(schema.get("type", ""), "any value"), ", ".join(bounds)]).strip()


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    return f"`{json.dumps(value)}`" if value not in ((), {}) else "empty"


def _comments(kind: type[Settings]) -> dict[str, str]:
    """Field name -> the comment above it and on its line."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if part is Settings or not issubclass(part, Settings):
            continue
        source = inspect.cleandoc("\n" + inspect.getsource(part))
        lines = source.splitlines()
        comments = {
            token.start[0]: (token.string.lstrip("# "), not lines[token.start[0] - 1][: token.start[1]].strip())
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]  # the source is that of one class
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = _comment_of(node, comments) or found.get(node.target.id, "")
    return found


def _comment_of(node: ast.AnnAssign, comments: dict[int, tuple[str, bool]]) -> str:
    above: list[str] = []
    line = node.lineno - 1
    while line in comments and comments[line][1]:
        above.insert(0, comments[line][0])
        line -= 1
    beside = [comments[n][0] for n in range(node.lineno, (node.end_lineno or node.lineno) + 1) if n in comments]
    return " ".join([*above, *beside])


def add_to(commands: Commands) -> None:
    """Add the command."""
    settings = commands.add_parser(
        "settings",
        help="explain the settings of a run",
        description="Every setting of a TOML file with its values, default and meaning, as Markdown.",
    )
    settings.add_argument("table", nargs="?", default=None, metavar="TABLE", help="only this one, e.g. allocator")
    settings.set_defaults(run=_settings)


def _settings(options: argparse.Namespace) -> int:
    print(reference(options.table), end="")
    return 0
