"""What every part asks of a Hugging Face model before its weights: tokenizer and configuration, with clear errors.

Broken files make the libraries raise errors of every kind; each becomes a ModelError here, with its cause.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gvm_ray.exceptions import ModelError, likely_paths, may_be_hub_id
from gvm_ray.functional.memory import ModelSizes

_SHARDS_INDEX = "model.safetensors.index.json"
_REASON_CHARACTERS = 300  # of a library's message, which can be pages
_WRITE_FOLDER = (
    "write model.path as a folder with config.json, weights and tokenizer files, or as a hub id that this machine can "
    "reach"
)


def load_tokenizer(path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder or hub id; its `eos_token_id` is the one token that ends a response.

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
    for file in sorted(Path(path).glob("*.safetensors")):
        with file.open("rb") as weights:
            while piece := weights.read(2**24):
                digest.update(piece)
    return digest.hexdigest()[:16]
