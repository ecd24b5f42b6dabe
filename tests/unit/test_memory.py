"""Bytes of learners and caches: hand-computed, and beside what transformers and autograd say of the same model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from gvm_ray.learner.shared_prompts import KERNELS, register_shared_sdpa, shared_row
from gvm_ray.maths.memory import LearnerBytes, ModelSizes, SharedPromptSizes, key_value_bytes, learner_bytes
from gvm_ray.pretrained import empty_causal_lm, read_model_sizes
from tests.model_shapes import SHAPES, write_shape

SMALL = ModelSizes(
    hidden_size=10,
    num_layers=3,
    query_size=8,
    key_value_size=4,
    feed_forward_size=20,
    vocab_size=50,
    tied=True,
)
PASS: dict[str, Any] = {"micro_batch_tokens": 100, "chunk_tokens": 20, "value_bytes": 2}


def test_parameters_by_hand() -> None:
    assert SMALL.block_parameters == 10 * 8 + 2 * 10 * 4 + 8 * 10 + 3 * 10 * 20
    assert SMALL.num_parameters == 3 * 840 + 50 * 10


def test_a_rank_by_hand() -> None:
    assert learner_bytes(
        SMALL, num_ranks=4, has_reference=True, activation_checkpointing=False, **PASS
    ) == LearnerBytes(
        master_weights=3020,  # 4 bytes x 3020 parameters / 4 ranks
        gradients=3020,
        optimizer_moments=6040,
        reference_weights=3020,
        gathered_weights=(500 + 2 * 840) * 8 + 500 * 2,
        activations=100 * 3 * (8 * 10 + 2 * 8 + 2 * 4 + 4 * 20) * 2,
        shared_prompts=0,
        logits=20 * 50 * (4 * 4 + 2 * 2),
    )


def test_checkpointing_keeps_the_inputs_of_blocks_and_one_block() -> None:
    arguments: dict[str, Any] = {"num_ranks": 1, "has_reference": False, **PASS}
    kept = learner_bytes(SMALL, activation_checkpointing=True, **arguments)
    assert kept.activations == 100 * (3 * 10 + 184) * 2
    assert kept.reference_weights == 0
    assert kept.gathered_weights == (500 + 2 * 840) * 8


def test_states_of_a_7b_model_take_16_bytes_a_parameter_over_all_ranks(tmp_path: Path) -> None:
    sizes = read_model_sizes(write_shape(tmp_path, "qwen2.5-math-7b"))
    rank = learner_bytes(sizes, num_ranks=8, has_reference=False, activation_checkpointing=True, **PASS)
    states = rank.master_weights + rank.gradients + rank.optimizer_moments
    assert states == pytest.approx(16 * 7.6156e9 / 8, rel=1e-4)  # the model card: 7.61 billion
    assert key_value_bytes(sizes, value_bytes=2) == 2 * 28 * 4 * 128 * 2


WIDTHS: dict[str, Any] = {
    "vocab_size": 3000,
    "hidden_size": 512,
    "intermediate_size": 1300,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**WIDTHS, tie_word_embeddings=True),
        MistralConfig(**WIDTHS),
        Qwen2Config(**WIDTHS, tie_word_embeddings=False),
        Qwen3Config(**WIDTHS, head_dim=96),
        *(pytest.param(AutoConfig.for_model(**shape), id=name) for name, shape in SHAPES.items()),
    ],
    ids=lambda config: config.model_type,
)
def test_parameters_are_those_of_the_model(config: Any, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    exact = sum(parameter.numel() for parameter in empty_causal_lm(config).parameters())
    assert read_model_sizes(tmp_path).num_parameters == pytest.approx(exact, rel=2e-3)


def saved_values(config: Any, *, num_tokens: int) -> float:
    """Values, per token, that autograd keeps of the decoder's forward pass in bfloat16."""
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").bfloat16()
    return saved_bytes(model.model, num_tokens=num_tokens) / 2 / num_tokens


def saved_bytes(model: Any, *, num_tokens: int, **arguments: Any) -> int:
    """Bytes that autograd keeps of a decoder's forward pass."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # storage -> a tensor, which keeps the address from being used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=torch.zeros(1, num_tokens, dtype=torch.long), use_cache=False, **arguments)
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in weights)


@pytest.mark.parametrize("heads", [8, 2])
def test_activations_of_a_block_are_those_that_autograd_keeps(heads: int, tmp_path: Path) -> None:
    shallow, deep = (Qwen2Config(**WIDTHS | {"num_hidden_layers": n, "num_key_value_heads": heads}) for n in (1, 3))
    measured = (saved_values(deep, num_tokens=256) - saved_values(shallow, num_tokens=256)) / 2
    deep.save_pretrained(tmp_path)
    arguments: dict[str, Any] = {"num_ranks": 1, "chunk_tokens": 1, "value_bytes": 2, "has_reference": False}
    rank = learner_bytes(read_model_sizes(tmp_path), micro_batch_tokens=1, activation_checkpointing=False, **arguments)
    assert rank.activations / 2 / 3 == pytest.approx(measured, rel=0.02)


def test_shared_prompts_by_hand() -> None:
    sizes = SharedPromptSizes(kept_copies=3, most_copies=5, whole_heads=False, mask_keys=7)
    arguments: dict[str, Any] = {"num_ranks": 1, "has_reference": False, "shared_prompts": sizes, **PASS}
    rank = learner_bytes(SMALL, activation_checkpointing=False, **arguments)
    assert rank.shared_prompts == 100 * 2 * (3 * (8 + 3 * 2 * 4) + (5 - 3) * 2 * 4 + 7)
    rank = learner_bytes(SMALL, activation_checkpointing=True, **arguments)
    assert rank.shared_prompts == 100 * 2 * (8 + 5 * 2 * 4 + 7)


@pytest.mark.parametrize(("prompt_length", "response_length"), [(64, 16), (16, 64)])
def test_shared_prompts_take_no_more_than_planned(prompt_length: int, response_length: int) -> None:
    """Of a row of two prompts with four responses each, on the CPU."""
    register_shared_sdpa()
    lengths = [prompt_length] * 2, [[response_length] * 4] * 2
    row = shared_row(*lengths, device=torch.device("cpu"))
    num_tokens = row.position_ids.shape[1]
    models = [
        AutoModelForCausalLM.from_config(Qwen2Config(**WIDTHS | {"num_hidden_layers": n}), attn_implementation=KERNELS)
        for n in (1, 3)
    ]
    ones = torch.ones(1, num_tokens, dtype=torch.long)
    tensors: dict[str, Any] = {"shared_row": row, "position_ids": row.position_ids, "attention_mask": ones}
    shallow, deep = (saved_bytes(model.model, num_tokens=num_tokens, **tensors) / 4 / num_tokens for model in models)
    sizes = ModelSizes(
        hidden_size=512,
        num_layers=1,
        query_size=512,
        key_value_size=128,
        feed_forward_size=1300,
        vocab_size=3000,
        tied=True,
    )
    shared = SharedPromptSizes(
        kept_copies=len(row.key_index) / num_tokens, most_copies=0, whole_heads=False, mask_keys=0
    )
    arguments: dict[str, Any] = {"num_ranks": 1, "chunk_tokens": 1, "value_bytes": 4, "has_reference": False}
    rank = learner_bytes(
        sizes, micro_batch_tokens=1, activation_checkpointing=False, shared_prompts=shared, **arguments
    )
    measured = (deep - shallow) / 2
    assert measured <= (rank.activations + rank.shared_prompts) / 4 <= 1.4 * measured
