"""Tokenizer and configuration of a Hugging Face model, loaded and checked with clear errors, without its weights.

Broken files make the libraries raise all kinds of errors; each becomes a ModelError here, with its cause.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

from gvm_ray.exceptions import ModelError
from gvm_ray.maths.memory import ModelSizes
from gvm_ray.model_files import find_file, model_errors, stored_tensors, tensor_names
from gvm_ray.types import FloatArray, IntArray

_WIDTHS = ("num_attention_heads", "hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
_USE_FAMILY = "use a text model of the Llama, Qwen2, Qwen3, Gemma or Mistral family"


def load_tokenizer(path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder or hub id; for the tokens that end a response see `load_end_token_ids`.

    Raises:
        ModelError: the tokenizer or its vocabulary is missing, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    with model_errors("tokenizer", path):
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision or "main", trust_remote_code=trust_remote_code
        )
    if not tokenizer("0", add_special_tokens=False)[
        "input_ids"
    ]:  # without any files, transformers makes an empty tokenizer
        raise ModelError(
            f"the tokenizer of {str(path)!r} knows no text, probably because its vocabulary is missing; put the "
            "model's tokenizer.json and tokenizer_config.json there"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {str(path)!r} has no end-of-sequence token; set eos_token in its files")
    return tokenizer


def load_end_token_ids(path: str | Path, *, tokenizer: Any, revision: str | None = None) -> frozenset[int]:
    """All token ids that end a response, from the tokenizer, generation_config.json and config.json.

    Chat models end a turn with another token than a text, and often name it in only one of these places.

    Args:
        path: the model folder, or a hub id.
        tokenizer: of the model.
        revision: of a hub id; None takes the newest.

    Raises:
        ModelError: a file can't be read, or has a value that isn't a token id.
    """
    config = _json_file(path, "config.json", revision=revision)
    text_config = config.get("text_config") or {}
    generation_config = _json_file(path, "generation_config.json", revision=revision)
    places = {"config.json": (config, text_config), "generation_config.json": (generation_config,)}
    ids: set[int] = {tokenizer.eos_token_id}
    for name, settings in places.items():
        for value in (each.get("eos_token_id") for each in settings):
            ids.update(_token_ids(value, where=f"eos_token_id in {name} of {str(path)!r}"))
    # Some files have -1 for none, or tokens of a larger model of the family, which this model never samples.
    vocab_size = text_config.get("vocab_size") or config.get("vocab_size") or len(tokenizer)
    return frozenset(number for number in ids if 0 <= number < vocab_size)


def _token_ids(value: Any, *, where: str) -> list[int]:
    """The token ids in a value of a model's files, which holds one, several or none."""
    values = value if isinstance(value, list) else [value]
    numbers = [number for number in values if number is not None]
    if not all(isinstance(number, int) for number in numbers):
        raise ModelError(f"{where} is {value!r}; write the number of a token, or a list of numbers")
    return numbers


def _json_file(path: str | Path, name: str, *, revision: str | None) -> dict[str, Any]:
    """The content of one of the model's JSON files; empty if the model doesn't have the file."""
    with model_errors(name, path):
        file = find_file(path, name, revision=revision)
        return {} if file is None else _json_object(file, path)


def _json_object(file: Path, path: str | Path) -> dict[str, Any]:
    """The JSON object in a file of the model at `path`.

    Raises:
        ModelError: the file doesn't hold a JSON object.
    """
    content = file.read_bytes()
    try:
        values = json.loads(content)
        wrong = f"holds {shorten(json.dumps(values), 60)}, not an object"
    except ValueError as error:
        values, wrong = None, f"isn't JSON ({error})"
    if isinstance(values, dict):
        return values
    leave_out = ", or delete it, as it is not needed" if file.name == "generation_config.json" else ""
    raise ModelError(f"{file.name} of {str(path)!r} {wrong}; put the model's own {file.name} there{leave_out}")


def load_model_config(path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The model's configuration: sizes, context length, tied embeddings.

    Raises:
        ModelError: it can't be loaded.
    """
    from transformers import AutoConfig

    with model_errors("model configuration", path):
        return AutoConfig.from_pretrained(path, revision=revision or "main", trust_remote_code=trust_remote_code)


def read_model_sizes(path: str | Path, *, revision: str | None = None) -> ModelSizes:
    """The model's sizes from the config.json of a folder or hub id; imports no model library.

    Raises:
        ModelError: config.json is missing, or lacks a size.
    """
    with model_errors("model configuration", path):
        file = Path(path) / "config.json"
        if not Path(path).is_dir():
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(str(path), file.name, revision=revision))
        values = _json_object(file, path)
        if missing := [name for name in _WIDTHS if name not in values]:
            raise ModelError(
                f"config.json of {str(path)!r} has no {missing[0]} at the top level, as those of models that take "
                f"images or sound too, which aren't supported; {_USE_FAMILY}"
            )
        return _model_sizes(values)


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
        tied=values.get("tie_word_embeddings", True),  # transformers 4 left it out if true
    )


def load_generation_config(path: str | Path, *, revision: str | None = None) -> tuple[Any, tuple[str, ...]]:
    """The model's generation settings, and the names of those that had to be left out.

    Files often have contradictions (a temperature without do_sample), which transformers reads but doesn't write.
    Without generation_config.json, the settings come from config.json.

    Raises:
        ModelError: the file is damaged.
    """
    from transformers import GenerationConfig

    found: dict[str, Any] = {}
    with model_errors("generation settings", path):
        for name in ("generation_config.json", "config.json"):
            file = find_file(path, name, revision=revision)
            if file is not None:
                values = _json_object(file, path)
                known = vars(GenerationConfig()) if name == "config.json" else values
                found = {key: value for key, value in values.items() if key in known and value is not None}
                break
    return _without_contradictions(found)


def _without_contradictions(values: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """A GenerationConfig that can be saved, with as many of the values as are compatible; and the others' names."""
    from transformers import GenerationConfig
    from transformers.utils import logging

    modes = ("do_sample", "num_beams", "return_dict_in_generate", "use_cache")  # the others depend on these
    ours = ("_from_model_config", "_commit_hash", "transformers_version")
    kept: dict[str, Any] = {}
    dropped: list[str] = []
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # every attempt would log a warning
    try:
        for name in sorted(values.keys() - {*ours}, key=lambda name: (name not in modes, name)):
            try:
                GenerationConfig(**kept, **{name: values[name]}).validate(strict=True)
                kept[name] = values[name]
            except Exception:  # the type of the error depends on the setting
                dropped.append(name)
        return GenerationConfig(**kept), tuple(dropped)
    finally:
        logging.set_verbosity(verbosity)


def empty_causal_lm(model_config: Any, *, trust_remote_code: bool = False, attention: str | None = None) -> Any:
    """The model that a configuration describes, on the meta device: no weights are read or allocated.

    Args:
        model_config: a configuration of transformers.
        trust_remote_code: run the model's own code.
        attention: the attention kernels that it must support; None takes any.

    Raises:
        ModelError: it isn't a causal language model with Llama's layout, or doesn't support the kernels.
    """
    import torch
    from transformers import AutoModelForCausalLM

    path = model_config.name_or_path
    remedy = f"put the model's own config.json there, or {_USE_FAMILY}"
    with model_errors("causal language model", path, remedy=remedy), torch.device("meta"):
        try:
            causal_lm = AutoModelForCausalLM.from_config(
                model_config, trust_remote_code=trust_remote_code, attn_implementation=attention
            )
        except ValueError as error:
            if "does not support an attention implementation" not in str(error):
                raise
            raise ModelError(
                f"{str(path)!r} holds a model of type {model_config.model_type!r}, which can't run on PyTorch's "
                f"scaled_dot_product_attention, which the learners need; {_USE_FAMILY}"
            ) from error
    check_layout(causal_lm, path)
    return causal_lm


def check_layout(causal_lm: Any, path: str | Path) -> None:
    """Refuse a model that the learners can't shard or compute log-probs with.

    Raises:
        ModelError: it has no `model.layers`, no `lm_head` with a single matrix, or no table of input embeddings.
    """
    from torch import nn

    plain = isinstance(getattr(causal_lm, "lm_head", None), nn.Linear) and isinstance(
        causal_lm.get_input_embeddings(), nn.Embedding
    )
    if not hasattr(getattr(causal_lm, "model", None), "layers") or not plain:
        raise ModelError(
            f"{str(path)!r} holds a {type(causal_lm).__name__} without `model.layers`, a linear `lm_head` and a table "
            f"of input embeddings; {_USE_FAMILY}"
        )


def read_embeddings(
    path: str | Path, token_ids: IntArray, *, revision: str | None = None, trust_remote_code: bool = False
) -> FloatArray:
    """The input embeddings [U, E] of some tokens, in float32, from the weight files alone: no model is built.

    They are the table's rows; factors by which some families multiply them aren't applied.

    Args:
        path: the model folder, or a hub id.
        token_ids: [U] of the tokens.
        revision: of a hub id; None takes the newest.
        trust_remote_code: run the model's own code, which tells the table's name.

    Raises:
        ModelError: the table can't be found or read.
    """
    import torch

    model_config = load_model_config(path, revision=revision, trust_remote_code=trust_remote_code)
    causal_lm = empty_causal_lm(model_config, trust_remote_code=trust_remote_code)
    read = find_embeddings(causal_lm, path, revision=revision)
    with model_errors("input embeddings", path):
        return read()[torch.from_numpy(token_ids.astype("int64"))].float().numpy()


def find_embeddings(causal_lm: Any, path: str | Path, *, revision: str | None = None) -> Callable[[], Any]:
    """A function that reads the table of input embeddings [V, E] from the weight files of a folder or hub id.

    Files may name it otherwise than the model: without the model's prefix, below another one, or, if the output head
    is tied to it, by the head's name.

    Args:
        causal_lm: the model, with or without weights.
        path: its folder, or its hub id.
        revision: of a hub id; None takes the newest.

    Raises:
        ModelError: no tensor in the files has such a name, or the function finds another shape than the model's.
    """
    table = causal_lm.get_input_embeddings().weight
    names = [name for name, each in causal_lm.named_parameters(remove_duplicate=False) if each is table]
    stored = stored_tensors(path, revision=revision)
    endings = [".".join(name.split(".")[-2:]) for name in names]
    known = [name for name in names if name in stored]
    similar = [
        min((name for name in stored if f".{name}".endswith(f".{end}")), key=len, default=None) for end in endings
    ]
    found = next((name for name in (*known, *similar) if name is not None), None)
    if found is None:
        raise ModelError(
            f"the weights of {str(path)!r} have no table of input embeddings {names[0]!r}, which allocator.states = "
            '"embedding" takes; put the model\'s own weights there, or write allocator.states = "none"'
        )

    def read() -> Any:
        values = stored[found]()
        if values.shape != table.shape:
            raise ModelError(
                f"the table of input embeddings {found!r} of {str(path)!r} has the shape {list(values.shape)}, and the "
                f"model's has {list(table.shape)}; put the model's own weights there"
            )
        return values

    return read


def check_not_quantized(model_config: Any) -> None:
    """Refuse quantized weights, which can't be trained.

    Raises:
        ModelError: the weights are quantized.
    """
    settings = getattr(model_config, "quantization_config", None)
    if settings is not None:
        method = settings.get("quant_method") if isinstance(settings, Mapping) else settings.quant_method
        raise ModelError(
            f"the weights of {model_config.name_or_path!r} are quantized ({method}), and can't be trained; use the "
            "model that they were made from"
        )


def check_published_names(causal_lm: Any, path: str | Path) -> None:
    """Refuse a folder whose tensor names differ from those of the learners' weights, which vLLM receives by name.

    Hub ids aren't checked.

    Raises:
        ModelError: names differ, mostly in a mixture of experts: transformers keeps its experts in one tensor.
    """
    if unknown := sorted(tensor_names(path) - causal_lm.state_dict().keys()):
        raise ModelError(
            f"the weights in {str(path)!r} have names that the learners' don't have, among them {unknown[0]!r}, so "
            'vLLM could not receive new weights; write engine.type = "transformers", or use a dense text model'
        )


def check_vocabulary(tokenizer: Any, model_config: Any) -> None:
    """Refuse a tokenizer with tokens for which the model has no embedding.

    Special tokens that never occur in text prompts may have none: Gemma 3's tokenizer has a token for images, which
    its text models lack.

    Raises:
        ModelError: the tokenizer belongs to another model.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special -= {tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id}
    largest = max(number for number in tokenizer.get_vocab().values() if number not in special)
    if largest >= model_config.vocab_size:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} has tokens up to number {largest}, but the model has "
            f"embeddings for {model_config.vocab_size} (vocab_size in config.json); put the model's own tokenizer there"
        )
