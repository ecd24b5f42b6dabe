"""Writes Hugging Face model folders from gathered weights."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvm_ray.exceptions import ModelError, StorageFailure
from gvm_ray.model_files import ties_embeddings
from gvm_ray.pretrained import empty_causal_lm, load_model_config, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor


def write_model_folder(
    folder: str | Path,
    *,
    model_config: Any,
    generation_config: Any | None,
    tensors: "Iterable[tuple[str, Tensor]]",
    tokenizer: Any,
    causal_lm: Any | None = None,
) -> None:
    """Write configuration, safetensors weights and tokenizer. The configuration records the weights' dtype.

    With tied weights the output head is left out, as in transformers.

    Args:
        folder: created if it doesn't exist.
        model_config: transformers configuration.
        generation_config: transformers generation settings, or None.
        tensors: Hugging Face names and CPU tensors.
        tokenizer: transformers tokenizer.
        causal_lm: the model; if it came with its own code, that is written too.

    Raises:
        StorageFailure: the disk is full or can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(folder)
    tied = ties_embeddings(model_config)
    kept = {name: tensor.contiguous() for name, tensor in tensors if not (tied and name == "lm_head.weight")}
    model_config.dtype = next(iter(kept.values())).dtype
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        _write_settings(
            folder, model_config, generation_config=generation_config, tokenizer=tokenizer, causal_lm=causal_lm
        )
    except (OSError, SafetensorError) as error:
        raise StorageFailure.at(folder, error) from error


def try_model_folder(causal_lm: Any, *, generation_config: Any, tokenizer: Any, trust_remote_code: bool) -> None:
    """Write everything but the weights to a temporary folder and read it back, to find errors before the first step.

    Args:
        causal_lm: the model; its weights may be on the meta device.
        generation_config: transformers generation settings.
        tokenizer: transformers tokenizer.
        trust_remote_code: run code that comes with the model.

    Raises:
        ModelError: the folder can't be written, or can't be read back.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            _write_settings(
                Path(folder),
                causal_lm.config,
                generation_config=generation_config,
                tokenizer=tokenizer,
                causal_lm=causal_lm,
            )
            written = load_model_config(folder, trust_remote_code=trust_remote_code)
            empty_causal_lm(written, trust_remote_code=trust_remote_code)
            load_tokenizer(folder, trust_remote_code=trust_remote_code)
        except Exception as error:  # each library raises its own types
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ModelError(
                f"a model trained from {causal_lm.name_or_path!r} can't be exported ({reason}); fix its config.json, "
                "generation_config.json or tokenizer files"
            ) from error


def _write_settings(
    folder: Path, model_config: Any, *, generation_config: Any | None, tokenizer: Any, causal_lm: Any | None
) -> None:
    from transformers.dynamic_module_utils import custom_object_save

    tokenizer.save_pretrained(folder)
    if generation_config is not None:
        generation_config.save_pretrained(folder)
    if getattr(causal_lm, "_auto_class", None) is not None:
        custom_object_save(causal_lm, folder, config=model_config)
    model_config.save_pretrained(folder)  # last: a folder with a config.json counts as complete
