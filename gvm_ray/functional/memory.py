"""How many bytes a run needs: arithmetic on sizes, so that a batch that can't fit is refused before it is tried."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What the estimate needs to know of a decoder."""

    num_parameters: int
    hidden_size: int
    num_layers: int
    vocab_size: int


# Values kept for the backward pass of one decoder block, per token and unit of hidden size: the attention's inputs,
# queries, keys, values and output, two norms, and a feed-forward three to four times as wide (arXiv 2205.05198,
# section 4, counts 34 bytes in 16 bits without the attention matrix).
_ACTIVATIONS_PER_HIDDEN = 17


def learner_bytes(
    sizes: ModelSizes, *, micro_batch_tokens: int, chunk_tokens: int, value_bytes: int, has_reference: bool
) -> int:
    """Bytes of all learner ranks together, one micro-batch on each not counted twice.

    Float32 master weights, gradients and two Adam moments, a frozen reference where there is one, the activations of
    one micro-batch, and the logits that are alive at once, with their gradient.

    Args:
        sizes: of the model.
        micro_batch_tokens: tokens of one forward pass.
        chunk_tokens: rows of logits alive at once.
        value_bytes: of one activation: 4 in float32, 2 in bfloat16.
        has_reference: whether a reference policy is held.
    """
    states = sizes.num_parameters * 4 * (4 + has_reference)
    activations = micro_batch_tokens * sizes.hidden_size * sizes.num_layers * _ACTIVATIONS_PER_HIDDEN * value_bytes
    logits = 3 * min(chunk_tokens, micro_batch_tokens) * sizes.vocab_size * 4
    return states + activations + logits


def generator_bytes(sizes: ModelSizes, *, value_bytes: int, kv_cache_bytes: int) -> int:
    """Bytes of one generator on a CPU: its weights, once more while new ones are loaded, and its key-value cache."""
    return 2 * sizes.num_parameters * value_bytes + kv_cache_bytes
