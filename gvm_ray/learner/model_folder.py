"""Writes Hugging Face model folders from gathered weights."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvm_ray.exceptions import StorageFailure

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

    Raises:
        StorageFailure: the disk is full, or can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(folder)
    kept = {
        name: tensor.contiguous()
        for name, tensor in tensors
        if not (model_config.tie_word_embeddings and name == "lm_head.weight")
    }
    model_config.dtype = next(iter(kept.values())).dtype
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(folder)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        if generation_config is not None:
            generation_config.save_pretrained(folder)
        model_config.save_pretrained(folder)  # last: a folder with a config.json is taken for complete
    except (OSError, SafetensorError) as error:
        raise StorageFailure.at(folder, error) from error
