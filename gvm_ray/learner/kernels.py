"""Attention kernels and collective backends of the learners, by device."""

from typing import Any, Literal

from torch import Tensor, nn

from gvm_ray.config.model import LearnerConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.learner.shared_prompts import SharedRow

AttentionKernels = Literal["sdpa", "varlen", "flash_attention_2"]
Sharing = Literal["off", "try", "on"]  # of prompts: never, if the model can do it, or refuse a model that can't


def resolve_attention(config: LearnerConfig, *, device_type: str) -> tuple[AttentionKernels, bool]:
    """The kernels, by the name that transformers has for them, and whether to pack; "auto" takes what suits the device.

    Raises:
        ConfigError: kernels are asked for that need a GPU, or flash-attn, where there is none.
    """
    from transformers.utils.import_utils import is_flash_attn_2_available

    on_gpu = device_type == "cuda"
    installed = on_gpu and is_flash_attn_2_available()
    kernels = config.attention
    if kernels == "auto":
        flash = installed and config.dtype == "bfloat16" and config.packing != "shared"
        kernels = "flash_attention_2" if flash else "sdpa"
    if kernels == "flash_attention_2" and not installed:
        raise ConfigError(
            f"learner.attention='flash_attention_2' needs the package flash-attn and a GPU (here: {device_type}); "
            'install it with `make flash-attn`, or write learner.attention = "varlen" or "sdpa"'
        )
    if kernels == "varlen":
        if not on_gpu:
            raise ConfigError(
                f"learner.attention='varlen' needs a GPU (here: {device_type}); write learner.attention = \"sdpa\""
            )
        register_varlen()
    return kernels, kernels != "sdpa" if config.packing in ("auto", "shared") else config.packing == "packed"


def resolve_sharing(config: LearnerConfig, kernels: AttentionKernels) -> Sharing:
    """Whether micro-batches may hold a prompt once for all its responses.

    "auto" shares neither with flash-attn's kernels, which run on packed samples, nor with compiled blocks, which the
    shared kernel would break up.
    """
    if config.packing == "shared":
        return "on"
    able = kernels != "flash_attention_2" and not config.compile
    return "try" if config.packing == "auto" and able else "off"


def register_varlen() -> None:
    """Make `torch.nn.attention.varlen` known to transformers, as attention for packed micro-batches only."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register("varlen", _varlen_attention)
    AttentionMaskInterface.register("varlen", flash_attention_mask)  # none: samples are told apart by cu_seq_lens


def _varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    shared_row: SharedRow | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """[1, N, heads, D] of a packed row: queries [1, heads, N, D], and keys and values with as many heads or fewer.

    In a row with shared prompts each segment is a sequence: a prompt, or a response with its prompt's keys before its
    own. If a sequence has more keys than queries, the queries belong to the last keys.
    """
    from torch.nn.attention.varlen import varlen_attn

    if softcap is not None:
        raise ConfigError(
            f"learner.attention='varlen' can't cap attention scores as {type(module).__name__} does; "
            'write learner.attention = "flash_attention_2" or "sdpa"'
        )
    queries, keys, values = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    ends, key_ends, longest, most_keys = cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q
    if shared_row is not None:
        keys, values = (tensor.index_select(0, shared_row.segment_keys) for tensor in (keys, values))
        ends, key_ends = shared_row.segment_ends, shared_row.segment_key_ends
        longest, most_keys = shared_row.longest
    assert ends is not None
    attended = varlen_attn(
        queries,
        keys,
        values,
        ends,
        key_ends,
        longest,
        most_keys,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),  # causal: nothing to the right
        enable_gqa=True,
    )
    assert isinstance(attended, Tensor)
    return attended.unsqueeze(0), None


def process_group_backend(device_type: str) -> str:
    """For `torch.distributed.init_process_group`: gloo on CPUs, and NCCL with gloo beside it on GPUs.

    What stays on the CPU there, as offloaded parameters and gradients do, is reduced and gathered by gloo.
    """
    return "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
