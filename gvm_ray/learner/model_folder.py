"""Hugging Face model folders: writing one from gathered weights, and reading a tokenizer from one."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvm_ray.exceptions import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def write_model_folder(
    folder: str | Path,
    *,
    model_config: Any,
    generation_config: Any | None,
    tensors: "Iterable[tuple[str, Tensor]]",
    tokenizer: Any,
) -> None:
    """Write configuration, safetensors weights and tokenizer; the weights' dtype is noted in the configuration.

    The output head of tied weights is left out, as transformers does.

    Args:
        folder: made if it isn't there.
        model_config: transformers configuration.
        generation_config: transformers generation settings, or None.
        tensors: Hugging Face names and CPU tensors.
        tokenizer: transformers tokenizer.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        name: tensor.contiguous()
        for name, tensor in tensors
        if not (model_config.tie_word_embeddings and name == "lm_head.weight")
    }
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    model_config.dtype = next(iter(kept.values())).dtype
    model_config.save_pretrained(folder)
    if generation_config is not None:
        generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_tokenizer(path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a Hugging Face model folder or hub id.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, revision=revision or "main", trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no tokenizer can be loaded from {str(path)!r} ({str(error).splitlines()[0]}); "
            "copy the model's tokenizer files into its folder"
        ) from error
