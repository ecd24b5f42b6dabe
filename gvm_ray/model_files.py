"""Files of a model folder: checks of the weights, of tied embeddings, and digests of their contents."""

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

_COUNTED = ("[!.]*", "*chat_templates/[!.]*")  # transformers also reads additional_chat_templates/
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth"}
_EMBEDDING_AND_HEAD = ("embed_tokens.weight", "lm_head.weight")
_FILES_AND_INDICES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_REASON_CHARACTERS = 300  # of a library's message, which can be pages long
_WRITE_FOLDER = (
    "write model.path as a folder with config.json, weights and tokenizer files, or as a hub id that this machine can "
    "reach"
)


def ties_embeddings(model_config: Any) -> bool:
    """True if a configuration says that the output head is the input embedding; some don't say."""
    return bool(getattr(model_config.get_text_config(), "tie_word_embeddings", False))


def check_weight_files(path: str | Path) -> None:
    """Check the headers of a folder's safetensors files, without reading weights. Hub ids aren't checked.

    Raises:
        ModelError: a file is missing or incomplete.
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
        damaged = f"weights (file {file.name!r} is missing or damaged; fetch it again)"
        with model_errors(damaged, path), safe_open(file, framework="np"):
            pass


def tensor_names(path: str | Path) -> frozenset[str]:
    """Names of the weights in a model folder that transformers loads; empty for a hub id."""
    names = set(_stored_tensors(Path(path)))
    return frozenset(name for name in names if not name.endswith("rotary_emb.inv_freq"))  # models compute this one


def check_tied_weights(path: str | Path, model_config: Any) -> None:
    """Refuse a folder whose weights contradict its config.json about the output head. Hub ids aren't checked.

    Libraries disagree on the meaning of such files: some use the head, some the embeddings.

    Raises:
        ModelError: a tied head differs from the embeddings, or a head that isn't tied is missing.
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
            f'config.json in {str(path)!r} says "tie_word_embeddings": true, but the lm_head.weight in the files there '
            'is another matrix than the input embedding; write "tie_word_embeddings": false there to use it, or take '
            "it out of the files"
        )


def _equal(first: Any, second: Any) -> bool:
    return first.shape == second.shape and first.float().equal(second.float())


def stored_tensors(path: str | Path, *, revision: str | None = None) -> dict[str, Callable[[], Any]]:
    """Functions that read the tensors of a model folder or hub id, by name. Files that aren't cached are fetched.

    Of a sharded hub id only the shards are fetched whose tensors are read.

    Raises:
        ModelError: a file is missing or damaged; the functions raise it too.
    """
    if Path(path).is_dir():
        return _stored_tensors(Path(path))
    for single, index in _FILES_AND_INDICES:
        if (file := _hub_file(path, single, revision=revision)) is not None:
            return _tensors_in(file, path)
        if (file := _hub_file(path, index, revision=revision)) is not None:
            with model_errors("index of the weights", path):
                shards = json.loads(file.read_bytes())["weight_map"]
            return {name: partial(_read_of_hub, path, name, shard, revision) for name, shard in shards.items()}
    return {}


def _read_of_hub(path: str | Path, name: str, shard: str, revision: str | None) -> Any:
    file = _hub_file(path, shard, revision=revision)
    if file is None:
        raise ModelError(f"{shard!r}, a file of the weights of {str(path)!r}, is neither in the cache nor on the hub")
    return _tensors_in(file, path)[name]()


def _hub_file(path: str | Path, name: str, *, revision: str | None) -> Path | None:
    with model_errors(f"weights (file {name!r})", path):
        return find_file(path, name, revision=revision)


def find_file(path: str | Path, name: str, *, revision: str | None) -> Path | None:
    """The file of a model folder, or of a hub id from the cache or the hub; None if there is none.

    Raises:
        Exception: transformers' own; see `model_errors`.
    """
    from transformers.utils.hub import cached_file

    file = cached_file(
        path,
        name,
        revision=revision or "main",
        _raise_exceptions_for_connection_errors=False,  # without network, use the cache
        _raise_exceptions_for_missing_entries=False,
    )
    return None if file is None else Path(file)


def _stored_tensors(folder: Path) -> dict[str, Callable[[], Any]]:
    """Functions that read the tensors of a model folder, by name."""
    found: dict[str, Callable[[], Any]] = {}
    for file in _weight_files(folder):
        found |= _tensors_in(file, folder)
    return found


def _tensors_in(file: Path, path: str | Path) -> dict[str, Callable[[], Any]]:
    """Functions that read the tensors of one file of the model at `path`, by name."""
    import torch
    from safetensors import safe_open

    with model_errors(f"weights (file {file.name!r} is missing or damaged; fetch it again)", path):
        if file.suffix == ".safetensors":
            tensors = safe_open(file, framework="pt")
            return {name: partial(tensors.get_tensor, name) for name in tensors.keys()}  # noqa: SIM118
        # With the newer, zipped format, a tensor is read only when it is used.
        weights = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
        return {name: partial(weights.get, name) for name in weights}


def _weight_files(folder: Path) -> list[Path]:
    """The files of a model folder from which transformers reads weights."""
    for single, index in _FILES_AND_INDICES:
        if (folder / single).is_file():
            return [folder / single]
        if files := _indexed(folder, index):
            return sorted(files)
    return []


def _indexed(folder: Path, index: str) -> set[Path]:
    """The files named in an index of shards; none without an index."""
    if not (folder / index).is_file():
        return set()
    with model_errors("index of the weights", folder):
        return {folder / name for name in json.loads((folder / index).read_bytes())["weight_map"].values()}


@contextmanager
def model_errors(what: str, path: str | Path, *, remedy: str = _WRITE_FOLDER) -> Iterator[None]:
    """Turn any error raised inside into a ModelError about `what` of the model at `path`, with `remedy`.

    First raise one if the path is neither a folder nor a possible hub id, or if the model is in GGUF.
    """
    _refuse_gguf(path)
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
        if is_folder and (exported := _exported_model(Path(path))):
            raise ModelError(f"{where}, a folder of a run; write the run's model, {str(exported)!r}") from error
        if is_folder or not path:
            raise ModelError(f"{where} ({reason}); {remedy}") from error
        if "/" in str(path) and Path(path).parent.is_dir():  # probably a misspelt folder, not an owner on a hub
            raise ModelError(f"{_no_folder(path)}, and no hub that answers has it; {_WRITE_FOLDER}") from error
        raise ModelError(
            f"{where} ({reason}); {remedy}; without network, fetch it elsewhere (hf download {path} --local-dir "
            "FOLDER) and write FOLDER"
        ) from error


def _refuse_gguf(path: str | Path) -> None:
    """Refuse a GGUF file, a folder that has weights in such files alone, and a hub id that names them."""
    place = Path(path)
    files = sorted(place.iterdir()) if place.is_dir() else [place] if place.is_file() else []
    if any(file.suffix in _WEIGHTS for file in files):
        return
    if found := [file for file in files if file.suffix.lower() == ".gguf"]:
        source, file, made = str(found[0].parent), found[0].name, str(found[0].with_suffix(""))
    elif not files and may_be_hub_id(str(path)) and str(path).lower().endswith("-gguf"):
        source, file, made = str(path), "NAME.gguf", place.name[: -len("-gguf")]
    else:
        return
    raise ModelError(
        f"{str(path)!r} is a model in GGUF, which can't be trained; write the folder or hub id of the model from which "
        f"it was made, or convert it once (pip install gguf), and write {made!r}:\n"
        "    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig\n"
        f"    source, file, made = {source!r}, {file!r}, {made!r}\n"
        "    dense = GgufConfig(dequantize=True)\n"
        "    load = AutoModelForCausalLM.from_pretrained\n"
        '    load(source, gguf_file=file, quantization_config=dense, dtype="float32").save_pretrained(made)\n'
        "    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(made)"
    )


def _exported_model(folder: Path) -> Path | None:
    """The model of the run that the folder is, or has as a checkpoint."""
    runs = [folder, folder.parent.parent] if folder.parent.name == "checkpoints" else [folder]
    return next((run / "model" for run in runs if (run / "model" / "config.json").is_file()), None)


def _no_folder(path: str | Path) -> str:
    if os.path.exists(path):
        return f"{str(path)!r} is a file, not a model's folder; did you mean {str(Path(path).parent)!r}?"
    parent = os.path.dirname(os.path.abspath(path))
    nor = "" if os.path.isdir(parent) else f", nor is there a folder {parent!r}"
    return f"there is no folder {str(path)!r}{nor}{likely_paths(path)}"


def weights_digest(path: str | Path) -> str:
    """16 hex digits that depend on the weights in a model folder; always the same for a hub id."""
    digest = hashlib.sha256()
    for file in sorted(Path(path).glob("*")):
        if file.suffix in _WEIGHTS:
            with file.open("rb") as weights:
                while piece := weights.read(2**24):
                    digest.update(piece)
    return digest.hexdigest()[:16]


def model_files(path: str | Path, *, revision: str | None = None, weights: bool = True) -> dict[str, str]:
    """Digests of all files that a model's samples depend on: 16 hex digits each, by name.

    These are weights and adapters, configuration, generation settings, tokenizer, chat templates and code. For a hub
    id it is the commit.

    Args:
        path: the model folder, or a hub id.
        revision: of a hub id; None takes the newest.
        weights: True includes the weights.

    Raises:
        ModelError: the commit of the hub id can't be found.
    """
    folder = Path(path)
    if not folder.is_dir():
        return {str(path): _commit(path, revision=revision)}
    files = [file for pattern in _COUNTED for file in folder.glob(pattern) if file.is_file()]
    counted = [file for file in files if file.suffix != ".md" and (weights or file.suffix not in _WEIGHTS)]
    return file_digests({str(file.relative_to(folder)): file for file in counted})


def file_digests(files: Mapping[str, Path]) -> dict[str, str]:
    """16 hex digits of each file's content, by its name in the mapping, sorted by name.

    Hashing releases the GIL, so files are hashed in parallel.
    """
    names = sorted(files)
    with ThreadPoolExecutor() as threads:
        return dict(zip(names, threads.map(lambda name: _file_digest(files[name]), names), strict=True))


def _file_digest(file: Path) -> str:
    state = file.stat()
    return _content_digest(file.resolve(), (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))


@lru_cache(maxsize=4096)
def _content_digest(file: Path, state: tuple[int, ...]) -> str:
    """The file's digest; cached, so that a process reads a file once as long as its state doesn't change."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


def _commit(path: str | Path, *, revision: str | None) -> str:
    from transformers.utils.hub import cached_file, extract_commit_hash

    with model_errors("config.json", path):
        commit = extract_commit_hash(cached_file(path, "config.json", revision=revision or "main"), None)
        if commit is None:
            raise ValueError("the file in the cache doesn't tell its commit")
        return commit
