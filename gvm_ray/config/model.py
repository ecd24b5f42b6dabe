"""Settings of the model, the learners and the warm start."""

import os
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from gvm_ray.config.prompts import SourceSettings
from gvm_ray.settings import Count, NonNegative, NonNegativeCount, Positive, Probability, Settings

DType = Literal["float32", "bfloat16"]


class PretrainedModelConfig(Settings):
    """A Hugging Face model: a local folder or a hub id. A leading `~` is the home folder."""

    type: Literal["pretrained"] = "pretrained"
    path: str = Field(min_length=1)  # of the folder with config.json, weights and tokenizer, or OWNER/NAME on the hub
    revision: str | None = None  # branch, tag or commit on the hub
    trust_remote_code: bool = False  # run code from the model's repository

    @field_validator("path")
    @classmethod
    def _from_home(cls, value: str) -> str:
        return os.path.expanduser(value)  # Path.expanduser raises for an unknown user


class ScratchModelConfig(Settings):
    """A small randomly initialised Qwen2-architecture model with a character tokenizer; meant for a warm start."""

    type: Literal["scratch"] = "scratch"
    hidden_size: Count = 64  # width of the residual stream; a multiple of num_heads
    num_layers: Count = 2
    num_heads: Count = 2
    num_key_value_heads: Count = 1  # heads of keys and values that the attention heads share; divides num_heads
    intermediate_size: Count = 160  # width of the MLPs
    max_position_embeddings: Count = 512  # longest prompt and response together, tokens
    tie_word_embeddings: bool = True  # the output head is the matrix of input embeddings
    seed: NonNegativeCount = 0  # of the initial weights; independent of the run's seed

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

    With w warm-up updates, the first has 1 / (w + 1) of the rate. Decay would reach min_ratio one update after the
    last.
    """

    type: Literal["constant", "linear", "cosine"] = "constant"  # the course after the warm-up
    warmup_updates: NonNegativeCount = 0  # optimizer updates; a step makes algorithm.updates_per_batch
    min_ratio: Probability = 0.0  # end of the decay, as a fraction of learning_rate; without meaning for "constant"


class OptimizerConfig(Settings):
    """AdamW and gradient clipping."""

    # After the warm-up; usual are 1e-6 for all weights, ten times as much for LoRA, more for tiny models.
    learning_rate: Positive = 1e-6
    betas: tuple[Probability, Probability] = (0.9, 0.999)  # decay of the first and the second moment, per update
    epsilon: Positive = 1e-8  # added to the root of the second moment
    weight_decay: NonNegative = 0.0  # decoupled: each update also shrinks the weights by learning_rate * weight_decay
    gradient_clip: Positive = 1.0  # L2 norm over all parameters
    schedule: ScheduleConfig = ScheduleConfig()


class SupervisedOptimizerConfig(OptimizerConfig):
    """AdamW and gradient clipping for the warm start, with a larger default learning rate."""

    learning_rate: Positive = 1e-5  # after the warm-up


class LoRAConfig(Settings):
    """Train low-rank adapters beside the frozen weights (LoRA, arXiv 2106.09685); without this table, all weights.

    Exports have the merged weights. A warm start trains all weights, and the adapters are added to its result. There is
    no dropout: the same tokens must have the same log-probs in every pass.
    """

    rank: Count = 16  # width of an adapter: memory and capacity grow with it
    alpha: Positive = 32.0  # adapters are scaled by alpha / rank
    rank_stabilized: bool = False  # by alpha / sqrt(rank) instead (arXiv 2312.03732)
    # Linear layers of the blocks by the last part of their names, e.g. ["q_proj", "v_proj"], or all of them.
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    # New weights for generators: "adapter" = the adapters alone, through the object store, for engines that have loaded
    # the base; "merge" = all weights, the adapters merged in. "auto" = adapter where the engine can take it without
    # sampling more slowly; otherwise merge, and the run says at its start why.
    sync: Literal["auto", "adapter", "merge"] = "auto"


class LearnerConfig(Settings):
    """Ray Train FSDP2 learners."""

    num_workers: Count = 1  # ranks, which divide the weights (FSDP2) and each batch among them
    cpus_per_worker: Positive | None = None  # as engine.cpus_per_generator
    gpus_per_worker: NonNegative = 0  # 1 = a GPU for each rank, 0 = ranks on CPUs
    dtype: DType = "float32"  # of the forward and backward pass; master weights and reductions stay float32
    # Prompt and response tokens in one forward pass on one rank, including padding if micro-batches are padded.
    micro_batch_tokens: Count = 16384
    # The layout of a micro-batch: "padded" gives each sample a row, padded to the longest; "packed" puts samples end to
    # end without padding; "shared" packs each prompt once, with its responses behind it. "auto" shares prompts that
    # several samples have, if a trial shows that the model's attention can do it. Otherwise it packs if the attention
    # kernel computes each sample separately: with "sdpa", a packed micro-batch costs as much as one sample of its whole
    # length. Passes that measure gradient norms of samples never share. flash-attn doesn't share, nor does "auto" with
    # `compile`.
    packing: Literal["auto", "shared", "packed", "padded"] = "auto"
    # "sdpa" is PyTorch's scaled_dot_product_attention. On GPUs in bfloat16 there are also "varlen", PyTorch's
    # torch.nn.attention.varlen (packed micro-batches only), and the package flash-attn (`make flash-attn`). "auto"
    # takes flash-attn if it is installed and can run, else "sdpa".
    attention: Literal["auto", "sdpa", "varlen", "flash_attention_2"] = "auto"
    logprob_chunk_tokens: Count = 1024  # rows of logits in memory at once when log-probs are computed
    activation_checkpointing: bool = False  # keep only each block's input; recompute the rest in the backward pass
    # Keep parameters, gradients and optimizer in main memory (16 bytes per parameter, over all ranks), copy each
    # block's weights to the GPU when they are needed, and run AdamW on the CPU. Without GPUs all is on the CPU anyway.
    cpu_offload: bool = False
    compile: bool = False  # torch.compile of each block, at the first micro-batches; needs a C++ compiler
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig | None = None
    # The run stops after this number of consecutive optimizer updates, counted across batches, with an infinite or NaN
    # gradient; each such update is skipped. None = the updates of three batches. An update without samples neither
    # counts nor ends the series.
    max_skipped_updates: Count | None = None

    @property
    def shards(self) -> bool:
        """True if FSDP2 holds the weights: to divide them, to compute in another dtype, or to offload them."""
        return self.num_workers > 1 or self.dtype != "float32" or self.cpu_offload

    @model_validator(mode="after")
    def _attention_can_run(self) -> "LearnerConfig":
        if self.attention in ("auto", "sdpa"):
            return self
        if self.dtype != "bfloat16" or not self.gpus_per_worker:
            raise ValueError(
                f"attention={self.attention!r} runs in bfloat16 on GPUs, not with dtype={self.dtype!r} and "
                f"gpus_per_worker={self.gpus_per_worker:g}; write attention='sdpa', or dtype='bfloat16' and "
                "gpus_per_worker=1"
            )
        if self.attention == "varlen" and self.packing == "padded":
            raise ValueError("attention='varlen' runs on packed micro-batches only; leave out packing='padded'")
        if self.attention == "flash_attention_2" and self.packing == "shared":
            raise ValueError(
                "packing='shared' needs attention='varlen' or 'sdpa', not 'flash_attention_2'; write one of them, or "
                "packing='packed'"
            )
        return self


class WarmStartConfig(Settings):
    """Supervised training on reference rationales before reinforcement learning (pi_0 is an SFT model)."""

    # Problems with rationales, with the template of [prompts]. None = those of prompts.train. Problems that the
    # evaluation has too are left out.
    source: SourceSettings | None = None
    num_updates: Count = 1000
    batch_size: Count = 128  # demonstrations per optimizer update
    # Drawn before the first update; if a file has fewer, they are repeated.
    num_demonstrations: Count = 20000
    optimizer: SupervisedOptimizerConfig = SupervisedOptimizerConfig()
    seed: NonNegativeCount = 0  # of the demonstrations; independent of the run's seed, so that runs share a start
    cache: bool = True  # reuse the result of an earlier run with the same model, source and warm-start settings
