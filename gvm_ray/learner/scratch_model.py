"""Scratch base models: small, with random weights and a character tokenizer; and the cache key of a warm start."""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from gvm_ray.config.model import DType, ModelSettings, PretrainedModelConfig, ScratchModelConfig, WarmStartConfig
from gvm_ray.config.prompts import FileSourceConfig, HuggingFaceSourceConfig, PromptsConfig, SourceSettings
from gvm_ray.learner.model_folder import write_model_folder
from gvm_ray.model_files import file_digests, model_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD_TOKEN = "<|pad|>"
EOS_TOKEN = "<|endoftext|>"
BOXED_TOKEN = "\\boxed{"
CHARACTERS = "\n" + "".join(chr(code) for code in range(0x20, 0x7F))

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def build_character_tokenizer() -> "PreTrainedTokenizerFast":
    """A tokenizer over newline and printable ASCII, with pad and end-of-sequence as special tokens.

    Text of these characters survives encoding and decoding byte for byte: no special token is added, and no space is
    cleaned up. Any other character is dropped.

    It is a byte-level BPE without merges rather than a word-level model, because `AutoTokenizer` (and thus vLLM) loads
    every tokenizer in a folder with a Qwen2 configuration as `Qwen2Tokenizer`, whatever class its files name.
    """
    from tokenizers import pre_tokenizers
    from transformers import AddedToken, Qwen2Tokenizer

    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # byte-level BPE spells " " as "Ġ"
    spelled = [to_bytes.pre_tokenize_str(character)[0][0] for character in CHARACTERS]
    vocabulary = {token: index for index, token in enumerate([PAD_TOKEN, EOS_TOKEN, BOXED_TOKEN, *spelled])}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        unk_token=EOS_TOKEN,  # never produced; without it the class would add a token of its own
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    tokenizer.add_tokens([AddedToken(BOXED_TOKEN, normalized=False, special=False)])
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


CACHE_FORMAT = 2  # raise it when the same settings begin to give another model, tokenizer or warm start


def build_scratch_model(config: ScratchModelConfig, folder: str | Path) -> None:
    """Write a Hugging Face model folder: configuration, random safetensors weights, tokenizer, generation settings.

    The random weights depend on `config.seed` alone. The global random state is unchanged.
    """
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    tokenizer = build_character_tokenizer()
    eos_id, pad_id = tokenizer.encode(EOS_TOKEN)[0], tokenizer.encode(PAD_TOKEN)[0]
    model_config = Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_key_value_heads,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_word_embeddings,
        initializer_range=config.hidden_size**-0.5,  # the default 0.02 suits widths in the thousands
        bos_token_id=None,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Qwen2ForCausalLM(model_config)
    tokenizer.model_max_length = config.max_position_embeddings
    write_model_folder(
        folder,
        model_config=model_config,
        generation_config=GenerationConfig(eos_token_id=eos_id, pad_token_id=pad_id),
        tensors=model.state_dict().items(),
        tokenizer=tokenizer,
    )


def warm_start_key(model: ModelSettings, *, prompts: PromptsConfig, warm_start: WarmStartConfig, dtype: DType) -> str:
    """Cache key of 16 hex digits that changes with everything the warm-started weights depend on.

    `prompts.train` is what the warm start learns from. Files named in the settings are included with their content. So
    are the evaluation's files: their problems are excluded from the demonstrations.

    Raises:
        ModelError: a hub id's commit can't be determined.
    """
    values: dict[str, Any] = {
        "format": CACHE_FORMAT,
        "model": model.model_dump(mode="json"),
        "prompts": prompts.model_dump(mode="json", exclude={"shuffle"}),
        "warm_start": warm_start.model_dump(mode="json", exclude={"cache", "source"}),
        "dtype": dtype,
        "data": [_local_files(source.path) for source in (prompts.train, prompts.eval) if _has_files(source)],
    }
    if isinstance(model, PretrainedModelConfig):
        values["files"] = model_files(model.path, revision=model.revision)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _has_files(source: SourceSettings | None) -> TypeGuard[FileSourceConfig | HuggingFaceSourceConfig]:
    return isinstance(source, FileSourceConfig | HuggingFaceSourceConfig)


def _local_files(path: str) -> dict[str, str]:
    """Digests of the file at a path, or of all files in the folder there; empty for a hub id."""
    root = Path(os.path.expanduser(path))  # Path.expanduser raises if there is no such user
    files = root.rglob("*") if root.is_dir() else [root]
    # Unreadable files are skipped here: loading them reports the error.
    return file_digests(
        {str(file.relative_to(root)): file for file in files if file.is_file() and os.access(file, os.R_OK)}
    )
