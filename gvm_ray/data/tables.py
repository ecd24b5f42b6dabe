"""Tables of many layouts, read as problems with answers and rationales."""

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import file_digest
from pathlib import Path
from typing import Any

from gvm_ray.config.data import DataConfig, LayoutName
from gvm_ray.config.prompts import FileSourceConfig, HuggingFaceSourceConfig
from gvm_ray.data.equations import MAWPS_FIELDS, SVAMP_FIELDS, mawps_row, svamp_row
from gvm_ray.exceptions import DataError
from gvm_ray.maths.final_answer import final_boxed
from gvm_ray.tasks.fields import field_value, missing_field
from gvm_ray.tasks.rows import Row, Task, content_id, task_from_row, used_fields
from gvm_ray.tasks.sources.file import DATA_SUFFIXES, file_rows
from gvm_ray.tasks.sources.huggingface import dataset_rows, load_split

PROBLEM_FIELDS = ("problem", "question", "prompt")
SOLUTION_FIELDS = ("solution", "rationale")

_GSM8K_MARK = "####"
# Digits in groups of three: 1,234,567. Commas between numbers stay (1,2 and 1, 234), and so do commas in brackets,
# which the first alternative matches.
_GROUPED = re.compile(r"[(\[{][^()\[\]{}]*[)\]}]|(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)")
_NO_ANSWER = ("proof", "notfound")  # NuminaMath-1.5's answers of problems without one to compare with
_NO_SETTINGS = FileSourceConfig(path="-")  # field names are set for each layout


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The fields of one table's rows."""

    name: LayoutName
    fields: FileSourceConfig  # the names, without feature_fields
    features: Mapping[str, str]  # column of the output -> field
    default_source: str  # for rows without a source

    def task(self, row: Mapping[str, Any], *, where: str) -> Task | None:
        """The row's task, with `source` as its first feature; None if the row has no final answer.

        Raises:
            DataError: a field of the row is missing, empty, or of the wrong type.
        """
        row = with_equation(row, layout=self.name, where=where)
        raw = task_from_row(row, config=self.fields, where=where)
        answer = self._final_answer(raw.answer)
        if answer is None:
            return None
        source = row.get("source")
        features = {column: _value_or_none(row, field) for column, field in self.features.items()}
        if self.name == "math":  # "Level 5", "Level ?" or, in MATH-500, 5
            level = re.search(r"\d+", str(features["level"]))
            features["level"] = int(level[0]) if level else None
        return replace(
            raw,
            prompt_id=content_id(raw.problem, answer) if self.fields.id_field is None else raw.prompt_id,
            answer=answer,
            features={"source": source if source and isinstance(source, str) else self.default_source, **features},
        )

    def _final_answer(self, text: str) -> str | None:
        if self.name == "gsm8k":
            _, mark, answer = text.rpartition(_GSM8K_MARK)
            return _without_separators(answer.strip()) if mark and answer.strip() else None
        if boxed := final_boxed(text):
            return boxed
        # The answer in a solution without a box can't be located.
        name = self.fields.answer_field
        is_solution = name == self.fields.rationale_field or name.rpartition(".")[2] in SOLUTION_FIELDS
        return None if is_solution or text.strip().lower() in _NO_ANSWER else text.strip()


def find_layout(first: Mapping[str, Any], *, config: DataConfig, where: str, default_source: str) -> Layout:
    """The layout of a table.

    Args:
        first: The table's first row.
        config: The wanted layout ("auto" decides by the row), and the fields that the user names.
        where: The row's file and line.
        default_source: The `source` of rows without one.

    Raises:
        DataError: the row lacks a field of the layout, or one that the user names.
    """
    name = _name_of(first) if config.layout == "auto" else config.layout
    first = with_equation(first, layout=name, where=where)
    solution = next((field for field in SOLUTION_FIELDS if field in first), None)
    features: dict[str, str] = {}
    match name:
        case "gsm8k":
            named = {"prompt_field": "question", "answer_field": "answer"}
            solution = config.answer_field or "answer"  # it ends with the final answer
        case "math" | "numina_math":
            solution = "solution"
            named = {"prompt_field": "problem", "answer_field": "answer" if "answer" in first else "solution"}
            if name == "math":
                features = {"level": "level", "subject": "subject" if "subject" in first else "type"}
            else:
                features = {field: field for field in ("problem_type", "question_type") if field in first}
        case "svamp" | "mawps":
            named = {"prompt_field": "problem", "answer_field": "answer"}
            features = {"num_operations": "num_operations"}
        case _:
            named = {"prompt_field": problem_field(first), "answer_field": "answer"}
    names = {"rationale_field": solution, **named, "id_field": None}
    names |= {setting: field for setting in names if (field := getattr(config, setting)) is not None}
    features |= config.feature_columns
    fields = _NO_SETTINGS.model_copy(update=names)
    for field, setting in (used_fields(fields) | dict.fromkeys(features.values(), "feature_fields")).items():
        try:
            field_value(first, field)
        except KeyError:
            option = f"--{setting.replace('_', '-')}"
            raise DataError(
                missing_field(field, setting=option, where=f"{where} (layout {name!r})", known=first)
                + "; or write another --layout"
            ) from None
    if name in ("gsm8k", "math", "svamp", "mawps"):
        default_source = name
    return Layout(name=name, fields=fields, features=features, default_source=default_source)


def with_equation(row: Mapping[str, Any], *, layout: LayoutName, where: str) -> Mapping[str, Any]:
    """The row, in the layouts of word problems with the problem, answer and rationale made from its equation."""
    match layout:
        case "svamp":
            return svamp_row(row, where=where)
        case "mawps":
            return mawps_row(row, where=where)
        case _:
            return row


def problem_field(first: Mapping[str, Any]) -> str:
    """The name of the field that holds a row's problem; "problem" if no field has a known name."""
    return next((field for field in PROBLEM_FIELDS if field in first), PROBLEM_FIELDS[0])


def _value_or_none(row: Mapping[str, Any], field: str) -> Any:
    try:
        return field_value(row, field)
    except KeyError:  # the first row has it, others may leave it out
        return None


def _without_separators(answer: str) -> str:
    return _GROUPED.sub(lambda found: found[0] if found[0][0] in "([{" else found[0].replace(",", ""), answer)


def _name_of(first: Mapping[str, Any]) -> LayoutName:
    fields = first.keys()
    if fields >= MAWPS_FIELDS:
        return "mawps"
    if fields >= SVAMP_FIELDS:
        return "svamp"
    if {"problem", "solution", "source"} <= fields:
        return "numina_math"
    if {"problem", "solution", "level"} <= fields and fields & {"type", "subject"}:
        return "math"
    if {"question", "answer"} <= fields and "problem" not in fields and _GSM8K_MARK in str(first["answer"]):
        return "gsm8k"
    return "plain"


_SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev"}
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class Table:
    """One file, or one split of a dataset."""

    origin: FileSourceConfig | HuggingFaceSourceConfig

    @property
    def name(self) -> str:
        """A short name: the file's without its folder, or the dataset's."""
        return Path(self.origin.path).name if isinstance(self.origin, FileSourceConfig) else self.origin.path

    def rows(self) -> Iterator[Row]:
        """The rows, with all their fields.

        Raises:
            DataError: the file is damaged.
        """
        if isinstance(self.origin, FileSourceConfig):
            return file_rows(self.origin.path)
        return dataset_rows(self._dataset, config=self.origin)

    def digest(self) -> str:
        """SHA-256 of the file; for a dataset, the `datasets` library's fingerprint.

        Raises:
            DataError: the table can't be read.
        """
        if isinstance(self.origin, HuggingFaceSourceConfig):
            return str(self._dataset._fingerprint)
        self.rows()  # raises with a good message if the file can't be read
        return file_sha256(Path(self.origin.path))

    @cached_property
    def _dataset(self) -> Any:
        assert isinstance(self.origin, HuggingFaceSourceConfig)
        try:
            return load_split(self.origin)
        except DataError as error:
            if Path(self.origin.path).exists():
                raise
            raise DataError(
                f"there is no file or folder {self.origin.path!r} here, and it can't be loaded as a dataset of the "
                f"Hugging Face Hub: {error.__cause__}. On a machine without network, or without access to it, fetch it "
                f"elsewhere (hf download --repo-type dataset {self.origin.path} --local-dir FOLDER) and write FOLDER"
            ) from error


def find_tables(sources: Sequence[str], *, split: str, subset: str | None = None, output: Path) -> list[Table]:
    """The tables of each source in order; files of a folder or glob are sorted by name.

    Args:
        sources: Files, folders, globs or dataset ids, as on the command line.
        split: Of datasets, and of folders whose file names contain splits.
        subset: Of a dataset; for a folder, a folder inside it.
        output: The file to make; folders and globs never include it.

    Raises:
        DataError: a source doesn't exist or has no data file.
    """
    return [
        Table(origin=origin)
        for source in sources
        for origin in _origins(source, split=split, subset=subset, output=output.resolve())
    ]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _origins(
    source: str, *, split: str, subset: str | None, output: Path
) -> list[FileSourceConfig] | list[HuggingFaceSourceConfig]:
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        if any((Path(path) / name).is_file() for name in ("dataset_dict.json", "state.json")):  # by save_to_disk
            return [HuggingFaceSourceConfig(path=path, split=split)]
        files = _files_of_folder(Path(path), split=split, subset=subset)
    elif glob.has_magic(source) and not os.path.exists(path):
        files = [Path(name) for name in sorted(glob.glob(path, recursive=True)) if os.path.isfile(name)]
    elif _HUB_ID.fullmatch(source) and not os.path.exists(path) and not source.lower().endswith(DATA_SUFFIXES):
        return [HuggingFaceSourceConfig(path=source, name=subset, split=split)]
    elif Path(path).resolve() == output:
        raise DataError(f"{source!r} is both a source and the output; write another name as --output")
    else:
        return [FileSourceConfig(path=path)]
    files = [file for file in files if file.resolve() != output]
    if not files:
        raise DataError(
            f"{source!r} has no data file; write a file, a folder or a glob of {', '.join(DATA_SUFFIXES)} files, or "
            "the id of a Hugging Face dataset"
        )
    return [FileSourceConfig(path=str(file)) for file in files]


def _files_of_folder(folder: Path, *, split: str, subset: str | None) -> list[Path]:
    """The data files below a folder: those with the split in their names, or all if no name contains a split."""
    if subset is not None:
        if not (folder / subset).is_dir():
            known = ", ".join(sorted(each.name for each in folder.iterdir() if each.is_dir())) or "(none)"
            raise DataError(f"{str(folder)!r} has no folder {subset!r}; write as --subset one of its folders: {known}")
        folder = folder / subset
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in DATA_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    # .json files beside other data only describe it: dataset_infos.json, or the report of an earlier preparation.
    files = [path for path in files if path.suffix.lower() != ".json"] or files
    splits = {path: _split_of(path.relative_to(folder), split=split) for path in files}
    named = {name for name in splits.values() if name}
    if named and split.lower() not in named:
        raise DataError(f"{str(folder)!r} has no split {split!r}; write as --split one of {', '.join(sorted(named))}")
    return [path for path in files if splits[path] == split.lower()] if named else files


def _split_of(path: Path, *, split: str) -> str:
    """The last word of the path that names a split; empty if no word does."""
    words = re.split(r"[^a-z0-9]+", str(path).lower())
    return next((word for word in reversed(words) if word == split.lower() or word in _SPLITS), "")
