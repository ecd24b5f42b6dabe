"""What a SOURCE on the command line names: a file, a folder of files, a glob, or a dataset of the Hugging Face Hub."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import file_digest
from pathlib import Path
from typing import Any

from gvm_ray.config.prompts import FileSourceConfig, HuggingFaceSourceConfig
from gvm_ray.envs.file_source import DATA_SUFFIXES, file_rows
from gvm_ray.envs.huggingface_source import dataset_rows, load_split
from gvm_ray.envs.rows import Row
from gvm_ray.exceptions import DataError

_SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev"}
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class Table:
    """One file, or one split of a dataset."""

    origin: FileSourceConfig | HuggingFaceSourceConfig

    @property
    def name(self) -> str:
        """Short: of a file without its folder, or of a dataset."""
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
        """SHA-256 of the file; of a dataset the fingerprint that the `datasets` library gives it.

        Raises:
            DataError: it can't be read.
        """
        if isinstance(self.origin, HuggingFaceSourceConfig):
            return str(self._dataset._fingerprint)
        self.rows()  # says what is wrong with a file that can't be read
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
                f"there is no file or folder {self.origin.path!r} here, and as a dataset of the Hugging Face Hub it "
                f"isn't to be had: {error.__cause__}. On a machine without network, or without access to it, fetch it "
                f"elsewhere (hf download --repo-type dataset {self.origin.path} --local-dir FOLDER) and write FOLDER"
            ) from error


def find_tables(sources: Sequence[str], *, split: str, subset: str | None = None, output: Path) -> list[Table]:
    """The tables of each source in order; files of a folder or glob are sorted by name.

    Args:
        sources: As the command line has them.
        split: Of datasets, and of folders whose file names name splits.
        subset: Of a dataset; of a folder the folder in it.
        output: The file being made, which is never among those of a folder or glob.

    Raises:
        DataError: there is no such file, or no data file there.
    """
    return [
        Table(origin=origin)
        for source in sources
        for origin in _origins(source, split=split, subset=subset, output=output.resolve())
    ]


def file_sha256(path: Path) -> str:
    """In hexadecimal."""
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
            f"{source!r} has no data file; write a file, a folder or a pattern with {', '.join(DATA_SUFFIXES)} files, "
            "or the id of a Hugging Face dataset"
        )
    return [FileSourceConfig(path=str(file)) for file in files]


def _files_of_folder(folder: Path, *, split: str, subset: str | None) -> list[Path]:
    """The data files below a folder: those whose names name the split, or all where none names any."""
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
    # Beside other data, .json files describe it: dataset_infos.json, or the report of an earlier preparation.
    files = [path for path in files if path.suffix.lower() != ".json"] or files
    splits = {path: _split_of(path.relative_to(folder), split=split) for path in files}
    named = {name for name in splits.values() if name}
    if named and split.lower() not in named:
        raise DataError(f"{str(folder)!r} has no split {split!r}; write as --split one of {', '.join(sorted(named))}")
    return [path for path in files if splits[path] == split.lower()] if named else files


def _split_of(path: Path, *, split: str) -> str:
    """The last word of the path that names a split; empty where none does."""
    words = re.split(r"[^a-z0-9]+", str(path).lower())
    return next((word for word in reversed(words) if word == split.lower() or word in _SPLITS), "")
