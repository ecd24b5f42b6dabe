"""The memory parts of a learner rank and of a generator, and the setting that makes each part smaller."""

from dataclasses import asdict, dataclass

from gvm_ray.config import RunConfig
from gvm_ray.config.model import ModelSettings, ScratchModelConfig
from gvm_ray.learner.scratch_model import BOXED_TOKEN, CHARACTERS, EOS_TOKEN, PAD_TOKEN
from gvm_ray.maths.memory import KEPT_KEY_COPIES, ModelSizes, SharedPromptSizes, key_value_bytes, learner_bytes
from gvm_ray.pretrained import read_model_sizes
from gvm_ray.resources.hardware import Memory

_GIB = 2**30
_VALUE_BYTES = {"float32": 4, "bfloat16": 2}
# A rank's CUDA context, NCCL buffers, and fragmentation of the CUDA allocator.
_CUDA_BYTES = 2 * _GIB
# Sharded over the ranks; gradients are freed after an update.
_SHARDED = frozenset(("master_weights", "gradients", "optimizer_moments", "reference_weights"))
# vLLM's memory besides weights and cache: CUDA's context and graphs, and the activations of its largest batch.
_ENGINE_BYTES = 3 * _GIB


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a device's memory, and a way to make it smaller."""

    name: str
    num_bytes: int
    remedy: str
    stays: bool = False  # if learners and generators alternate on a GPU: stays there during the other side's shift


@dataclass(frozen=True, kw_only=True)
class KeyValueCache:
    """Of one generator."""

    num_tokens: int
    max_model_len: int
    remedy: str


def sizes_of_settings(model: ModelSettings) -> ModelSizes:
    """The sizes of the model in the settings, without reading weights.

    Raises:
        ModelError: the model has no configuration, or one without sizes.
    """
    if not isinstance(model, ScratchModelConfig):
        return read_model_sizes(model.path, revision=model.revision)
    return ModelSizes(
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        query_size=model.hidden_size,
        key_value_size=model.hidden_size // model.num_heads * model.num_key_value_heads,
        feed_forward_size=model.intermediate_size,
        vocab_size=len((PAD_TOKEN, EOS_TOKEN, BOXED_TOKEN, *CHARACTERS)),
        tied=model.tie_word_embeddings,
    )


def learner_parts(config: RunConfig, sizes: ModelSizes) -> tuple[Part, ...]:
    """The memory parts of one rank."""
    learner = config.learner
    num_bytes = learner_bytes(
        sizes,
        num_ranks=learner.num_workers,
        micro_batch_tokens=learner.micro_batch_tokens,
        chunk_tokens=learner.logprob_chunk_tokens,
        value_bytes=_VALUE_BYTES[learner.dtype],
        has_reference=config.algorithm.kl.coefficient > 0,
        activation_checkpointing=learner.activation_checkpointing,
        adapter_rank=learner.lora.rank if learner.lora is not None else None,
        shared_prompts=_shared_prompt_sizes(config),
        sharded=learner.shards,
    )
    # Offloaded shards are in main memory, and aren't counted there because they are spread over the nodes.
    counts = {
        name: count
        for name, count in asdict(num_bytes).items()
        if count and not (learner.cpu_offload and learner.gpus_per_worker and name in _SHARDED)
    }
    smaller = "take a smaller model" + ("" if learner.lora is not None else " or train adapters ([learner.lora])")
    sharded = smaller
    if learner.gpus_per_worker:
        sharded = f"spread it over more GPUs (learner.num_workers={learner.num_workers}), or {smaller}"
        if not learner.cpu_offload:
            sharded += ", or write learner.cpu_offload=true"
    fewer_tokens = activations = f"lower learner.micro_batch_tokens={learner.micro_batch_tokens}"
    if not learner.activation_checkpointing:
        activations += ", or write learner.activation_checkpointing=true"
    remedies = {
        "reference_weights": f"write algorithm.kl.coefficient=0, or {sharded}",
        "gathered_weights": smaller,
        "activations": activations,
        "shared_prompts": f'{fewer_tokens}, or write learner.packing="padded"',
        "logits": f"lower learner.logprob_chunk_tokens={learner.logprob_chunk_tokens}",
    }
    parts = [
        Part(
            name=name.replace("_", " "),
            num_bytes=count,
            remedy=remedies.get(name, sharded),
            stays=name in _SHARDED - {"gradients"},
        )
        for name, count in counts.items()
    ]
    if learner.gpus_per_worker:
        parts.append(Part(name="learner's CUDA", num_bytes=_CUDA_BYTES, remedy="take a larger GPU", stays=True))
    return tuple(parts)


def _shared_prompt_sizes(config: RunConfig) -> SharedPromptSizes | None:
    """Sizes for groups of `samples_per_prompt` of the longest samples; None if prompts aren't shared."""
    learner = config.learner
    tried = learner.packing == "auto" and not learner.compile and learner.attention != "flash_attention_2"
    if not (tried or learner.packing == "shared") or config.samples_per_prompt == 1:
        return None
    number, prompt, response = config.samples_per_prompt, config.prompts.max_tokens, config.sampling.max_tokens
    copies = number * (prompt + response) / (prompt + number * response)
    return SharedPromptSizes(
        kept_copies=min(copies, KEPT_KEY_COPIES),
        most_copies=copies,
        whole_heads=bool(learner.gpus_per_worker),
        mask_keys=prompt + min(prompt, response),  # of responses shorter than their prompt
    )


def engine_parts(config: RunConfig, sizes: ModelSizes, gpu: Memory) -> tuple[tuple[Part, ...], KeyValueCache]:
    """The memory parts of one GPU of a generator, or of a generator without GPUs; and its key-value cache."""
    engine, max_model_len = config.engine, _max_model_len(config)
    value_bytes, ways = _VALUE_BYTES[engine.dtype], engine.tensor_parallel_size
    weights = sizes.num_parameters * value_bytes
    if engine.gpus_per_generator and gpu.num_bytes is not None:
        share = engine.gpu_memory_utilization
        cache_bytes = int(share * gpu.num_bytes) - weights // ways - _ENGINE_BYTES
        parts = (
            Part(
                name="engine weights",
                num_bytes=weights // ways,
                remedy=f"raise engine.tensor_parallel_size={ways}, or take a smaller model",
            ),
            Part(name="engine's CUDA", num_bytes=_ENGINE_BYTES, remedy="take a larger GPU", stays=True),
            Part(
                name="key-value cache",
                num_bytes=max(cache_bytes, 0),
                remedy=f"lower engine.gpu_memory_utilization={share:g}, which it fills",
            ),
        )
        remedy = f"raise engine.gpu_memory_utilization={share:g} or engine.tensor_parallel_size={ways}"
    else:
        ways, cache_bytes = 1, int(engine.kv_cache_gib * _GIB)
        fewer = f"lower engine.num_generators={engine.num_generators}"
        parts = (
            # Twice, while new weights are loaded.
            Part(name="engine weights", num_bytes=2 * weights, remedy=f"{fewer}, or take a smaller model"),
            Part(
                name="key-value cache",
                num_bytes=cache_bytes,
                remedy=f"lower engine.kv_cache_gib={engine.kv_cache_gib:g}, or {fewer}",
            ),
        )
        remedy = f"raise engine.kv_cache_gib={engine.kv_cache_gib:g}"
    num_tokens = max(cache_bytes, 0) * ways // key_value_bytes(sizes, value_bytes=value_bytes)
    return parts, KeyValueCache(num_tokens=num_tokens, max_model_len=max_model_len, remedy=remedy)


def _max_model_len(config: RunConfig) -> int:
    """The most tokens of a prompt with its response."""
    return config.prompts.max_tokens + config.sampling.max_tokens
