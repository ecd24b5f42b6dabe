"""The vLLM engine, run in this process, with weights replaced in place."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from transformers import PretrainedConfig

from gvm_ray.config.engine import EngineConfig
from gvm_ray.engines.open_requests import OpenRequests, RawSample
from gvm_ray.exceptions import ConfigError, ModelError, SystemFailure
from gvm_ray.model_files import tensor_names, ties_embeddings
from gvm_ray.pretrained import load_end_token_ids, load_model_config, load_tokenizer
from gvm_ray.types import AdapterSpec, Completion, SampleRequest, SamplingParameters, WeightTransfer

# vLLM reads these at import. The engine runs in this process; as a child process it starts several times slower.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
for _name, _value in {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "ERROR"}.items():
    os.environ.setdefault(_name, _value)

try:
    from vllm import EngineArgs, SamplingParams
    from vllm import __version__ as version
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.inputs.engine import tokens_input
    from vllm.logprobs import FlatLogprobs
    from vllm.model_executor.models import ModelRegistry
    from vllm.outputs import RequestOutput
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.llm_engine import LLMEngine

    from gvm_ray.engines.vllm_weights import VLLMAdapters, VLLMWeightReceiver
except (ImportError, RuntimeError) as error:
    raise ConfigError(
        f"vLLM is installed but can't be imported: {error}. On a machine without CUDA, CUDA builds of torchvision, "
        "torchaudio or torchcodec next to CPU torch cause this: run pip uninstall torchvision torchaudio torchcodec. "
        "Or write engine.type='transformers'"
    ) from error

_CPU_BATCHED_TOKENS = 8192  # prompt tokens of one forward pass


class VLLMEngine:
    """The vLLM engine: protocols `Engine` and `ReceivesWeights` on top of vLLM's LLMEngine."""

    def __init__(
        self,
        model_path: str,
        *,
        config: EngineConfig,
        max_model_len: int,
        revision: str | None = None,
        trust_remote_code: bool = False,
        transfer: WeightTransfer = "object_store",
        adapters: AdapterSpec | None = None,
    ) -> None:
        self._tokenizer = load_tokenizer(model_path, revision=revision, trust_remote_code=trust_remote_code)
        self._end_token_ids = load_end_token_ids(model_path, tokenizer=self._tokenizer, revision=revision)
        self._open = OpenRequests(self._tokenizer, end_token_ids=self._end_token_ids, max_model_len=max_model_len)
        self._in_process = config.tensor_parallel_size == 1
        self._policy_version = -1
        self._adapters = None if adapters is None else VLLMAdapters(adapters)
        self._asleep: set[str] = set()  # memory that has left the GPU, by vLLM's names
        model_config = load_model_config(model_path, revision=revision, trust_remote_code=trust_remote_code)
        self._tied = ties_embeddings(model_config)  # a tied head is sent under one name, whatever names the files have
        self._names = tensor_names(model_path) - ({"lm_head.weight"} if self._tied else set())
        arguments = _engine_args(
            model_path, config, max_model_len=max_model_len, revision=revision, trust_remote_code=trust_remote_code
        )
        arguments.weight_transfer_config = (
            None if transfer == "object_store" else WeightTransferConfig(backend=transfer)
        )
        if self._adapters is not None:
            self._adapters.enable(arguments)
        if current_platform.is_cpu():
            _set_up_cpu(arguments, config=config, model_config=model_config)
        try:
            self.llm_engine = LLMEngine.from_engine_args(arguments)  # vLLM's own
            if self._adapters is not None:
                self._adapters.load_zeros(self.llm_engine)
        except ValueError as error:
            options = f" with [engine.vllm] {config.vllm.given}" if config.vllm.given else ""
            remedy = "" if adapters is None else "; write learner.lora.sync='merge' to send it whole weights"
            raise ModelError(f"vLLM can't run {model_path!r}{options}: {error}{remedy}") from error
        self.llm_engine.set_weight_version(str(self._policy_version))
        self._head_apart = all(self.llm_engine.collective_rpc(_has_output_head))
        self._receiver = VLLMWeightReceiver(self.llm_engine, names=self._names)

    @property
    def policy_version(self) -> int:
        """The version of the loaded weights; -1 before the first load_weights."""
        return self._policy_version

    @property
    def num_unfinished(self) -> int:
        """The number of requests added and not answered yet."""
        return len(self._open)

    def add(self, requests: Sequence[SampleRequest], sampling: SamplingParameters) -> None:
        """Queue requests. A sample depends on its prompt, its seed and the weights, not on other requests.

        Raises:
            DataError: a prompt is too long for the engine.
            ConfigError: vLLM rejects these sampling settings (a temperature above 2).
        """
        self._parameters(sampling, seed=0)  # so that bad settings are rejected before anything is queued
        self._wake("weights", "kv_cache")
        lora_request = None if self._adapters is None else self._adapters.request
        for number, request, seed in self._open.add(requests, sampling):
            # Prefix-cache blocks are shared only within one policy version: keys and values depend on the weights.
            prompt = tokens_input(request.prompt.token_ids.tolist(), cache_salt=str(self._policy_version))
            parameters = self._parameters(sampling, seed=seed)
            self.llm_engine.add_request(str(number), prompt, parameters, lora_request=lora_request)

    def step(self) -> list[tuple[SampleRequest, tuple[Completion, ...]]]:
        """Run a forward pass for every running sample, and return the requests that it finishes."""
        if self.llm_engine.has_unfinished_requests():
            for output in self.llm_engine.step():
                assert isinstance(output, RequestOutput)
                self._open.finish(int(output.request_id), _raw_sample(output))
        return self._open.take_complete()

    def abort(self) -> None:
        """Drop every unfinished request."""
        self.llm_engine.abort_request([str(number) for number in self._open.clear()])

    def reset(self) -> None:
        """Return to the state before the first load_weights. Another run counts its versions from 0 again, and must not
        meet this run's attention states."""
        self.abort()
        self.llm_engine.reset_prefix_cache()
        self._policy_version = -1

    def sleep(self) -> None:
        """Free the GPU memory, except CUDA's own; the weights wait in main memory.

        Keys and values, which no request needs any more, are dropped, and with them the prefix cache.
        """
        if self._asleep != {"weights", "kv_cache"}:
            self.llm_engine.sleep(level=1)
            self._asleep = {"weights", "kv_cache"}

    def _wake(self, *names: str) -> None:
        """Bring back the named memory if it is asleep. vLLM continues its requests once all of it is back."""
        if asleep := self._asleep.intersection(names):
            self.llm_engine.wake_up(sorted(asleep))
            self._asleep -= asleep

    def load_weights(self, policy_version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace every weight by the named CPU tensors (Hugging Face names), or with adapters the last ones by these.

        Raises:
            SystemFailure: a weight is missing.
        """
        self._wake("weights")
        if self._adapters is not None:
            self._adapters.load(self.llm_engine, policy_version, tensors)
        else:
            self._load_all(policy_version, tensors)
        self._set_version(policy_version)

    def _load_all(self, policy_version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        present = _complete(tensors, names=self._names, policy_version=policy_version)
        weights = _with_tied_head(present, head_apart=self._head_apart) if self._tied else present
        # Workers in separate processes are sent the tensors, and an iterator can't be sent.
        self.llm_engine.collective_rpc(
            "reload_weights", kwargs={"weights_iterator": weights if self._in_process else list(weights)}
        )

    # --- weights that the learners send, see `ReceivesWeights` --------------------------------------------------------
    def join_world(self, init_info: Mapping[str, Any]) -> None:
        """Connect to the sender, replacing an earlier connection."""
        self._receiver.join_world(init_info)

    def start_update(self) -> None:
        """Prepare for new weights; no step may follow until `finish_update`."""
        self._wake("weights")
        self._receiver.start_update()

    def receive_weights(self, update_info: Mapping[str, Any]) -> None:
        """Receive the announced weights."""
        self._receiver.receive_weights(update_info)

    def finish_update(self, policy_version: int) -> Sequence[str]:
        """Use the received weights as this version, and return the checksum of each worker's received weights.

        Raises:
            SystemFailure: a weight did not arrive.
        """
        checksums = self._receiver.finish_update(policy_version)
        self._set_version(policy_version)
        return checksums

    def _set_version(self, policy_version: int) -> None:
        self.llm_engine.set_weight_version(str(policy_version))
        self._policy_version = policy_version

    def close(self) -> None:
        """Free the model and its cache; the engine can't be used afterwards."""
        self.llm_engine.engine_core.shutdown()
        if self._adapters is not None:
            self._adapters.close()

    def _parameters(self, sampling: SamplingParameters, *, seed: int) -> SamplingParams:
        try:
            return SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=seed,
                stop_token_ids=sorted(self._end_token_ids),
                logprobs=0,  # only the sampled token's
                flat_logprobs=True,
                detokenize=False,  # done once, at the end
                output_kind=RequestOutputKind.FINAL_ONLY,
                skip_clone=True,
            )
        except ValueError as error:
            raise ConfigError(f"vLLM rejects the sampling settings: {error}") from error


def _engine_args(
    model_path: str, config: EngineConfig, *, max_model_len: int, revision: str | None, trust_remote_code: bool
) -> EngineArgs:
    """vLLM's arguments, with those of `[engine.vllm]`.

    Raises:
        ConfigError: the installed vLLM has no option of such a name, or not with that value.
    """
    options = config.vllm.given
    if unknown := options.keys() - {field.name for field in fields(EngineArgs)}:
        raise ConfigError(
            f"[engine.vllm]: the installed vLLM {version} has no {' or '.join(sorted(unknown))}; remove it, or install "
            "the version that constraints.txt names"
        )
    try:
        return EngineArgs(
            model=model_path,
            revision=revision,
            trust_remote_code=trust_remote_code,
            skip_tokenizer_init=True,  # token ids in, token ids out
            generation_config="vllm",  # use only the run's sampling settings, not the model's recommended ones
            dtype=config.dtype,
            seed=0,  # of the engine's own random state; samples don't depend on it
            max_model_len=max_model_len,
            max_num_seqs=config.max_num_seqs,
            tensor_parallel_size=config.tensor_parallel_size,
            # The default in an actor with a placement group is Ray's executor, which would request its own bundles.
            distributed_executor_backend=None if config.tensor_parallel_size == 1 else "mp",
            enable_sleep_mode=config.sleep and bool(config.gpus_per_generator),
            logprobs_mode="processed_logprobs",  # after temperature: of the sampled distribution
            enable_prefix_caching=True,
            enforce_eager=config.enforce_eager,
            gpu_memory_utilization=config.gpu_memory_utilization,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **options,
        )
    except ValueError as error:
        raise ConfigError(f"[engine.vllm]: vLLM {version} refuses {options}: {error}") from error


def _set_up_cpu(arguments: EngineArgs, *, config: EngineConfig, model_config: PretrainedConfig) -> None:
    """Set arguments with which vLLM on a CPU starts in a few seconds and samples with per-request seeds."""
    head_dim = getattr(model_config, "head_dim", None) or (model_config.hidden_size // model_config.num_attention_heads)
    supported = _cpu_head_dims()
    if head_dim not in supported:
        raise ModelError(
            f"the model's attention heads have {head_dim} dimensions, and vLLM on a CPU supports {supported}; write "
            "another model (model.hidden_size / model.num_heads of a scratch model), or engine.type='transformers'"
        )
    torch._dynamo.config.disable = True  # even when eager, vLLM spends seconds on compiling a small sampler function
    arguments.enforce_eager = True  # compilation takes longer than it saves
    arguments.kv_cache_memory_bytes = int(config.kv_cache_gib * 2**30)  # if given, and eager, there is no warm-up run
    # For a chunked prompt vLLM rewinds the seeded generator, which raises for a CPU generator.
    arguments.enable_chunked_prefill = False
    wanted = config.vllm.max_num_batched_tokens or _CPU_BATCHED_TOKENS
    arguments.max_num_batched_tokens = max(wanted, arguments.max_model_len or 0)
    for architecture in model_config.architectures or ():
        known = ModelRegistry.models.get(architecture)
        if known is not None:  # registered as a class; otherwise vLLM imports itself again in a child to inspect it
            ModelRegistry.register_model(architecture, known.load_model_cls())


def _cpu_head_dims() -> list[int]:
    """The attention head sizes for which vLLM's CPU kernels are compiled."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    return CPUAttentionBackend.get_supported_head_sizes()


def _has_output_head(worker: Any) -> bool:
    """True if the worker's model has a module `lm_head`; some models use their input embedding instead."""
    return hasattr(worker.get_model(), "lm_head")


def _raw_sample(output: RequestOutput) -> RawSample:
    (sample,) = output.outputs
    assert isinstance(sample.logprobs, FlatLogprobs)
    assert sample.weight_versions is not None
    return RawSample(
        token_ids=sample.token_ids,
        logprobs=sample.logprobs.logprobs,
        versions=[(int(span.version), span.start) for span in sample.weight_versions],
    )


def _complete(
    tensors: Iterable[tuple[str, torch.Tensor]], *, names: frozenset[str], policy_version: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass the tensors on, and check that all names appear.

    Raises:
        SystemFailure: a name is missing; vLLM would silently keep the old weight.
    """
    seen: set[str] = set()
    for name, tensor in tensors:
        seen.add(name)
        yield name, tensor
    missing = sorted(names - seen)
    if missing or not seen:
        raise SystemFailure(f"weights version {policy_version} lack {len(missing)} weights: {missing[:3]} ...")


def _with_tied_head(
    tensors: Iterable[tuple[str, torch.Tensor]], *, head_apart: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass the tensors on, and the input embedding also as the output head if vLLM has a separate module for the head
    (`head_apart`; not for Gemma): it has its own packed copy, and would keep its old weights."""
    for name, tensor in tensors:
        if name != "lm_head.weight":
            yield name, tensor
        if head_apart and name.endswith("embed_tokens.weight"):
            yield "lm_head.weight", tensor
