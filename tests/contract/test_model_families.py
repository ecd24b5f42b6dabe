"""Every decoder family that transformers has: the policy computes with it what the model itself does, or refuses it."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gvm_ray.exceptions import ModelError
from gvm_ray.learner.model_trial import check_output, share_prompts
from gvm_ray.learner.policy import PolicyModule, output_head, sample_gradient_norms, try_policy
from gvm_ray.learner.sequences import TrainSample, pad_samples, share_samples
from gvm_ray.pretrained import check_layout, empty_causal_lm
from gvm_ray.types import GradientParameters
from tests.model_families import tiny_config, tiny_model

# Families of text models that must stay supported, of 178 in transformers 5.19.
SUPPORTED = frozenset(
    """
    afmoe apertus arcee aria_text axk1 axk2 bamba bitnet cohere cohere2 cohere2_moe cwm deepseek_v2
    deepseek_v3 deepseek_v32 diffllama doge dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon_h1 flex_olmo
    gemma gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite
    glm_moe_dsa granite granitemoe granitemoehybrid granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe
    hy_v3 hyperclovax jais2 jamba jetmoe kimi_linear laguna lfm2 lfm2_moe llama llama4_text longcat_flash
    mellum minicpm3 minimax minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral moshi nanochat
    nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3
    qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen4_exp_text recurrent_gemma seed_oss smollm3
    solar_open stablelm starcoder2 vaultgemma youtu zamba zamba2 zaya
    """.split()  # noqa: SIM905  # as a list it would fill a page
)
# Of these, those whose responses can't share a prompt: layers that read along the row, or masks of their own.
APART = frozenset(
    """
    axk2 bamba deepseek_v32 doge falcon_h1 glm_moe_dsa granitemoehybrid jamba kimi_linear lfm2 lfm2_moe llama4_text
    minimax moshi nemotron nemotron_h olmo_hybrid qwen3_5_moe_text qwen3_5_text qwen3_next qwen4_exp_text
    recurrent_gemma stablelm zamba zamba2 zaya
    """.split()  # noqa: SIM905
)
# Those that can't be made here, and why.
NOT_MADE = {
    "cohere_compass_text": "KeyError: 'full_attention'",  # defaults without parameters of its rotary embedding
    "dbrx": "has no attribute 'rope_theta'",  # transformers' own configuration lacks it
    "gemma3n": "requires the timm library",
    "gemma4_assistant": "has no attribute 'vocab_size'",  # drafts for another model
    "gemma4_unified_assistant": "has no attribute 'vocab_size'",
    "musicgen": "Validation error for field 'text_encoder'",  # made of three models
    "musicgen_melody": "Validation error for field 'text_encoder'",
}
TEMPERATURE = 0.7


def made(family: str) -> Any:
    """The tiny model, after the checks that need no weights.

    Raises:
        ModelError: one of them refuses it.
    """
    config = tiny_config(family)
    check_output(empty_causal_lm(config, attention="sdpa"), output_head, family)
    causal_lm = tiny_model(family)
    check_layout(causal_lm, family)
    return causal_lm


def samples_of(causal_lm: Any) -> list[TrainSample]:
    """Three of several lengths; the first repeats its tokens, the padding token among them."""
    vocab_size = len(causal_lm.lm_head.weight)
    rng = np.random.default_rng(1)
    ids = [rng.integers(vocab_size, size=n).astype(np.int32) for n in (9, 7, 8)]
    ids[0][:] = [3, 5, 3, 5, 3, 7, 5, 3, 7]
    return [
        TrainSample(prompt_ids=row[:split], response_ids=row[split:], engine_logprobs=np.zeros(0, dtype=np.float32))
        for row, split in zip(ids, (4, 2, 5), strict=True)
    ]


def own_logprobs(causal_lm: Any, sample: TrainSample) -> torch.Tensor:
    """[T] of the response, from the logits that the model itself gives for the sample alone."""
    ids = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids])).long()
    start = len(sample.prompt_ids)
    logprobs = (causal_lm(ids.unsqueeze(0), use_cache=False).logits[0, start - 1 : -1] / TEMPERATURE).log_softmax(-1)
    return logprobs.gather(-1, ids[start:].unsqueeze(-1)).squeeze(-1)


def own_norms(causal_lm: Any, samples: Sequence[TrainSample], layer: Any) -> list[float]:
    """Of each sample's gradient in a layer's matrix, by autograd."""
    objectives = [own_logprobs(causal_lm, sample).sum() for sample in samples]
    return [float(torch.autograd.grad(objective, layer.weight)[0].norm()) for objective in objectives]


def check_policy(causal_lm: Any) -> None:
    """Log-probs to 1e-4 nats, gradient norms to a thousandth."""
    policy = PolicyModule(causal_lm, temperature=TEMPERATURE, chunk_tokens=5)
    samples = samples_of(causal_lm)
    batch = pad_samples(samples, device=torch.device("cpu"))
    with torch.no_grad():
        logprobs, _ = policy(batch)
        for row, sample in zip(logprobs, samples, strict=True):
            torch.testing.assert_close(
                row[: len(sample.response_ids)], own_logprobs(causal_lm, sample), atol=1e-4, rtol=0.0
            )
    layers: dict[GradientParameters, Any] = {
        "embed_tokens": causal_lm.get_input_embeddings(),
        "lm_head": causal_lm.lm_head,
    }
    for parameters, layer in layers.items():
        norms = sample_gradient_norms(policy, batch, parameters=parameters)
        np.testing.assert_allclose(norms, own_norms(causal_lm, samples, layer), rtol=1e-3)


@pytest.mark.parametrize("family", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_right_or_refused(family: str) -> None:
    if family in NOT_MADE:
        with pytest.raises(Exception, match=NOT_MADE[family]):
            made(family)
        return
    refusal = None
    try:
        causal_lm = made(family)
        try_policy(PolicyModule(causal_lm, temperature=TEMPERATURE, chunk_tokens=5), family)
    except ModelError as error:
        refusal = str(error)
    if refusal is None:
        check_policy(causal_lm)
    else:
        assert family not in SUPPORTED, refusal
        assert re.search(r"without `model\.layers`|scaled_dot_product|its own logits differ", refusal), refusal


def groups_of(causal_lm: Any) -> list[TrainSample]:
    """Three prompts with one to three responses, longer and shorter than they are, and than windows of 4 tokens."""
    vocab_size, rng = len(causal_lm.lm_head.weight), np.random.default_rng(2)
    samples = []
    for num_prompt, lengths in ((14, (9, 3, 17)), (8, (21,)), (3, (2, 6))):
        prompt_ids = rng.integers(vocab_size, size=num_prompt).astype(np.int32)
        for length in lengths:
            ids = rng.integers(vocab_size, size=length).astype(np.int32)
            none = np.zeros(0, dtype=np.float32)
            samples.append(TrainSample(prompt_ids=prompt_ids, response_ids=ids, engine_logprobs=none))
    return samples


def narrowed(family: str) -> Any:
    """The tiny model, with windows and chunks of 4 tokens where it has some."""
    changes: dict[str, Any] = {}
    if getattr(tiny_config(family), "sliding_window", None):
        changes["sliding_window"] = 4
    if getattr(tiny_config(family), "attention_chunk_size", None):
        changes["attention_chunk_size"] = 4
    return tiny_model(family, **changes)


@pytest.mark.parametrize("family", sorted(SUPPORTED))
def test_shared_prompts_are_right_or_not_taken(family: str) -> None:
    policy = PolicyModule(narrowed(family), temperature=TEMPERATURE, chunk_tokens=5)
    share_prompts(policy, family, sharing="try")
    assert policy.shares_prompts == (family not in APART)
    if not policy.shares_prompts:
        assert policy.causal_lm.config._attn_implementation == "sdpa"
        return
    samples = groups_of(policy.causal_lm)
    with torch.no_grad():
        logprobs, _ = policy(share_samples(samples, device=torch.device("cpu")))
        for row, sample in zip(logprobs, samples, strict=True):
            own = own_logprobs(policy.causal_lm, sample)
            torch.testing.assert_close(row[: len(sample.response_ids)], own, atol=1e-4, rtol=0.0)


def test_chunked_attention_and_scores_scaled_by_place() -> None:
    """Llama 4's chunks go by positions; its scale goes by places, which shows far beyond a trial's tokens only."""
    causal_lm = tiny_model("llama4_text", attention_chunk_size=4, attn_temperature_tuning=False)
    policy = PolicyModule(causal_lm, temperature=TEMPERATURE, chunk_tokens=5)
    share_prompts(policy, "llama4_text")
    samples = groups_of(causal_lm)
    with torch.no_grad():
        logprobs, _ = policy(share_samples(samples, device=torch.device("cpu")))
    for row, sample in zip(logprobs, samples, strict=True):
        with torch.no_grad():
            own = own_logprobs(causal_lm, sample)
        torch.testing.assert_close(row[: len(sample.response_ids)], own, atol=1e-4, rtol=0.0)
