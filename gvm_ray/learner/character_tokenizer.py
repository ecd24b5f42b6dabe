"""The tokenizer of scratch models: one token a character, so that tiny models read digits and operators one by one.

`\\boxed{` is a single token: the answer marker costs one decision, not seven.
"""

from typing import TYPE_CHECKING

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
