"""What every engine must do: sample as asked, by seed alone, with exact log-probs, under its latest weights."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tiny_models import build_tiny_model, changed_weights, make_prompt, make_request, reference_logprobs

from gvm_ray.config.run import EngineConfig
from gvm_ray.engines import create_engine, resolve_engine
from gvm_ray.exceptions import DataError, SystemFailure
from gvm_ray.protocols import Engine
from gvm_ray.types import Completion, SampleRequest, SamplingParameters

MAX_MODEL_LEN = 96
MAX_TOKENS = 24
PROMPTS = [make_prompt(text) for text in ("1+1=", "a much longer prompt: 12*(3+4)=", "7")]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An engine under test and the weights it was given last."""

    engine: Engine
    model_path: str
    weights: dict[str, torch.Tensor]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((kind, tied), id=f"{kind}-{'tied' if tied else 'untied'}", marks=marks)
        for kind, marks in (("transformers", ()), ("custom", ()), ("vllm", pytest.mark.vllm))
        for tied in (True, False)
    ],
)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    kind, tied = request.param
    if kind == "vllm":
        pytest.importorskip("vllm")
    model_path = build_tiny_model(tmp_path_factory.mktemp("model"), tied=tied)
    path = "examples.custom_engine:ReportingEngine" if kind == "custom" else None
    config = EngineConfig(type=kind, path=path, max_num_seqs=8, kv_cache_gib=0.05)
    engine = create_engine(kind, model_path, config=config, max_model_len=MAX_MODEL_LEN)
    assert isinstance(engine, Engine)
    assert engine.policy_version == -1
    engine.generate([make_request(PROMPTS[0], num_samples=2)], sampling())  # fills the prefix cache with old weights
    weights = changed_weights(model_path, seed=1)
    engine.load_weights(5, weights.items())
    yield Loaded(engine=engine, model_path=model_path, weights=weights)
    engine.close()


def sampling(*, temperature: float = 1.0, max_tokens: int = MAX_TOKENS) -> SamplingParameters:
    return SamplingParameters(temperature=temperature, max_tokens=max_tokens)


def tokens(completion: Completion) -> list[int]:
    return completion.token_ids.tolist()


def test_as_many_samples_as_asked_in_order(loaded: Loaded) -> None:
    requests = [make_request(prompt, num_samples=n) for prompt, n in zip(PROMPTS, (3, 0, 7), strict=True)]
    result = loaded.engine.generate(requests, sampling())
    assert [len(completions) for completions in result] == [3, 0, 7]
    for completion in result[0] + result[2]:
        assert completion.token_ids.dtype == np.int32
        assert completion.logprobs.dtype == np.float32
        assert completion.token_ids.shape == completion.logprobs.shape
        assert completion.policy_version == 5
    assert loaded.engine.generate([], sampling()) == []


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_forward_pass_under_the_new_weights(loaded: Loaded, temperature: float) -> None:
    requests = [make_request(prompt, num_samples=3) for prompt in PROMPTS]
    result = loaded.engine.generate(requests, sampling(temperature=temperature))
    differences = [
        np.abs(
            completion.logprobs
            - reference_logprobs(
                loaded.model_path,
                loaded.weights,
                prompt=request.prompt,
                completion=completion,
                temperature=temperature,
            )
        )
        for request, completions in zip(requests, result, strict=True)
        for completion in completions
    ]
    assert np.concatenate(differences).mean() < 1e-4


def test_samples_depend_on_seeds_and_not_on_company_or_order(loaded: Loaded) -> None:
    first, second, third = (make_request(prompt, num_samples=4, first_seed=2**62) for prompt in PROMPTS)
    together = loaded.engine.generate([first, second, third], sampling())
    (alone,) = loaded.engine.generate([second], sampling())
    reordered = loaded.engine.generate([third, second], sampling())
    assert [tokens(c) for c in alone] == [tokens(c) for c in together[1]]
    assert [tokens(c) for c in reordered[1]] == [tokens(c) for c in together[1]]
    backwards = SampleRequest(prompt=second.prompt, sample_indices=(3, 2, 1, 0), seeds=second.seeds[::-1])
    (reversed_samples,) = loaded.engine.generate([backwards], sampling())
    assert [tokens(c) for c in reversed_samples[::-1]] == [tokens(c) for c in alone]
    assert len({tuple(tokens(c)) for c in alone}) == 4  # other seeds, other samples


def test_responses_end_with_end_of_sequence_or_at_max_tokens(loaded: Loaded) -> None:
    (completions,) = loaded.engine.generate([make_request(PROMPTS[0], num_samples=64)], sampling(temperature=2.0))
    reasons = {completion.finish_reason for completion in completions}
    assert reasons == {"stop", "length"}  # about one in 98 tokens ends a response at this temperature
    eos_token_id = 1
    for completion in completions:
        ids = tokens(completion)
        if completion.finish_reason == "stop":
            assert ids[-1] == eos_token_id
            assert eos_token_id not in ids[:-1]
            assert "<|endoftext|>" not in completion.text
        else:
            assert len(ids) == MAX_TOKENS
            assert eos_token_id not in ids


def test_max_tokens_cuts(loaded: Loaded) -> None:
    (completions,) = loaded.engine.generate([make_request(PROMPTS[0], num_samples=8)], sampling(max_tokens=1))
    assert {len(completion.token_ids) for completion in completions} == {1}


def test_sampling_follows_the_distribution(loaded: Loaded) -> None:
    """Each token comes up as often as its log-prob says, within five standard deviations."""
    (completions,) = loaded.engine.generate(
        [make_request(PROMPTS[0], num_samples=1500)], sampling(temperature=0.5, max_tokens=1)
    )
    sampled = np.array([completion.token_ids[0] for completion in completions])
    probability = {int(c.token_ids[0]): float(np.exp(c.logprobs[0])) for c in completions}
    for token_id, expected in probability.items():
        deviation = 5 * np.sqrt(expected * (1 - expected) / len(sampled)) + 1 / len(sampled)
        assert abs((sampled == token_id).mean() - expected) < deviation


def test_a_prompt_too_long_for_the_engine_is_named(loaded: Loaded) -> None:
    long = make_prompt("x" * (MAX_MODEL_LEN - MAX_TOKENS + 1))
    with pytest.raises(DataError, match=f"{len(long.token_ids)} tokens"):
        loaded.engine.generate([make_request(long, num_samples=1)], sampling())
    fits = make_prompt("x" * (MAX_MODEL_LEN - MAX_TOKENS))
    assert loaded.engine.generate([make_request(fits, num_samples=1)], sampling())


def test_new_weights_change_samples_and_version(loaded: Loaded) -> None:
    request = make_request(PROMPTS[1], num_samples=4)
    (before,) = loaded.engine.generate([request], sampling())
    loaded.engine.load_weights(6, changed_weights(loaded.model_path, seed=2).items())
    (other,) = loaded.engine.generate([request], sampling())
    loaded.engine.load_weights(7, loaded.weights.items())
    (after,) = loaded.engine.generate([request], sampling())
    assert [completion.policy_version for completion in before + other + after] == [5] * 4 + [6] * 4 + [7] * 4
    assert [tokens(c) for c in other] != [tokens(c) for c in before]
    assert [tokens(c) for c in after] == [tokens(c) for c in before]


def test_incomplete_weights_are_refused(loaded: Loaded) -> None:
    """Last: an engine that was given half a policy is not used again."""
    incomplete = {name: tensor for name, tensor in loaded.weights.items() if "layers.1.mlp" not in name}
    with pytest.raises(SystemFailure, match=r"layers\.1\.mlp"):
        loaded.engine.load_weights(8, incomplete.items())
    assert loaded.engine.policy_version != 8


def test_auto_takes_what_is_installed() -> None:
    assert resolve_engine(EngineConfig(type="transformers")) == "transformers"
    assert resolve_engine(EngineConfig(type="auto")) in ("vllm", "transformers")
