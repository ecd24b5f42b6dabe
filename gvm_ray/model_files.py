"""Files of a model folder: whether the weights are there and whole, what ties them, and digests of their content."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from gvm_ray.exceptions import ModelError, likely_paths, may_be_hub_id

_COUNTED = ("[!.]*", "*chat_templates/[!.]*")  # transformers reads additional_chat_templates/ besides the folder itself
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth"}
_EMBEDDING_AND_HEAD = ("embed_tokens.weight", "lm_head.weight")
_REASON_CHARACTERS = 300  # of a library's message, which can be pages
_WRITE_FOLDER = (
    "write model.path as a folder with config.json, weights and tokenizer files, or as a hub id that this machine can "
    "reach"
)


def ties_embeddings(model_config: Any) -> bool:
    """Whether a configuration says that the input embedding is the output head; some have no word for it."""
    return bool(getattr(model_config.get_text_config(), "tie_word_embeddings", False))


def check_weight_files(path: str | Path) -> None:
    """Look at the headers of a folder's safetensors files; no weight is read. A hub id is not looked at.

    Raises:
        ModelError: a file is missing, or cut short.
    """
    from safetensors import safe_open

    folder = Path(path)
    if not folder.is_dir():
        return
    files = {*folder.glob("*.safetensors"), *_indexed(folder, "model.safetensors.index.json")}
    if not files and not any(folder.glob("*.bin")):
        raise ModelError(
            f"there are no weights in {str(path)!r}: neither *.safetensors nor *.bin; put the model's files there"
        )
    for file in sorted(files):
        damaged = f"weights (file {file.name!r} is missing or damaged; fetch it anew)"
        with model_errors(damaged, path), safe_open(file, framework="np"):
            pass


def tensor_names(path: str | Path) -> frozenset[str]:
    """Names of the weights in a model folder that transformers loads; none of a hub id, which isn't looked at."""
    names = set(_stored_tensors(Path(path)))
    return frozenset(name for name in names if not name.endswith("rotary_emb.inv_freq"))  # which models compute


def check_tied_weights(path: str | Path, model_config: Any) -> None:
    """Refuse a folder whose weights contradict what its config.json says of the output head. A hub id is not looked at.

    Libraries disagree on what such files mean: some take the head, some the embeddings.

    Raises:
        ModelError: the head is there and another matrix than the embeddings it is said to be, or isn't there at all.
    """
    tied = ties_embeddings(model_config)
    stored = _stored_tensors(Path(path))
    if not tied and "model.embed_tokens.weight" in stored and all(name.startswith("model.") for name in stored):
        raise ModelError(
            f"the weights in {str(path)!r} have no lm_head.weight, and config.json there says "
            '"tie_word_embeddings": false; write true there if the output head is the input embedding, or add the '
            "missing weights"
        )
    pair = [min((name for name in stored if name.endswith(end)), key=len, default=None) for end in _EMBEDDING_AND_HEAD]
    if tied and None not in pair and not _equal(*(stored[name]() for name in pair if name is not None)):
        raise ModelError(
            f'config.json in {str(path)!r} says "tie_word_embeddings": true, and the lm_head.weight in the files there '
            'is another matrix than the input embedding; write "tie_word_embeddings": false there to use it, or take '
            "it out of the files"
        )


def _equal(first: Any, second: Any) -> bool:
    return first.shape == second.shape and first.float().equal(second.float())


def _stored_tensors(folder: Path) -> dict[str, Callable[[], Any]]:
    """By name what reads a tensor of a model folder."""
    import torch
    from safetensors import safe_open

    found: dict[str, Callable[[], Any]] = {}
    for file in _weight_files(folder):
        with model_errors(f"weights (file {file.name!r} is missing or damaged; fetch it anew)", folder):
            if file.suffix == ".safetensors":
                tensors = safe_open(file, framework="pt")
                found |= {name: partial(tensors.get_tensor, name) for name in tensors.keys()}  # noqa: SIM118
            else:  # tensors of the newer, zipped format are read when they are looked at
                weights = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
                found |= {name: partial(weights.get, name) for name in weights}
    return found


def _weight_files(folder: Path) -> list[Path]:
    """The files of a model folder that transformers reads weights from."""
    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (folder / single).is_file():
            return [folder / single]
        if files := _indexed(folder, index):
            return sorted(files)
    return []


def _indexed(folder: Path, index: str) -> set[Path]:
    """The files that an index of shards names; none without one."""
    if not (folder / index).is_file():
        return set()
    with model_errors("index of the weights", folder):
        return {folder / name for name in json.loads((folder / index).read_bytes())["weight_map"].values()}


@contextmanager
def model_errors(what: str, path: str | Path, *, remedy: str = _WRITE_FOLDER) -> Iterator[None]:
    """Whatever a library raises inside becomes a ModelError about `what` of the model at `path`, which says `remedy`.

    So does, before, a path where no folder is and that no hub can have.
    """
    is_folder, may_be_remote = os.path.isdir(path), may_be_hub_id(str(path))
    if path and not is_folder and (os.path.exists(path) or not may_be_remote):
        raise ModelError(f"{_no_folder(path)}; {_WRITE_FOLDER}")
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_CHARACTERS]
        where = f"no {what} can be loaded from {str(path)!r}"
        if is_folder or not path:
            raise ModelError(f"{where} ({reason}); {remedy}") from error
        if "/" in str(path) and Path(path).parent.is_dir():  # a misspelt folder rather than an owner on a hub
            raise ModelError(f"{_no_folder(path)}, and no hub that answers has it; {_WRITE_FOLDER}") from error
        raise ModelError(
            f"{where} ({reason}); {remedy}; without network fetch it elsewhere (hf download {path} --local-dir "
            "FOLDER) and write FOLDER"
        ) from error


def _no_folder(path: str | Path) -> str:
    if os.path.exists(path):
        return f"{str(path)!r} is a file, not a model's folder; did you mean {str(Path(path).parent)!r}?"
    parent = os.path.dirname(os.path.abspath(path))
    nor = "" if os.path.isdir(parent) else f", nor is there a folder {parent!r}"
    return f"there is no folder {str(path)!r}{nor}{likely_paths(path)}"


def weights_digest(path: str | Path) -> str:
    """16 hex digits of the weights in a model folder; of a hub id, which isn't looked at, always the same."""
    digest = hashlib.sha256()
    for file in sorted(Path(path).glob("*")):
        if file.suffix in _WEIGHTS:
            with file.open("rb") as weights:
                while piece := weights.read(2**24):
                    digest.update(piece)
    return digest.hexdigest()[:16]


def model_files(path: str | Path, *, revision: str | None = None, weights: bool = True) -> dict[str, str]:
    """All that a model's samples depend on: 16 hex digits of each file of its folder, by name.

    That is weights and adapters, configuration, generation settings, tokenizer, chat templates and code. Of a hub id
    it is the commit.

    Args:
        path: of the model folder, or a hub id.
        revision: of a hub id; None takes the newest.
        weights: whether they count too.

    Raises:
        ModelError: the hub id's commit can't be told.
    """
    folder = Path(path)
    if not folder.is_dir():
        return {str(path): _commit(path, revision=revision)}
    files = [file for pattern in _COUNTED for file in folder.glob(pattern) if file.is_file()]
    counted = [file for file in files if file.suffix != ".md" and (weights or file.suffix not in _WEIGHTS)]
    return file_digests({str(file.relative_to(folder)): file for file in counted})


def file_digests(files: Mapping[str, Path]) -> dict[str, str]:
    """16 hex digits of each file's content, by its name in the mapping, in the order of names.

    Hashing leaves Python's lock, so files go in parallel.
    """
    names = sorted(files)
    with ThreadPoolExecutor() as threads:
        return dict(zip(names, threads.map(lambda name: _file_digest(files[name]), names), strict=True))


def _file_digest(file: Path) -> str:
    state = file.stat()
    return _content_digest(file.resolve(), (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))


@lru_cache(maxsize=4096)
def _content_digest(file: Path, state: tuple[int, ...]) -> str:
    """Read once in a process, as long as the file's state is the same."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


def _commit(path: str | Path, *, revision: str | None) -> str:
    from transformers.utils.hub import cached_file, extract_commit_hash

    with model_errors("config.json", path):
        commit = extract_commit_hash(cached_file(path, "config.json", revision=revision or "main"), None)
        if commit is None:
            raise ValueError("the file in the cache doesn't tell its commit")
        return commit
