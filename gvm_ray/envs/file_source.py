"""Tasks from a JSONL or Parquet file."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gvm_ray.config.prompts import FileSourceConfig
from gvm_ray.envs.rows import missing_field, tasks_from_rows, used_fields
from gvm_ray.envs.task import Task
from gvm_ray.exceptions import DataError

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_PARQUET = ".parquet"


def file_tasks(config: FileSourceConfig) -> list[Task]:
    """The file's tasks in its order, at most `limit`.

    Raises:
        DataError: the file is missing, empty, of another format, or has a bad row (its line and field are named).
    """
    path = _checked(config.path)
    rows = _parquet_rows(path, config=config) if path.suffix.lower() == _PARQUET else _json_rows(path)
    tasks = tasks_from_rows(rows, config=config)
    if not tasks:
        raise DataError(f"data file {config.path!r} has no rows; write the path of a file with at least one task")
    return tasks


def file_fields(path: str) -> list[str]:
    """The fields of a file's first row; none of an empty file.

    Raises:
        DataError: the file is missing, of another format, or not readable.
    """
    file = _checked(path)
    if file.suffix.lower() != _PARQUET:
        return next((list(row) for _, row in _json_rows(file)), [])
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_schema(file).names
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"data file {path!r} is not valid Parquet: {str(error).strip()}; write it anew") from error


def _checked(path: str) -> Path:
    """The path of a file of a known format that can be read."""
    file = Path(os.path.expanduser(path))  # Path.expanduser raises where there is no such user
    if obstacle := _obstacle(file):
        raise DataError(f"data file {path!r} {obstacle}; write the path of a .jsonl or .parquet file")
    if file.suffix.lower() not in (*JSON_SUFFIXES, _PARQUET):
        raise DataError(f"data file {path!r} is neither .jsonl nor .parquet; convert it to one of these")
    return file


def _obstacle(path: Path) -> str:
    """Why the path is no file that can be read; empty if it is one. Pipes are not waited for."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            path.open("rb").close()
            return ""
    except FileNotFoundError:
        return "doesn't exist"
    except (OSError, ValueError) as error:  # no permission, links in a circle, an impossible name
        return f"can't be read ({error})"
    return "is a folder" if stat.S_ISDIR(mode) else "is no regular file"


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and line, row) of every line that isn't blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            if b"\0" in line:  # UTF-16 without its mark would be invalid JSON, with nothing to see in an editor
                raise DataError(f"{where}: holds zero bytes, as UTF-16 and compressed files do; save it as plain UTF-8")
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{where}: not valid JSON ({error.msg}, column {error.colno}); write one JSON object a line"
                ) from error
            except (ValueError, RecursionError) as error:  # digits or brackets without end
                raise DataError(f"{where}: can't be read as JSON ({error}); write one plain object a line") from error
            if not isinstance(row, dict):
                raise DataError(f"{where}: a JSON {type(row).__name__}, not an object; write one JSON object a line")
            yield where, row


def _parquet_rows(path: Path, *, config: FileSourceConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and row, row), of the used columns only; rows count from 1."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = used_fields(config)
            for name, setting in columns.items():
                if name not in file.schema_arrow.names:
                    raise DataError(
                        missing_field(name, setting=setting, where=str(path), known=list(file.schema_arrow.names))
                    )
            for batch in file.iter_batches(columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data file {str(path)!r} is not valid Parquet after row {number}: {str(error).strip()}; write it anew, "
            "with text in UTF-8"
        ) from error
