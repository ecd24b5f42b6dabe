"""What every part asks of a Hugging Face model before its weights: tokenizer and configuration, with clear errors.

Broken files make the libraries raise errors of every kind; each becomes a ModelError here, with its cause.
"""

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
from gvm_ray.functional.memory import ModelSizes

_COUNTED = ("[!.]*", "*chat_templates/[!.]*")  # transformers reads additional_chat_templates/ besides the folder itself
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth"}
_EMBEDDING_AND_HEAD = ("embed_tokens.weight", "lm_head.weight")
_REASON_CHARACTERS = 300  # of a library's message, which can be pages
_WRITE_FOLDER = (
    "write model.path as a folder with config.json, weights and tokenizer files, or as a hub id that this machine can "
    "reach"
)


def load_tokenizer(path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder or hub id; `load_end_token_ids` says which of its tokens end a response.

    Raises:
        ModelError: there is none, its vocabulary is missing, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    with model_errors("tokenizer", path):
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision or "main", trust_remote_code=trust_remote_code
        )
    if not tokenizer("0", add_special_tokens=False)["input_ids"]:  # transformers makes an empty one of no files at all
        raise ModelError(
            f"the tokenizer of {str(path)!r} knows no text, as one without its vocabulary does; put the model's "
            "tokenizer.json and tokenizer_config.json there"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {str(path)!r} has no end-of-sequence token; set eos_token in its files")
    return tokenizer


def load_end_token_ids(path: str | Path, *, tokenizer: Any, revision: str | None = None) -> frozenset[int]:
    """Every token id that ends a response: those that the tokenizer, generation_config.json or config.json name.

    Chat models end a turn with another token than a text, and often name it in one of these places only.

    Args:
        path: of the model folder, or a hub id.
        tokenizer: of the model.
        revision: of a hub id; None takes the newest.

    Raises:
        ModelError: a file can't be read, or names something that is no token id.
    """
    config = _json_file(path, "config.json", revision=revision)
    text_config = config.get("text_config") or {}
    generation_config = _json_file(path, "generation_config.json", revision=revision)
    places = {"config.json": (config, text_config), "generation_config.json": (generation_config,)}
    ids: set[int] = {tokenizer.eos_token_id}
    for name, settings in places.items():
        for value in (each.get("eos_token_id") for each in settings):
            ids.update(_token_ids(value, where=f"eos_token_id in {name} of {str(path)!r}"))
    # Some files hold -1 for none, or tokens of a larger model of the family: no model samples these.
    vocab_size = text_config.get("vocab_size") or config.get("vocab_size") or len(tokenizer)
    return frozenset(number for number in ids if 0 <= number < vocab_size)


def _token_ids(value: Any, *, where: str) -> list[int]:
    """What stands for one token id, several or none in a model's files."""
    values = value if isinstance(value, list) else [value]
    numbers = [number for number in values if number is not None]
    if not all(isinstance(number, int) for number in numbers):
        raise ModelError(f"{where} is {value!r}; write the number of a token, or a list of numbers")
    return numbers


def _json_file(path: str | Path, name: str, *, revision: str | None) -> dict[str, Any]:
    """The content of a file of the model; empty where the model has no such file."""
    from transformers.utils.hub import cached_file

    with model_errors(name, path):
        file = cached_file(
            path,
            name,
            revision=revision or "main",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,  # what must be there is missed by whoever loads it
        )
        return {} if file is None else dict(json.loads(Path(file).read_bytes()))


def load_model_config(path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The model's configuration: sizes, context length, tied embeddings.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoConfig

    with model_errors("model configuration", path):
        return AutoConfig.from_pretrained(path, revision=revision or "main", trust_remote_code=trust_remote_code)


def read_model_sizes(path: str | Path, *, revision: str | None = None) -> ModelSizes:
    """What the config.json of a model folder or hub id says of the model's widths; loads no library of models.

    Raises:
        ModelError: there is none, or it lacks a width.
    """
    with model_errors("model configuration", path):
        file = Path(path) / "config.json"
        if not Path(path).is_dir():
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(str(path), file.name, revision=revision))
        return _model_sizes(json.loads(file.read_bytes()))


def _model_sizes(values: Mapping[str, Any]) -> ModelSizes:
    num_heads, hidden_size = values["num_attention_heads"], values["hidden_size"]
    head_size = values.get("head_dim") or hidden_size // num_heads
    return ModelSizes(
        hidden_size=hidden_size,
        num_layers=values["num_hidden_layers"],
        query_size=num_heads * head_size,
        key_value_size=(values.get("num_key_value_heads") or num_heads) * head_size,
        feed_forward_size=values["intermediate_size"],
        vocab_size=values["vocab_size"],
        tied=values.get("tie_word_embeddings", True),  # transformers 4 left it out where true
    )


def ties_embeddings(model_config: Any) -> bool:
    """Whether a configuration says that the input embedding is the output head; some have no word for it."""
    return bool(getattr(model_config.get_text_config(), "tie_word_embeddings", False))


def load_generation_config(path: str | Path, *, revision: str | None = None) -> tuple[Any, tuple[str, ...]]:
    """The model's generation settings, and the names of those that had to be left out.

    Files often hold contradictions (a temperature without do_sample), which transformers reads and doesn't write.
    Where there is no generation_config.json, the settings are those that config.json has.

    Raises:
        ModelError: the file is damaged.
    """
    from transformers import GenerationConfig
    from transformers.utils.hub import cached_file

    found: dict[str, Any] = {}
    with model_errors("generation settings", path):
        for name in ("generation_config.json", "config.json"):
            file = cached_file(
                path,
                name,
                revision=revision or "main",
                _raise_exceptions_for_connection_errors=False,  # without network there is what the cache has
                _raise_exceptions_for_missing_entries=False,
            )
            if file is not None:
                values: dict[str, Any] = json.loads(Path(file).read_bytes())
                known = vars(GenerationConfig()) if name == "config.json" else values
                found = {key: value for key, value in values.items() if key in known and value is not None}
                break
    return _without_contradictions(found)


def _without_contradictions(values: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """A GenerationConfig that can be saved, with as many of the values as go together; and the names of the others."""
    from transformers import GenerationConfig
    from transformers.utils import logging

    modes = ("do_sample", "num_beams", "return_dict_in_generate", "use_cache")  # what others depend on
    ours = ("_from_model_config", "_commit_hash", "transformers_version")
    kept: dict[str, Any] = {}
    dropped: list[str] = []
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would warn of every attempt
    try:
        for name in sorted(values.keys() - {*ours}, key=lambda name: (name not in modes, name)):
            try:
                GenerationConfig(**kept, **{name: values[name]}).validate(strict=True)
                kept[name] = values[name]
            except Exception:  # which of them a wrong value raises depends on the setting
                dropped.append(name)
        return GenerationConfig(**kept), tuple(dropped)
    finally:
        logging.set_verbosity(verbosity)


def empty_causal_lm(model_config: Any, *, trust_remote_code: bool = False, attention: str | None = None) -> Any:
    """The model that a configuration describes, on the meta device: no weight is read or allocated.

    Args:
        model_config: of transformers.
        trust_remote_code: run code that the model brings.
        attention: kernels that it has to run on; None takes any.

    Raises:
        ModelError: it isn't a causal language model of the Llama layout, or lacks these kernels.
    """
    import torch
    from transformers import AutoModelForCausalLM

    path = model_config.name_or_path
    with model_errors("causal language model", path), torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(
            model_config, trust_remote_code=trust_remote_code, attn_implementation=attention
        )
    check_layout(causal_lm, path)
    return causal_lm


def check_layout(causal_lm: Any, path: str | Path) -> None:
    """Refuse a model that the learners can't shard and ask for log-probs.

    Raises:
        ModelError: it has no `model.layers`, no `lm_head` of one matrix, or no table of input embeddings.
    """
    from torch import nn

    plain = isinstance(getattr(causal_lm, "lm_head", None), nn.Linear) and isinstance(
        causal_lm.get_input_embeddings(), nn.Embedding
    )
    if not hasattr(getattr(causal_lm, "model", None), "layers") or not plain:
        raise ModelError(
            f"{str(path)!r} holds a {type(causal_lm).__name__} without `model.layers`, a linear `lm_head` and a table "
            "of input embeddings; use a text model of the Llama, Qwen2, Qwen3, Gemma or Mistral family"
        )


def check_not_quantized(model_config: Any) -> None:
    """Refuse weights that can't be trained.

    Raises:
        ModelError: they are quantized.
    """
    settings = getattr(model_config, "quantization_config", None)
    if settings is not None:
        method = settings.get("quant_method") if isinstance(settings, Mapping) else settings.quant_method
        raise ModelError(
            f"the weights of {model_config.name_or_path!r} are quantized ({method}), and can't be trained; use the "
            "model that they were made from"
        )


def check_published_names(causal_lm: Any, path: str | Path) -> None:
    """Refuse a folder whose tensors have other names than the learners' weights: vLLM is sent these by name.

    A hub id is not looked at.

    Raises:
        ModelError: mostly a mixture of experts, whose experts transformers keeps in one tensor.
    """
    if unknown := sorted(tensor_names(path) - causal_lm.state_dict().keys()):
        raise ModelError(
            f"the weights in {str(path)!r} have names that the learners' don't have, among them {unknown[0]!r}, so "
            'that vLLM could not be sent new ones; write engine.type = "transformers", or use a dense text model'
        )


def check_vocabulary(tokenizer: Any, model_config: Any) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for.

    Special tokens that no text prompt holds may lie beyond: Gemma 3's tokenizer has one for images, which its text
    models lack.

    Raises:
        ModelError: it is of another model.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special -= {tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id}
    largest = max(number for number in tokenizer.get_vocab().values() if number not in special)
    if largest >= model_config.vocab_size:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} has tokens up to number {largest}, and the model "
            f"embeddings for {model_config.vocab_size} (vocab_size in config.json); put the model's own tokenizer there"
        )


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
def model_errors(what: str, path: str | Path) -> Iterator[None]:
    """Whatever a library raises inside becomes a ModelError about `what` of the model at `path`.

    So does, before, a path where no folder is and that no hub can have.
    """
    is_folder, may_be_remote = os.path.isdir(path), may_be_hub_id(str(path))
    if path and not is_folder and (os.path.exists(path) or not may_be_remote):
        raise ModelError(f"{_no_folder(path)}; {_WRITE_FOLDER}")
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_CHARACTERS]
        where = f"no {what} can be loaded from {str(path)!r}"
        if is_folder or not path:
            raise ModelError(f"{where} ({reason}); {_WRITE_FOLDER}") from error
        if "/" in str(path) and Path(path).parent.is_dir():  # a misspelt folder rather than an owner on a hub
            raise ModelError(f"{_no_folder(path)}, and no hub that answers has it; {_WRITE_FOLDER}") from error
        raise ModelError(
            f"{where} ({reason}); {_WRITE_FOLDER}; without network fetch it elsewhere (hf download {path} --local-dir "
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
