"""What every part asks of a Hugging Face model before its weights: tokenizer and configuration, with clear errors."""

from pathlib import Path
from typing import Any

from gvm_ray.exceptions import ModelError


def load_tokenizer(path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder or hub id; its `eos_token_id` is the one token that ends a response.

    Raises:
        ModelError: there is none, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision or "main", trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _not_loaded("tokenizer", path, error) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {str(path)!r} has no end-of-sequence token; set eos_token in its files")
    return tokenizer


def load_model_config(path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The model's configuration: sizes, context length, tied embeddings.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, revision=revision or "main", trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise _not_loaded("model configuration", path, error) from error


def _not_loaded(what: str, path: str | Path, error: Exception) -> ModelError:
    return ModelError(
        f"no {what} can be loaded from {str(path)!r} ({str(error).splitlines()[0]}); write model.path as a folder with "
        "config.json, weights and tokenizer files, or as a hub id that this machine can reach"
    )
