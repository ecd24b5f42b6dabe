"""Settings of sampling: what is drawn, and the engines that draw it."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from gvm_ray.settings import Count, NonNegative, Positive, Settings

InFlightPolicy = Literal["keep", "finish"]
Temperature = Annotated[float, Field(gt=0, le=2)]  # vLLM takes none above 2
GreedyTemperature = Annotated[float, Field(ge=0, le=2)]


class SamplingConfig(Settings):
    """Sampling of responses in training. No top_p or top_k: their log-probs would need a correction."""

    temperature: Temperature = 1.0  # log-probs of engine and learner are taken at it; 1 samples the policy as it is
    max_tokens: Count = 3072  # response tokens; longer responses are cut and count as truncated


class VLLMConfig(Settings):
    """Options that go to vLLM by the same names; none leaves vLLM's own default.

    quantization, kv_cache_dtype and speculative_config make vLLM sample from another distribution than the learners
    compute. They need the importance correction, and the metrics `logprob_difference/*` and `importance/*` show how far
    the two are apart.
    """

    changing: ClassVar[tuple[str, ...]] = ("quantization", "kv_cache_dtype", "speculative_config")

    # Of the engine's weights, each time that new ones arrive. Methods for files that are quantized already can't take
    # the learners' weights.
    quantization: (
        Literal[
            "fp8",
            "fp8_per_tensor",
            "fp8_per_block",
            "fp8_per_channel",
            "int8_per_channel_weight_only",
            "mxfp8",
            "nvfp4_per_token",
        ]
        | None
    ) = None
    # "fp8" halves the cache, at some loss of accuracy.
    kv_cache_dtype: Literal["bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2", "int8_per_token_head"] | None = None
    speculative_config: dict[str, Any] | None = None  # not on a CPU, where its log-probs are wrong
    attention_backend: str | None = None  # e.g. "FLASH_ATTN"; vLLM chooses by itself
    block_size: Count | None = None  # tokens
    max_num_batched_tokens: Count | None = None  # of one forward pass
    async_scheduling: bool | None = None  # plans the next pass while one is under way
    # Presets of vLLM for latency or throughput.
    performance_mode: Literal["balanced", "interactivity", "throughput"] | None = None
    cpu_offload_gb: NonNegative | None = None  # of the weights, which then travel to the GPU in each pass
    # Batch sizes for which CUDA graphs are captured; fewer start faster.
    cudagraph_capture_sizes: tuple[Count, ...] | None = None
    compilation_config: dict[str, Any] | None = None  # of vLLM's torch.compile, by the names in its documentation
    # True = NCCL's, if the GPUs of tensor-parallel parts hang or have no peer access.
    disable_custom_all_reduce: bool | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The options that aren't none."""
        return {name: value for name, value in self.model_dump().items() if value is not None}

    @property
    def changing_given(self) -> list[str]:
        """Names and values of the given options that change the distribution."""
        return [f"engine.vllm.{name}={value!r}" for name, value in self.given.items() if name in self.changing]


class EngineConfig(Settings):
    """The generator pool. `auto` takes vLLM where it is installed, else transformers, and prints the choice."""

    type: Literal["auto", "vllm", "transformers", "custom"] = "auto"
    path: str | None = Field(default=None, pattern=r"^[\w.]+:[\w.]+$")  # `module:Class` of a custom engine
    num_generators: Count = 1  # actors that sample, each with an engine
    # Ray's logical CPUs for a generator, which also has this many threads (at least one). None = one logical CPU, and
    # threads by the machine's cores: all of them if max_staleness = 0, else a share.
    cpus_per_generator: Positive | None = None
    # 0 = on CPUs; else tensor_parallel_size, or a fraction for several generators on one GPU.
    gpus_per_generator: NonNegative = 0
    tensor_parallel_size: Count = 1  # GPUs that share a generator's model
    max_num_seqs: Count = 256  # sequences that one generator decodes at once
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9  # share of a GPU's memory, weights included
    # Only if learners and generators share GPUs (cluster.placement = "colocated"): true = an engine frees the GPU while
    # the learners work, and takes it back to sample; needs max_staleness = 0. false = it keeps its share,
    # gpu_memory_utilization, and the learners have the rest.
    sleep: bool = True
    kv_cache_gib: Positive = 1.0  # on CPU
    enforce_eager: bool = False  # true turns off CUDA graphs
    # Of weights and key-value cache; on a GPU usually "bfloat16", with the same learner.dtype.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # For samples in flight when new weights arrive (max_staleness > 0): "keep" continues them with the new weights from
    # the next token on, "finish" first completes them with the old weights. Every token records its weight version.
    in_flight: InFlightPolicy = "keep"
    vllm: VLLMConfig = VLLMConfig()

    @model_validator(mode="after")
    def _has_a_gpu_for_each_part(self) -> "EngineConfig":
        gpus, parts = self.gpus_per_generator, self.tensor_parallel_size
        if not gpus and parts > 1:
            raise ValueError(
                f"tensor_parallel_size={parts} divides a generator's model over {parts} GPUs, but gpus_per_generator=0 "
                f"keeps it on CPUs; write gpus_per_generator={parts}, or tensor_parallel_size=1"
            )
        if gpus and max(gpus, 1) != parts:
            raise ValueError(
                f"tensor_parallel_size={parts} needs as many GPUs per generator, but gpus_per_generator={gpus:g}; "
                f"write gpus_per_generator={parts}"
            )
        return self

    @model_validator(mode="after")
    def _options_are_for_vllm(self) -> "EngineConfig":
        if self.type == "transformers" and self.tensor_parallel_size > 1:
            raise ValueError(
                f"tensor_parallel_size={self.tensor_parallel_size} needs vLLM, but type='transformers'; write "
                "type='vllm', or tensor_parallel_size=1 and gpus_per_generator=1"
            )
        if self.type in ("transformers", "custom") and self.vllm.given:
            raise ValueError(
                f"[engine.vllm] has {', '.join(self.vllm.given)}, but type={self.type!r} isn't vLLM; write "
                "type='vllm', or remove them"
            )
        if self.vllm.speculative_config is not None and not self.gpus_per_generator:
            raise ValueError(
                "[engine.vllm] has speculative_config, and on a CPU (gpus_per_generator=0) vLLM then returns log-probs "
                "that aren't those of its samples; remove it, or write gpus_per_generator=1"
            )
        return self

    @model_validator(mode="after")
    def _path_is_for_custom(self) -> "EngineConfig":
        if (self.type == "custom") != (self.path is not None):
            raise ValueError(
                f"type={self.type!r} with path={self.path!r}: only a custom engine has a path, and it needs one; write "
                "type = 'custom' together with path = 'module:Class'"
            )
        return self
