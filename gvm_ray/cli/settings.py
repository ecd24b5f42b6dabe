"""`gvm-ray settings`: the reference of all settings, made from their classes and the comments beside them."""

import argparse
import ast
import difflib
import inspect
import io
import json
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import PydanticUndefined

from gvm_ray.cli.options import Commands
from gvm_ray.config.run import RunConfig
from gvm_ray.config.schema import settings_in, values_in_words
from gvm_ray.exceptions import ConfigError
from gvm_ray.settings import Settings

_HEAD = """\
# Settings

TOML files with these tables describe a run; `gvm-ray settings` prints this page. Any setting can be overridden on the
command line: `--set engine.num_generators=4`. `gvm-ray train FILE.toml --print-config` prints a file's settings with
all defaults, `--dry-run` what would run.

"""


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

    def part(self, name: str) -> "Section | None":
        """The section itself if it is at or below this table or is this type of it, only the row of this setting, or
        None."""
        if any(_is_below(path, name) or name == f"{path}.{self.type}" for path in self.paths):
            return self
        rows = tuple(s for s in self.settings if name in [f"{path}.{s.name}".lstrip(".") for path in self.paths])
        return replace(self, settings=rows) if rows else None

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
    """The reference as Markdown, or only a part.

    Args:
        only: a table, which comes with those below it; one type of a table, as in "allocator.gvm"; or a setting.

    Raises:
        ConfigError: there is none of this name.
    """
    if only is None:
        return _HEAD + _markdown(sections())
    if not (chosen := [part for section in sections() if (part := section.part(only)) is not None]):
        tables = sorted({path for section in sections() for path in section.paths if path})
        parent = only.rpartition(".")[0]
        near = difflib.get_close_matches(only, tables, n=1, cutoff=0.9) or [parent] if parent in tables else []
        near = near or difflib.get_close_matches(only, tables, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the tables are {', '.join(tables)}"
        raise ConfigError(f"there is no table or setting {only!r}; {hint}")
    return _markdown(chosen)


def _markdown(chosen: Sequence[Section]) -> str:
    return "\n\n".join(section.markdown() for section in chosen) + "\n"


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
    return values_in_words(schema, quote=lambda value: f"`{json.dumps(value)}`")


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
    settings.add_argument(
        "table", nargs="?", default=None, metavar="NAME", help="only this table, type or setting, e.g. allocator.gvm"
    )
    settings.set_defaults(run=_settings)


def _settings(options: argparse.Namespace) -> int:
    print(reference(options.table), end="")
    return 0
