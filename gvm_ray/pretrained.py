"""What every part asks of a Hugging Face model before its weights: tokenizer and configuration, with clear errors.

Broken files make the libraries raise errors of every kind; each becomes a ModelError here, with its cause.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from gvm_ray.exceptions import ModelError
from gvm_ray.functional.memory import ModelSizes

_SHARDS_INDEX = "model.safetensors.index.json"
_COUNTED = ("[!.]*", "*chat_templates/[!.]*")  # transformers reads additional_chat_templates/ besides the folder itself
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth"}
_REASON_CHARACTERS = 300  # of a library's message, which can be pages


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


def empty_causal_lm(model_config: Any, *, trust_remote_code: bool = False) -> Any:
    """The model that a configuration describes, on the meta device: no weight is read or allocated.

    Raises:
        ModelError: it isn't a causal language model of the Llama layout.
    """
    import torch
    from transformers import AutoModelForCausalLM

    path = model_config.name_or_path
    with model_errors("causal language model", path), torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(model_config, trust_remote_code=trust_remote_code)
    check_layout(causal_lm, path)
    return causal_lm


def check_layout(causal_lm: Any, path: str | Path) -> None:
    """Refuse a model that the learners can't shard and ask for log-probs.

    Raises:
        ModelError: it has no `model.layers` or no `lm_head`.
    """
    if not hasattr(getattr(causal_lm, "model", None), "layers") or not hasattr(causal_lm, "lm_head"):
        raise ModelError(
            f"{str(path)!r} holds a {type(causal_lm).__name__} without `model.layers` and `lm_head`; "
            "use a model of the Llama, Qwen2, Qwen3 or Mistral family"
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
    files = {*folder.glob("*.safetensors")}
    if (folder / _SHARDS_INDEX).is_file():
        with model_errors("index of the weights", path):
            files |= {
                folder / name for name in json.loads((folder / _SHARDS_INDEX).read_bytes())["weight_map"].values()
            }
    if not files and not any(folder.glob("*.bin")):
        raise ModelError(
            f"there are no weights in {str(path)!r}: neither *.safetensors nor *.bin; put the model's files there"
        )
    for file in sorted(files):
        damaged = f"weights (file {file.name!r} is missing or damaged; fetch it anew)"
        with model_errors(damaged, path), safe_open(file, framework="np"):
            pass


@contextmanager
def model_errors(what: str, path: str | Path) -> Iterator[None]:
    """Whatever a library raises inside becomes a ModelError about `what` of the model at `path`."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_CHARACTERS]
        fetch = f"; without network fetch it elsewhere (hf download {path} --local-dir FOLDER) and write FOLDER"
        raise ModelError(
            f"no {what} can be loaded from {str(path)!r} ({reason}); write model.path as a "
            "folder with config.json, weights and tokenizer files, or as a hub id that this machine can reach"
            + (fetch if _is_hub_id(str(path)) else "")
        ) from error


def _is_hub_id(path: str) -> bool:
    """Whether it reads like one rather than like a folder that isn't there."""
    return bool(re.fullmatch(r"\w[\w-]*/\w[\w.-]*", path)) and not Path(path).parent.exists()


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
