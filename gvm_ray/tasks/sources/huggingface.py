"""Tasks from a dataset of the `datasets` library."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvm_ray.config.prompts import HuggingFaceSourceConfig
from gvm_ray.exceptions import DataError, likely_paths, may_be_hub_id
from gvm_ray.tasks.fields import needed_columns, row_reader
from gvm_ray.tasks.rows import Row, Task, tasks_from_rows, used_fields

if TYPE_CHECKING:
    from datasets import Dataset


def huggingface_tasks(config: HuggingFaceSourceConfig) -> list[Task]:
    """The split's tasks in its order, at most `limit`.

    Raises:
        DataError: the dataset or its split can't be loaded, is empty, or has a bad row (row and field are named).
    """
    rows = dataset_rows(load_split(config), config=config, fields=used_fields(config))
    tasks = tasks_from_rows(rows, config=config)
    if not tasks:
        raise DataError(f"{_origin(config)} has no rows; write a split with at least one task")
    return tasks


def dataset_rows(
    dataset: "Dataset", *, config: HuggingFaceSourceConfig, fields: Mapping[str, str] | None = None
) -> Iterator[Row]:
    """The rows of a split in its order; with `fields` (name -> setting that names it), only their columns.

    Raises:
        DataError: the split lacks one of the fields.
    """
    origin = _origin(config)
    schema = dataset.features.arrow_schema
    read = row_reader(schema)
    rows: Any = dataset
    if fields is not None:
        rows = dataset.select_columns(needed_columns(schema, where=origin, fields=fields))
    return ((f"{origin}, row {number}", read(row)) for number, row in enumerate(rows, start=1))


def _origin(config: HuggingFaceSourceConfig) -> str:
    return f"dataset {config.path!r}, split {config.split!r}"


def check_folder(path: str) -> Path:
    """The folder at a path, in which a leading `~` is the home folder; it need not exist if the path may be a hub id.

    Raises:
        DataError: there is no such folder.
    """
    folder = Path(os.path.expanduser(path))
    if not folder.exists() and not may_be_hub_id(path):
        raise DataError(
            f"there is no folder {path!r}; write a local folder or a hub id, OWNER/NAME{likely_paths(folder)}"
        )
    return folder


def load_split(config: HuggingFaceSourceConfig) -> "Dataset":
    """Load the split. A local folder may hold data files or the output of `save_to_disk`.

    Raises:
        DataError: the split can't be loaded.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    folder = check_folder(config.path)
    try:
        if (folder / "dataset_dict.json").is_file():
            return _load_saved(folder / config.split, known=json.loads((folder / "dataset_dict.json").read_text()))
        if (folder / "state.json").is_file():
            return _load_saved(folder, known={})  # one split, whose name isn't saved
        origin = str(folder) if folder.is_dir() else config.path
        return datasets.load_dataset(origin, name=config.name, split=config.split)
    except (DatasetsError, ValueError, OSError) as error:
        fetch = (
            f"; without network, fetch it elsewhere (hf download --repo-type dataset {config.path} --local-dir FOLDER)"
        )
        raise DataError(
            f"dataset {config.path!r} (name {config.name!r}, split {config.split!r}) can't be loaded: {error}; write a "
            "hub id or a local folder as path, and a split that it has" + ("" if folder.exists() else fetch)
        ) from error


def _load_saved(folder: Path, *, known: Mapping[str, Any]) -> "Dataset":
    """One split written by `save_to_disk`; `known` is the index of all splits beside it."""
    import datasets

    if "splits" in known and folder.name not in known["splits"]:
        raise ValueError(f"its splits are {', '.join(known['splits'])}")
    if not json.loads((folder / "state.json").read_text())["_data_files"]:
        raise ValueError("it has no rows")  # load_from_disk would raise an IndexError
    return datasets.Dataset.load_from_disk(str(folder))
