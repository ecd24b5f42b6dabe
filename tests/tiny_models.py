"""Tiny Qwen2 models with a character tokenizer, written to disk, and their forward pass as the reference."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Qwen2Config, Qwen2ForCausalLM

from gvm_ray.learner.scratch_model import build_character_tokenizer
from gvm_ray.types import Completion, Prompt


def build_tiny_model(folder: Path, *, tied: bool, head_dim: int = 32) -> str:
    """A random two-layer model; heads of 32 dimensions, the fewest that vLLM supports on a CPU."""
    tokenizer = build_character_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=64 // head_dim,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def changed_weights(model_path: str, *, seed: int) -> dict[str, torch.Tensor]:
    """Every tensor of the model changed by a lot, biases and norms too; under tied embeddings without lm_head."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return {
            name: parameter * (0.5 + torch.rand(parameter.shape, generator=generator))
            + 0.05 * torch.randn(parameter.shape, generator=generator)
            for name, parameter in model.named_parameters()
        }


@torch.no_grad()
def reference_distribution(model_path: str, weights: dict[str, torch.Tensor], *, prompt: Prompt) -> np.ndarray:
    """[V] probabilities of the first token after the prompt, at temperature 1, by one float32 forward pass."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return model(torch.from_numpy(prompt.token_ids.astype(np.int64))[None]).logits[0, -1].double().softmax(-1).numpy()


@torch.no_grad()
def reference_logprobs(
    model_path: str, weights: dict[str, torch.Tensor], *, prompt: Prompt, completion: Completion, temperature: float
) -> np.ndarray:
    """[T] log-probs of the completion's tokens by one float32 forward pass."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    token_ids = torch.from_numpy(np.concatenate([prompt.token_ids, completion.token_ids]).astype(np.int64))
    logits = model(token_ids[None]).logits[0, len(prompt.token_ids) - 1 : -1]
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return logprobs.gather(-1, token_ids[len(prompt.token_ids) :, None])[:, 0].numpy()


@torch.no_grad()
def reference_logprobs_across(
    model_path: str,
    before: dict[str, torch.Tensor],
    after: dict[str, torch.Tensor],
    *,
    prompt: Prompt,
    completion: Completion,
    num_before: int,
    temperature: float = 1.0,
) -> np.ndarray:
    """[T] log-probs where the first `num_before` >= 1 tokens come of one policy and the rest of another.

    The second policy finds the attention keys and values that the first one left.
    """
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    token_ids = torch.from_numpy(np.concatenate([prompt.token_ids, completion.token_ids]).astype(np.int64))[None]
    num_read = len(prompt.token_ids) + num_before - 1  # the last token of the first policy is read by the second
    logits, cache = [], DynamicCache(config=model.config)
    for weights, part in ((before, token_ids[:, :num_read]), (after, token_ids[:, num_read:-1])):
        model.load_state_dict(weights, strict=False)
        model.tie_weights()
        logits.append(model(part, past_key_values=cache, use_cache=True).logits[0])
    logprobs = torch.log_softmax(torch.cat(logits)[len(prompt.token_ids) - 1 :] / temperature, dim=-1)
    return logprobs.gather(-1, token_ids[0, len(prompt.token_ids) :, None])[:, 0].numpy()


def make_prompt(text: str) -> Prompt:
    """A prompt of the character tokenizer, its text as its id."""
    token_ids = build_character_tokenizer()(text)["input_ids"]
    return Prompt(prompt_id=text, text=text, token_ids=np.array(token_ids, dtype=np.int32), answer="0")
