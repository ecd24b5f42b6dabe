"""Memory estimates of a run, by arithmetic on sizes, so that a run that can't fit is rejected before it starts."""

import math
from dataclasses import dataclass

KEPT_KEY_COPIES = 3  # of keys and values, in lengths of the row: what attention with shared prompts keeps at most


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Widths of a dense decoder of the Llama layout.

    Norms and biases aren't counted: they are less than a thousandth of a real model.
    """

    hidden_size: int
    num_layers: int
    query_size: int  # query heads x head dimension
    key_value_size: int  # key heads x head dimension, the same for values
    feed_forward_size: int
    vocab_size: int
    tied: bool  # one matrix is input embedding and output head

    @property
    def block_parameters(self) -> int:
        """Parameters of one block: queries and output, keys and values, and a gated feed-forward of three matrices."""
        attention = 2 * (self.query_size + self.key_value_size)
        return self.hidden_size * (attention + 3 * self.feed_forward_size)

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the input embedding and the output head."""
        return self.vocab_size * self.hidden_size * (1 if self.tied else 2)

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of LoRA adapters of this rank on all linear layers of the blocks."""
        attention = 2 * (self.hidden_size + self.query_size) + 2 * (self.hidden_size + self.key_value_size)
        feed_forward = 3 * (self.hidden_size + self.feed_forward_size)
        return self.num_layers * rank * (attention + feed_forward)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model."""
        return self.num_layers * self.block_parameters + self.embedding_parameters


@dataclass(frozen=True, kw_only=True)
class LearnerBytes:
    """Bytes of one FSDP2 learner rank."""

    master_weights: int
    gradients: int
    optimizer_moments: int
    reference_weights: int
    gathered_weights: int
    activations: int
    shared_prompts: int
    logits: int


@dataclass(frozen=True, kw_only=True)
class SharedPromptSizes:
    """Sizes of the attention within rows that hold a prompt once for several responses."""

    kept_copies: float  # of keys and values, in lengths of the row, that every block keeps for the backward pass
    most_copies: float  # the same of the block at work
    whole_heads: bool  # copies have as many heads as queries
    mask_keys: int  # keys that a mask has for each query


def learner_bytes(
    sizes: ModelSizes,
    *,
    num_ranks: int,
    micro_batch_tokens: int,
    chunk_tokens: int,
    value_bytes: int,
    has_reference: bool,
    activation_checkpointing: bool,
    adapter_rank: int | None = None,
    shared_prompts: SharedPromptSizes | None = None,
    sharded: bool = True,
) -> LearnerBytes:
    """Compute the peak memory of a rank, in the backward pass of a full micro-batch.

    Float32 master weights, gradients, two Adam moments, and the weights of a frozen reference are sharded over the
    ranks. The root (embedding and head) and two blocks, the second one prefetched, are gathered: weights and gradients
    in the dtype of the passes, and gradients again in float32 for their reduction. So is the root of a reference.

    Args:
        sizes: sizes of the model.
        num_ranks: number of ranks over which the states are sharded.
        micro_batch_tokens: tokens of one forward pass on a rank.
        chunk_tokens: rows of logits alive at once.
        value_bytes: bytes of one value in the passes: 4 in float32, 2 in bfloat16.
        has_reference: whether the learner holds a reference policy.
        activation_checkpointing: whether only the inputs of blocks are kept, and blocks recomputed one at a time.
        adapter_rank: rank of LoRA adapters; only these are then trained, and the base weights serve as reference.
        shared_prompts: sizes of the attention with shared prompts; None where none are shared.
        sharded: whether weights are gathered for a pass; a single rank can hold them whole.
    """
    adapters = 0 if adapter_rank is None else sizes.adapter_parameters(adapter_rank)
    trained, has_reference = adapters or sizes.num_parameters, has_reference and not adapters
    shard, trained_shard = (-(-4 * count // num_ranks) for count in (sizes.num_parameters, trained))
    root, of_gradients = sizes.embedding_parameters, 0 if adapters else value_bytes + 4
    gathered = (root + 2 * sizes.block_parameters) * (value_bytes + of_gradients) + has_reference * root * value_bytes
    inputs, block = sizes.hidden_size, _block_values(sizes)
    copied = _copied_values(sizes, shared_prompts, activation_checkpointing)
    kept = sizes.num_layers * inputs + block if activation_checkpointing else sizes.num_layers * block
    return LearnerBytes(
        master_weights=shard + -(-4 * adapters // num_ranks),
        gradients=trained_shard,
        optimizer_moments=2 * trained_shard,
        reference_weights=shard * has_reference,
        gathered_weights=gathered * sharded,
        activations=micro_batch_tokens * kept * value_bytes,
        shared_prompts=micro_batch_tokens * copied * value_bytes,
        # In float32: two chunks of kept distributions, and of a third logits and distribution. Else as in the passes.
        logits=(4 * 4 + 2 * value_bytes) * min(chunk_tokens, micro_batch_tokens) * sizes.vocab_size,
    )


def _block_values(sizes: ModelSizes) -> int:
    """The number of values per token that the backward pass of one block needs.

    For each of two norms: the input (kept as two 16-bit values or one 32-bit value), the normalised input and the
    output. For attention: queries, keys, values and output. For the feed-forward: gate, activated gate, up projection
    and product. Attention is fused, without a matrix of tokens x tokens.
    """
    norms = 8 * sizes.hidden_size
    attention = 2 * sizes.query_size + 2 * sizes.key_value_size
    return norms + attention + 4 * sizes.feed_forward_size


def _copied_values(sizes: ModelSizes, shared: SharedPromptSizes | None, activation_checkpointing: bool) -> int:
    """The number of values per token that attention with shared prompts takes besides those of `_block_values`.

    Keys and values are copied behind every response, and the output, padded, is kept besides the row's own. The block
    at work has all its copies. One mask serves all blocks.
    """
    if shared is None:
        return 0
    width = 2 * (sizes.query_size if shared.whole_heads else sizes.key_value_size)
    num_keeping = 1 if activation_checkpointing else sizes.num_layers
    kept = num_keeping * (sizes.query_size + shared.kept_copies * width)
    return math.ceil(kept + max(shared.most_copies - shared.kept_copies, 0) * width) + shared.mask_keys


def key_value_bytes(sizes: ModelSizes, *, value_bytes: int) -> int:
    """The KV-cache bytes of one token, over all layers."""
    return 2 * sizes.num_layers * sizes.key_value_size * value_bytes
