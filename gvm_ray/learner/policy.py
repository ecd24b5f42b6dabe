"""The trained model: a Hugging Face causal LM, sharded with FSDP2, that answers with log-probs instead of logits."""

from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from gvm_ray.config.model import LearnerConfig
from gvm_ray.exceptions import ModelError
from gvm_ray.learner.kernels import AttentionKernels, Sharing
from gvm_ray.learner.lora import add_adapters, base_name, is_adapter, merged_tensor
from gvm_ray.learner.model_trial import check_gradient_norms, check_logprobs, share_prompts, trial
from gvm_ray.learner.sequences import SequenceBatch
from gvm_ray.maths.gradient_norms import (
    HeadGradients,
    embedding_gradient_square_norms,
    head_gradients,
    tied_gradient_inner_products,
)
from gvm_ray.maths.logprobs import OutputHead, token_entropies, token_logprobs
from gvm_ray.model_files import model_errors, ties_embeddings
from gvm_ray.pretrained import check_layout, load_generation_config
from gvm_ray.types import GradientParameters, Pooling


class PolicyModule(nn.Module):
    """The FSDP2 root around a causal LM: whatever needs the output head happens inside its forward methods.

    Sharded parameters are whole only there, and the head belongs to the root. Attention is causal and padding stands on
    the right, so no token ever attends to padding and padded batches need no attention mask. `tied` says whether the
    input embedding is the output head, `shares_prompts` whether micro-batches may hold a prompt once for several
    responses.
    """

    causal_lm: Any  # transformers' classes share no typed base with `model`, `lm_head` and `config`

    def __init__(self, causal_lm: nn.Module, *, temperature: float, chunk_tokens: int) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.temperature = temperature
        self.chunk_tokens = chunk_tokens
        self.tied = self.causal_lm.lm_head.weight is self.causal_lm.get_input_embeddings().weight
        self.shares_prompts = False

    @property
    def head(self) -> OutputHead:
        """The output head; whole inside the forward methods only."""
        return output_head(self.causal_lm)

    def forward(
        self,
        batch: SequenceBatch,
        *,
        temperature: float | None = None,
        with_entropy: bool = False,
        entropy_gradient: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probs [B, T] of the response tokens in float32 nats, and their entropies [B, T] or None; 0 at padding.

        At the sampling temperature unless another is given.
        """
        hidden = self._hidden(batch)
        rows, columns = batch.mask.nonzero(as_tuple=True)
        logprobs, entropies = token_logprobs(
            hidden.flatten(0, 1)[batch.state_positions()[rows, columns]],
            self.head,
            batch.targets[rows, columns],
            temperature=temperature or self.temperature,
            chunk_tokens=self.chunk_tokens,
            with_entropy=with_entropy,
            entropy_gradient=entropy_gradient,
        )
        empty = logprobs.new_zeros(batch.mask.shape)
        padded = empty.index_put((rows, columns), logprobs)
        return padded, None if entropies is None else empty.index_put((rows, columns), entropies)

    def prompt_states(self, batch: SequenceBatch, *, pooling: Pooling) -> Tensor:
        """[B, F] float32: the final hidden states, after the final norm, at each prompt's tokens.

        Their mean, the last one, or both end to end, mean first (F is the hidden size H, or 2H for both). Or the mean
        entropy of the next token's distribution there, in nats at the sampling temperature (F = 1).
        """
        hidden = self._hidden(batch)
        if pooling != "entropy":
            return batch.pooled(hidden.float(), pooling=pooling)
        entropies = token_entropies(hidden, self.head, temperature=self.temperature, chunk_tokens=self.chunk_tokens)
        return batch.pooled(entropies.unsqueeze(-1), pooling="mean")

    def response_gradients(
        self, batch: SequenceBatch, *, square_norms: bool, offset: Tensor | None = None
    ) -> tuple[Tensor, HeadGradients]:
        """The states [B, T, H] that predict the response tokens, and the head's gradients there.

        With an `offset` [R, S, H] of zeros, which is added to the embedding layer's output, the states depend on it
        alone and the head's gradients include those at the states: carried back from there, they give the objectives'
        gradient at that output, and no parameter gets one.
        """

        def shift(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            return output.detach() if offset is None else output.detach() + offset

        # A hook rather than `inputs_embeds`, for some families do more with token ids than to look them up.
        handle = self.causal_lm.get_input_embeddings().register_forward_hook(shift)
        try:
            hidden = self._hidden(batch)
        finally:
            handle.remove()
        states = hidden.flatten(0, 1)[batch.state_positions()]
        head = head_gradients(
            states,
            self.head,
            batch.targets,
            batch.mask,
            temperature=self.temperature,
            square_norms=square_norms,
            state_gradients=offset is not None,
        )
        return states, head

    @torch.no_grad()
    def tied_inner_products(
        self, batch: SequenceBatch, states: Tensor, *, gradients: HeadGradients, row_gradients: Tensor
    ) -> Tensor:
        """[B] inner products of the shared matrix's two gradients; `row_gradients` [R, S, H] are those of the rows that
        are looked up."""
        return tied_gradient_inner_products(
            states,
            self.head,
            batch.targets,
            batch.mask,
            gradients=gradients,
            activation_gradients=batch.by_sample(row_gradients),
            input_ids=batch.by_sample(batch.input_ids),
            temperature=self.temperature,
        )

    def _hidden(self, batch: SequenceBatch) -> Tensor:
        """[R, S, H] final hidden states, after the final norm."""
        arguments = batch.attention_arguments
        return self.causal_lm.model(batch.input_ids, **arguments, use_cache=False).last_hidden_state


def output_head(causal_lm: Any) -> OutputHead:
    """The output head of a causal LM, with what its configuration says of a scale and a soft cap."""
    layer, config = causal_lm.lm_head, causal_lm.config
    scale = 1.0
    for name, factor in {
        "logit_scale": lambda value: value,  # Cohere
        "logits_scaling": lambda value: 1 / value,  # Granite
        "lm_head_multiplier": lambda value: value,  # Falcon-H1
    }.items():
        if getattr(config, name, None) is not None:
            scale = float(factor(getattr(config, name)))
    soft_cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    if soft_cap is None:
        soft_cap = getattr(config, "logits_soft_cap", None)  # RecurrentGemma
    return OutputHead(weight=layer.weight, bias=layer.bias, scale=scale, soft_cap=soft_cap)


def looked_up_gradients(embedding: Any, activation_gradients: Tensor, input_ids: Tensor) -> Tensor:
    """Gradients [..., H] of the rows of an embedding matrix, one for each look-up, from those at the layer's output.

    Gemma's layer scales what it looks up, and no layer trains the row of its padding token.
    """
    scale = getattr(embedding, "embed_scale", 1.0)
    gradients = activation_gradients
    if not isinstance(scale, float) or scale != 1.0:
        gradients = gradients * torch.as_tensor(scale, dtype=gradients.dtype, device=gradients.device)
    if embedding.padding_idx is not None:
        gradients = gradients.masked_fill((input_ids == embedding.padding_idx).unsqueeze(-1), 0.0)
    return gradients


def sample_gradient_norms(policy: PolicyModule, batch: SequenceBatch, *, parameters: GradientParameters) -> Tensor:
    """[B] norm of each sample's gradient of sum_t ln pi(y_t), at the sampling temperature, in one of its matrices.

    With tied embeddings either choice of `parameters` means the one shared matrix. No parameter gets a gradient.
    """
    if not policy.tied and parameters == "lm_head":
        with torch.no_grad():
            _, head = policy.response_gradients(batch, square_norms=True)
        assert head.square_norms is not None
        square_norms = head.square_norms
    else:
        states, head, gradients = embedding_row_gradients(policy, batch, square_norms=policy.tied)
        square_norms = embedding_gradient_square_norms(gradients, batch.input_ids, samples=batch.sample_indices)
        if head.square_norms is not None:
            inner = policy.tied_inner_products(batch, states, gradients=head, row_gradients=gradients)
            square_norms += head.square_norms + 2 * inner
    return square_norms.clamp(min=0).sqrt()  # rounding can leave a tied sum of three terms below 0


def embedding_row_gradients(
    policy: PolicyModule, batch: SequenceBatch, *, square_norms: bool
) -> tuple[Tensor, HeadGradients, Tensor]:
    """The result of `response_gradients`, and the objectives' gradients [R, S, H] at each position's embedding row."""
    embedding: Any = policy.causal_lm.get_input_embeddings()
    shape = (*batch.input_ids.shape, embedding.embedding_dim)
    offset = torch.zeros(shape, device=batch.input_ids.device, requires_grad=True)
    states, head = policy.response_gradients(batch, square_norms=square_norms, offset=offset)
    assert head.state_gradients is not None
    (gradients,) = torch.autograd.grad(states, offset, head.state_gradients.to(states.dtype))
    return states, head, looked_up_gradients(embedding, gradients, batch.input_ids)


def load_policy(
    path: str | Path,
    *,
    mesh: DeviceMesh,
    settings: LearnerConfig,
    attention: AttentionKernels,
    temperature: float,
    packed: bool = False,
    sharing: Sharing = "off",
    gradient_parameters: Collection[GradientParameters] = (),
    trainable: bool = True,
    seed: int = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PolicyModule:
    """Load the causal LM of a Hugging Face folder or hub id, sharded over `mesh` by block; master weights are float32.

    With `settings.lora` only adapters, drawn from `seed`, are trainable. A trainable policy is tried first
    (`try_policy`, `share_prompts`); another takes `sharing` without a trial.

    Raises:
        ModelError: the model isn't a causal LM of the Llama layout, or its log-probs or gradient norms would be wrong.
        ConfigError: `settings.lora` names layers that the model doesn't have.
    """
    causal_lm = load_causal_lm(path, revision=revision, trust_remote_code=trust_remote_code, attention=attention)
    policy = PolicyModule(causal_lm, temperature=temperature, chunk_tokens=settings.logprob_chunk_tokens)
    if trainable:
        try_policy(policy, path, packed=packed, gradient_parameters=gradient_parameters)
    if sharing != "off":
        share_prompts(policy, path, kernels=attention, sharing=sharing if trainable else None)
    policy.requires_grad_(trainable)
    if settings.lora is not None:
        add_adapters(causal_lm, settings.lora, seed=seed)
    policy.eval()  # dropout would make two passes over the same tokens disagree
    if settings.activation_checkpointing and trainable:
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for block in causal_lm.model.layers:
            block.training = True  # as transformers wants it; what is inside stays as it is, without dropout
    _shard(policy, mesh=mesh, settings=settings)
    return policy


def _shard(policy: PolicyModule, *, mesh: DeviceMesh, settings: LearnerConfig) -> None:
    """Shard a whole policy block by block; its blocks are compiled first where the settings say so.

    A single rank keeps it whole if it can: FSDP2 would copy all weights and gradients in each micro-batch.
    """
    if settings.compile:
        # `forward` alone: FSDP2's hooks around it gather and free the weights, uncompiled. Isolated, because all blocks
        # share the code, and together would soon meet the limit on its variants.
        options: dict[str, Any] = {"dynamic": True, "isolate_recompiles": True}
        for block in policy.causal_lm.model.layers:
            block.forward = torch.compile(block.forward, **options)
    if mesh.size() == 1 and not settings.shards:
        policy.to(mesh.device_type)
        return
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else None
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    placement: dict[str, Any] = {"mesh": mesh, "mp_policy": precision}
    if settings.cpu_offload:
        placement["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    for block in policy.causal_lm.model.layers:
        fully_shard(block, **placement)
    fully_shard(policy, **placement)
    for method in ("prompt_states", "response_gradients", "tied_inner_products"):
        register_fsdp_forward_method(policy, method)


def try_policy(
    policy: PolicyModule,
    path: str | Path,
    *,
    packed: bool = False,
    gradient_parameters: Collection[GradientParameters] = (),
) -> None:
    """Compare a whole policy, on the CPU, with its model's own logits and their gradients.

    Raises:
        ModelError: its log-probs or gradient norms are wrong.
    """
    causal_lm = policy.causal_lm
    kernels = causal_lm.config._attn_implementation
    with trial(causal_lm, path):
        causal_lm.set_attn_implementation("sdpa")  # flash kernels run on GPUs alone
        check_logprobs(policy, path, packed=packed)
        for name in sorted(gradient_parameters):
            layer = causal_lm.lm_head if name == "lm_head" else causal_lm.get_input_embeddings()
            measure = partial(sample_gradient_norms, policy, parameters=name)
            check_gradient_norms(policy, path, parameter=layer.weight, measure=measure)
        causal_lm.set_attn_implementation(kernels)


def reshard(policy: PolicyModule) -> None:
    """Drop the whole copy of the root's weights that a forward pass without a backward pass leaves behind.

    Left standing it would be used, out of date, after the next optimizer step or weight copy.
    """
    if isinstance(policy, FSDPModule):
        policy.reshard()


def local_shards(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's shard of each tensor; shares memory with it."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


@torch.no_grad()
def copy_weights(policy: PolicyModule, *, to: PolicyModule) -> None:
    """Overwrite the weights of another policy of the same model and mesh."""
    for target, source in zip(local_shards(to.parameters()), local_shards(policy.parameters()), strict=True):
        target.copy_(source)


def full_tensor_names(policy: PolicyModule) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(Hugging Face name, whole shape) of what `named_full_tensors` gives, in its order; gathers nothing."""
    return ((base_name(name), tuple(tensor.shape)) for name, tensor in _published(policy))


def named_full_tensors(
    policy: PolicyModule, *, dtype: torch.dtype, device: str | torch.device = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, whole tensor) of every weight, gathered one at a time; every rank must iterate.

    A tied output head comes once, under the name of the input embedding. Adapters are merged in.
    """
    for name, tensor in _published(policy):
        whole = merged_tensor(policy.causal_lm, name, tensor)
        yield base_name(name), whole.to(dtype=dtype, device=device)


def _published(policy: PolicyModule) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in policy.causal_lm.state_dict().items():
        if not (is_adapter(name) or (policy.tied and name == "lm_head.weight")):
            yield name, tensor


def load_causal_lm(
    path: str | Path, *, revision: str | None, trust_remote_code: bool, attention: AttentionKernels = "sdpa"
) -> Any:
    """The causal LM of a Hugging Face folder or hub id in float32, whole and with finite weights.

    Weights come from safetensors files, else from pickled ones, of which only tensors are read: no code in them runs.

    Raises:
        ModelError: files are missing or damaged, or weights are missing, of another shape, infinite or NaN.
    """
    from transformers import AutoModelForCausalLM

    with model_errors("model", path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation=attention,
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # and say which, instead of pointing to a log
            generation_config=load_generation_config(path, revision=revision)[0],
        )
    causal_lm, found = loaded
    check_layout(causal_lm, path)
    # transformers fills both with random values.
    if wrong := sorted(found["missing_keys"]) + [name for name, *_ in sorted(found["mismatched_keys"])]:
        raise ModelError(
            f"{len(wrong)} weights of {str(path)!r} are missing or of another shape than its config.json says, among "
            f"them {wrong[0]!r}; put configuration and weights of one model there"
        )
    if ties_embeddings(causal_lm.config) and causal_lm.lm_head.weight is not causal_lm.get_input_embeddings().weight:
        raise ModelError(
            f'config.json of {str(path)!r} says "tie_word_embeddings": true, and its lm_head.weight is another matrix '
            'than the input embedding; write "tie_word_embeddings": false there'
        )
    for name, parameter in causal_lm.named_parameters():
        if not parameter.isfinite().all():
            raise ModelError(
                f"the weights {name!r} of {str(path)!r} have infinities or NaN; take a checkpoint from before they did"
            )
    return causal_lm
