"""Base models made on the spot: small, random, with a character tokenizer; and the cache key of a warm start."""

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

    Text over these characters survives encode and decode to the byte; no special token is added, no space cleaned up.
    Any other character is dropped.

    It is a byte-level BPE without merges and not a word-level model: `AutoTokenizer` (and vLLM through it) rebuilds
    every tokenizer that lies beside a Qwen2 configuration as `Qwen2Tokenizer`, whatever class its files name.
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
        unk_token=EOS_TOKEN,  # never produced; left out, the class adds a token of its own
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    tokenizer.add_tokens([AddedToken(BOXED_TOKEN, normalized=False, special=False)])
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


CACHE_FORMAT = 2  # raised whenever the same settings give another model, tokenizer or warm start


def build_scratch_model(config: ScratchModelConfig, folder: str | Path) -> None:
    """Write a Hugging Face model folder: configuration, random safetensors weights, tokenizer, generation settings.

    The weights depend on `config.seed` alone; the global random state is left as it was.
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
    """16 hexadecimal digits that change with everything the warm-started weights depend on.

    The files that the settings name count with their content. The evaluation's do too: none of its problems is shown.

    Raises:
        ModelError: a hub id's commit can't be told.
    """
    values: dict[str, Any] = {
        "format": CACHE_FORMAT,
        "model": model.model_dump(mode="json"),
        "prompts": prompts.model_dump(mode="json", exclude={"shuffle"}),
        "warm_start": warm_start.model_dump(mode="json", exclude={"cache"}),
        "dtype": dtype,
        "data": [_local_files(source.path) for source in (prompts.train, prompts.eval) if _has_files(source)],
    }
    if isinstance(model, PretrainedModelConfig):
        values["files"] = model_files(model.path, revision=model.revision)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _has_files(source: SourceSettings | None) -> TypeGuard[FileSourceConfig | HuggingFaceSourceConfig]:
    return isinstance(source, FileSourceConfig | HuggingFaceSourceConfig)


def _local_files(path: str) -> dict[str, str]:
    """Digests of the file at a path, or of those in the folder there; none of a hub id."""
    root = Path(os.path.expanduser(path))  # Path.expanduser raises where there is no such user
    files = root.rglob("*") if root.is_dir() else [root]
    # What can't be read is told by whoever reads it.
    return file_digests(
        {str(file.relative_to(root)): file for file in files if file.is_file() and os.access(file, os.R_OK)}
    )
