"""Which attention kernels the learners run, and whether their micro-batches are packed."""

from typing import Literal

from gvm_ray.config.model import LearnerConfig
from gvm_ray.exceptions import ConfigError

AttentionKernels = Literal["sdpa", "flash_attention_2"]


def resolve_attention(config: LearnerConfig, *, device_type: str) -> tuple[AttentionKernels, bool]:
    """The kernels, by transformers' name for them, and whether to pack; "auto" takes what suits the device.

    Raises:
        ConfigError: flash-attn is asked for, and it isn't installed or there is no GPU.
    """
    from transformers.utils.import_utils import is_flash_attn_2_available

    installed = device_type == "cuda" and is_flash_attn_2_available()
    match config.attention:
        case "auto":
            kernels = "flash_attention_2" if installed and config.dtype == "bfloat16" else "sdpa"
        case "flash_attention_2" if not installed:
            raise ConfigError(
                f"learner.attention='flash_attention_2' needs the package flash-attn and a GPU (here: {device_type}); "
                'install it with `make flash-attn`, or write learner.attention = "sdpa"'
            )
        case kernels:
            pass
    return kernels, kernels != "sdpa" if config.packing == "auto" else config.packing == "packed"
