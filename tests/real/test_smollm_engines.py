"""A real model in both engines and the learner: prompts, log-probs, end tokens, and greedy text after an export."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from gvm_ray.engines import generate
from gvm_ray.learner.policy import PolicyModule, load_causal_lm
from gvm_ray.learner.sequences import pad_samples, train_sample
from gvm_ray.protocols import Engine
from gvm_ray.tasks.templates import WORDINGS
from gvm_ray.types import Prompt, RolloutGroup, SamplingParameters
from tests.builders import group, prompt, sample_request
from tests.real.learners import batch_of, config_of, learner_of
from tests.real.word_problems import PROBLEMS

GREEDY = 1e-6  # top_p: only the most probable token is left
IM_END, END_OF_TEXT = 2, 0

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def policy(folder: str) -> PolicyModule:
    causal_lm = load_causal_lm(folder, revision=None, trust_remote_code=False)
    return PolicyModule(causal_lm, temperature=0.8, chunk_tokens=64).eval()


def chat(tokenizer: Any, text: str) -> Prompt:
    """A message to the model as its own template writes it."""
    messages = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return prompt(text, token_ids=ids)


def sampled(
    engine: Engine, weights: Weights, prompts: Sequence[Prompt], *, num: int, max_tokens: int, top_p: float = 1.0
) -> list[RolloutGroup]:
    """Samples under these weights, at temperature 0.8."""
    engine.load_weights(engine.policy_version + 1, weights.items())
    requests = [sample_request(each, num_samples=num) for each in prompts]
    answers = generate(engine, requests, SamplingParameters(temperature=0.8, max_tokens=max_tokens, top_p=top_p))
    return [group(each, completions) for each, completions in zip(prompts, answers, strict=True)]


@torch.no_grad()
def learner_logprobs(policy: PolicyModule, groups: Sequence[RolloutGroup]) -> list[np.ndarray]:
    """[T] of every sample."""
    samples = [train_sample(each, i) for each in groups for i in range(len(each))]
    logprobs, _ = policy(pad_samples(samples, device=torch.device("cpu")))
    return [row[: len(sample.response_ids)].numpy() for row, sample in zip(logprobs, samples, strict=True)]


def test_prompts_are_what_the_chat_template_makes(tokenizer: Any, prompts: list[Prompt]) -> None:
    wording = WORDINGS["qwen-boxed"]
    for (problem, _), each in zip(PROBLEMS, prompts, strict=True):
        messages = [
            {"role": "system", "content": wording.system},
            {"role": "user", "content": problem + wording.user_suffix},
        ]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert each.token_ids.tolist() == ids


def test_log_probs_agree(engine: Engine, policy: PolicyModule, weights: Weights, prompts: list[Prompt]) -> None:
    groups = sampled(engine, weights, prompts[:3], num=2, max_tokens=16)
    expected = learner_logprobs(policy, groups)
    for completion, logprobs in zip((c for each in groups for c in each.completions), expected, strict=True):
        np.testing.assert_allclose(completion.logprobs, logprobs, atol=1e-4)
    assert len({c.text for each in groups for c in each.completions}) > 2  # of 6: sampled, not greedy


def test_the_end_of_a_turn_ends_a_response_and_is_learned(
    engine: Engine, policy: PolicyModule, weights: Weights, tokenizer: Any
) -> None:
    asked = chat(tokenizer, "What is 2+2? Answer with one number.")
    (found,) = sampled(engine, weights, [asked], num=1, max_tokens=16, top_p=GREEDY)
    assert found.texts == ("The answer is 4.",)
    assert found.token_ids[-1] == IM_END
    assert not found.truncated[0]
    (logprobs,) = learner_logprobs(policy, [found])
    assert len(logprobs) == len(found.token_ids)
    assert np.exp(logprobs[-1]) > 0.5


def test_the_end_of_a_text_ends_a_response_and_is_learned(engine: Engine, weights: Weights, tokenizer: Any) -> None:
    """With twice the output vector of what would come first, <|endoftext|> comes instead."""
    asked = chat(tokenizer, "What is 2+2? Answer with one number.")
    name = "model.embed_tokens.weight"
    changed = weights[name].clone()
    changed[END_OF_TEXT] = 2 * changed[tokenizer.convert_tokens_to_ids("The")]
    (found,) = sampled(engine, weights | {name: changed}, [asked], num=1, max_tokens=16)
    assert found.token_ids.tolist() == [END_OF_TEXT]
    assert found.texts == ("",)
    assert not found.truncated[0]
    assert train_sample(found, 0).response_ids.tolist() == [END_OF_TEXT]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A policy after an update of adapters: its weights as generators get them, and its export's greedy tokens."""

    weights: Weights
    greedy: list[list[int]]


@pytest.fixture(scope="module")
def trained(
    folder: str, groups: list[RolloutGroup], prompts: list[Prompt], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    exported = tmp_path_factory.mktemp("exported")
    config = config_of(folder, algorithm={"type": "grpo"}, lora={"rank": 8})
    learner = learner_of(config, folder)
    assert learner.update(batch_of(config, groups), groups).metrics["num_updates"] == 1
    learner.export(str(exported))
    model: Any = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    (exported / "model.safetensors").unlink()  # half a gigabyte
    asked = [torch.from_numpy(each.token_ids.astype(np.int64))[None] for each in prompts[2:4]]
    answers = [model.generate(ids, do_sample=False, max_new_tokens=20) for ids in asked]
    return Trained(
        weights={name: tensor.clone() for name, tensor in learner.named_full_tensors()},
        greedy=[answer[0, ids.shape[1] :].tolist() for answer, ids in zip(answers, asked, strict=True)],
    )


def test_adapters_change_the_linear_layers_alone(trained: Trained, weights: Weights) -> None:
    changed = {name for name, tensor in trained.weights.items() if not torch.equal(tensor, weights[name])}
    assert changed == {name for name in weights if name.endswith("_proj.weight")}


def test_an_export_answers_as_the_engines_do(engine: Engine, trained: Trained, prompts: list[Prompt]) -> None:
    found = sampled(engine, trained.weights, prompts[2:4], num=1, max_tokens=20, top_p=GREEDY)
    assert [each.token_ids.tolist() for each in found] == trained.greedy
