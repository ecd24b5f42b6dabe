"""Tasks from a JSONL, JSON, Parquet or CSV file."""

import csv
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gvm_ray.config.prompts import FileSourceConfig
from gvm_ray.exceptions import DataError, likely_paths
from gvm_ray.tasks.fields import check_unique, needed_columns, row_reader
from gvm_ray.tasks.rows import Row, Task, tasks_from_rows, used_fields

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
DATA_SUFFIXES = (*JSON_SUFFIXES, ".parquet", ".csv")


def file_tasks(config: FileSourceConfig) -> list[Task]:
    """The file's tasks in its order, at most `limit`.

    Raises:
        DataError: the file is missing, empty, of another format, or has a bad row (its line and field are named).
    """
    tasks = tasks_from_rows(file_rows(config.path, fields=used_fields(config)), config=config)
    if not tasks:
        raise DataError(f"data file {config.path!r} has no rows; write the path of a file with at least one task")
    return tasks


def file_rows(path: str, *, fields: Mapping[str, str] | None = None) -> Iterator[Row]:
    """The file's rows in its order. The values of a CSV file are all text.

    Args:
        path: The file; its suffix gives the format.
        fields: Needed field -> setting that names it. Other columns of a Parquet file aren't read.

    Raises:
        DataError: the file is missing, of another format, damaged, has two fields of one name, or (Parquet) lacks a
            needed field.
    """
    file = check_file(path)
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(file, fields=fields)
    if suffix == ".csv":
        return _csv_rows(file, fields=fields)
    document = _document_rows(file) if suffix == ".json" else None
    return _json_rows(file) if document is None else iter(document)


def check_file(path: str) -> Path:
    """The readable file at a path, in which a leading `~` is the home folder; its content isn't looked at.

    Raises:
        DataError: the file is missing, not readable, or of another format.
    """
    file = Path(os.path.expanduser(path))  # Path.expanduser raises for an unknown user
    if obstacle := _obstacle(file):
        near = "" if os.path.lexists(file) else likely_paths(file)
        raise DataError(f"data file {path!r} {obstacle}; write the path of a .jsonl, .parquet or .csv file{near}")
    if file.suffix.lower() not in DATA_SUFFIXES:
        raise DataError(f"data file {path!r} is neither .jsonl nor .parquet nor .csv nor .json; convert it")
    return file


def file_fields(path: str) -> list[str]:
    """The fields of a file's first row; none for an empty file.

    Raises:
        DataError: the file is missing, of another format, or not readable.
    """
    return next((list(row) for _, row in file_rows(path)), [])


def _obstacle(path: Path) -> str:
    """The reason why the path isn't a readable file; empty if it is one. Doesn't wait for pipes."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            path.open("rb").close()
            return ""
    except FileNotFoundError:
        return "doesn't exist"
    except (OSError, ValueError) as error:  # no permission, circular links, an impossible name
        return f"can't be read ({error})"
    return "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"


def _document_rows(path: Path) -> list[Row] | None:
    """The rows of a file that is one JSON object or an array of objects; None for other files, e.g. JSON lines."""
    try:
        document = json.loads(path.read_bytes(), object_pairs_hook=_object(str(path)))
    except DataError:
        raise
    except (ValueError, RecursionError):
        return None
    rows = document if isinstance(document, list) else [document]
    if not all(isinstance(row, dict) for row in rows):
        return None
    return [(f"{path}, entry {number}", row) for number, row in enumerate(rows, start=1)]


def _json_rows(path: Path) -> Iterator[Row]:
    """(file and line, row) of every line that isn't blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            if b"\0" in line:  # UTF-16 without a byte order mark is invalid JSON, but looks right in an editor
                raise DataError(f"{where}: holds zero bytes, as UTF-16 and compressed files do; save it as plain UTF-8")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                row = json.loads(text, object_pairs_hook=_object(where))
            except DataError:
                raise
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{where}: not valid JSON ({error.msg}, column {error.colno}); write one JSON object per line"
                ) from error
            except (ValueError, RecursionError) as error:  # endless digits or brackets
                raise DataError(f"{where}: can't be read as JSON ({error}); write one plain object per line") from error
            if not isinstance(row, dict):
                raise DataError(f"{where}: a JSON {type(row).__name__}, not an object; write one JSON object per line")
            yield where, row


def _object(where: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """A function that makes an object of its fields and refuses duplicate names (JSON would keep the last)."""

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            check_unique((name for name, _ in pairs), where=where, fields=None)
        return row

    return made


def _csv_rows(path: Path, *, fields: Mapping[str, str] | None) -> Iterator[Row]:
    """(file and line, row) of every row below the first, which names the columns."""
    number = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            check_unique(reader.fieldnames or (), where=f"{path}, line 1", fields=fields)
            for row in reader:
                number = reader.line_num  # the row's last line: a quoted text may have several
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}, line {number}: not as many values as the first line has names "
                        f"({len(reader.fieldnames or ())}); quote values that contain commas, quotes or line breaks"
                    )
                yield f"{path}, line {number}", row
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, after line {number}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}, after line {number}: not valid CSV ({error}); rewrite it, or use JSONL") from error


def _parquet_rows(path: Path, *, fields: Mapping[str, str] | None) -> Iterator[Row]:
    """(file and row, row) of every row, with the needed columns only; rows count from 1."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            check_unique(schema.names, where=str(path), fields=fields)
            columns = None if fields is None else needed_columns(schema, where=str(path), fields=fields)
            read = row_reader(schema)
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist(maps_as_pydicts="lossy"):
                    number += 1
                    yield f"{path}, row {number}", read(row)
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"data file {str(path)!r} is not valid Parquet after row {number}: {str(error).strip()}; rewrite it, with "
            "text in UTF-8"
        ) from error
