"""Which model is trained, and how the learners and engines hold it."""

import os
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from gvm_ray.settings import Count, NonNegative, NonNegativeCount, Positive, Probability, Settings

DType = Literal["float32", "bfloat16"]


class PretrainedModelConfig(Settings):
    """A Hugging Face model: a local folder or a hub id. A leading `~` is the home folder."""

    type: Literal["pretrained"] = "pretrained"
    path: str = Field(min_length=1)
    revision: str | None = None
    trust_remote_code: bool = False

    @field_validator("path")
    @classmethod
    def _from_home(cls, value: str) -> str:
        return os.path.expanduser(value)  # Path.expanduser raises where there is no such user


class ScratchModelConfig(Settings):
    """A small randomly initialised Qwen2-architecture model with a character tokenizer; meant for a warm start."""

    type: Literal["scratch"] = "scratch"
    hidden_size: Count = 64
    num_layers: Count = 2
    num_heads: Count = 2
    num_key_value_heads: Count = 1
    intermediate_size: Count = 160
    max_position_embeddings: Count = 512
    tie_word_embeddings: bool = True
    seed: NonNegativeCount = 0

    @model_validator(mode="after")
    def _heads_divide(self) -> "ScratchModelConfig":
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}; "
                f"write e.g. hidden_size={self.num_heads * 16}"
            )
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_key_value_heads={self.num_key_value_heads}; "
                f"write e.g. num_key_value_heads=1"
            )
        return self


ModelSettings = Annotated[PretrainedModelConfig | ScratchModelConfig, Field(discriminator="type")]


class ScheduleConfig(Settings):
    """Learning rate over optimizer updates: linear warm-up, then constant, or linear/cosine decay toward min_ratio.

    Of w warm-up updates the first has the rate 1 / (w + 1). Decay would reach min_ratio one update after the last.
    """

    type: Literal["constant", "linear", "cosine"] = "constant"
    warmup_updates: NonNegativeCount = 0
    min_ratio: Probability = 0.0


class OptimizerConfig(Settings):
    """AdamW and gradient clipping."""

    learning_rate: Positive = 1e-6
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    gradient_clip: Positive = 1.0  # L2 norm over all parameters
    schedule: ScheduleConfig = ScheduleConfig()


class SupervisedOptimizerConfig(OptimizerConfig):
    """The same for the warm start, whose learning rate is usually larger."""

    learning_rate: Positive = 1e-5


class LoRAConfig(Settings):
    """Train low-rank adapters beside the frozen weights (LoRA, arXiv 2106.09685); without this table, all weights.

    Generators, exports and evaluation get the merged weights. A warm start trains all weights, and its result is what
    the adapters stand beside. There is no dropout: the same tokens must have the same log-probs in every pass.
    """

    rank: Count = 16
    alpha: Positive = 32.0  # adapters are scaled by alpha / rank
    rank_stabilized: bool = False  # by alpha / sqrt(rank) instead (arXiv 2312.03732)
    # Linear layers of the blocks by the last part of their name, e.g. ["q_proj", "v_proj"], or all of them.
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"


class LearnerConfig(Settings):
    """Ray Train FSDP2 learners."""

    num_workers: Count = 1
    cpus_per_worker: Positive = 1
    gpus_per_worker: NonNegative = 0
    dtype: DType = "float32"  # of the forward and backward pass; master weights and reductions stay float32
    # Prompt and response tokens of one forward pass on one rank, with the padding where micro-batches are padded.
    micro_batch_tokens: Count = 16384
    # How samples stand in a micro-batch: as rows, "padded" to the longest; "packed" end to end without padding; or
    # "shared", packed with each prompt once and the responses to it behind it. "auto" shares prompts that several
    # samples have, where a trial finds that the model's attention can do it, and else packs where the attention kernels
    # compute each sample's part alone; on "sdpa" a packed micro-batch costs what one sample as long as all of it would.
    # Passes that measure samples' gradient norms have every sample apart in any case. flash-attn shares nothing, nor
    # does "auto" with `compile`.
    packing: Literal["auto", "shared", "packed", "padded"] = "auto"
    # PyTorch's scaled_dot_product_attention; or, on GPUs and in bfloat16, PyTorch's torch.nn.attention.varlen, for
    # packed micro-batches only, or the package flash-attn (`make flash-attn`). "auto" takes flash-attn where it is
    # installed and can run, and else "sdpa".
    attention: Literal["auto", "sdpa", "varlen", "flash_attention_2"] = "auto"
    logprob_chunk_tokens: Count = 1024  # rows of logits alive at once when log-probs are computed
    activation_checkpointing: bool = False  # keep only each block's input, and compute the rest again to go backward
    # Keep parameters, gradients and optimizer in main memory (16 bytes a parameter, over all ranks), copy each block's
    # weights to the GPU when its turn comes, and run AdamW on the CPU. Without GPUs they are there anyway.
    cpu_offload: bool = False
    compile: bool = False  # torch.compile of each block, at the first micro-batches; needs a C++ compiler
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig | None = None
    # So many optimizer updates in a row, over batches, with an infinite or NaN gradient stop the run; each of them is
    # skipped. None = three batches' worth. An update without samples neither counts nor ends the row.
    max_skipped_updates: Count | None = None

    @model_validator(mode="after")
    def _attention_can_run(self) -> "LearnerConfig":
        if self.attention in ("auto", "sdpa"):
            return self
        if self.dtype != "bfloat16" or not self.gpus_per_worker:
            raise ValueError(
                f"attention={self.attention!r} runs in bfloat16 on GPUs, and this is dtype={self.dtype!r} with "
                f"gpus_per_worker={self.gpus_per_worker:g}; write attention='sdpa', or both of these otherwise"
            )
        if self.attention == "varlen" and self.packing == "padded":
            raise ValueError("attention='varlen' runs on packed micro-batches only; leave packing='padded' out")
        if self.attention == "flash_attention_2" and self.packing == "shared":
            raise ValueError(
                "packing='shared' needs attention='varlen' or 'sdpa', and this is 'flash_attention_2'; write one of "
                "these, or packing='packed'"
            )
        return self


class WarmStartConfig(Settings):
    """Supervised training on the source's reference rationales before reinforcement learning (pi_0 is an SFT model)."""

    num_updates: Count = 1000
    batch_size: Count = 128  # demonstrations per optimizer update
    num_demonstrations: Count = 20000
    optimizer: SupervisedOptimizerConfig = SupervisedOptimizerConfig()
    seed: NonNegativeCount = 0  # of the demonstrations; apart from the run's seed, so that runs share a start
    cache: bool = True  # reuse the result of an earlier run with the same model, source and warm-start settings
