"""What every engine must do: sample as asked, by seed alone, with exact log-probs, under its latest weights."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import (
    build_tiny_model,
    changed_weights,
    make_prompt,
    reference_distribution,
    reference_logprobs,
    reference_logprobs_across,
)
from transformers import Qwen2ForCausalLM

from gvm_ray.config.engine import EngineConfig
from gvm_ray.engines import EngineKind, create_engine, generate, resolve_engine
from gvm_ray.exceptions import DataError, SystemFailure
from gvm_ray.learner.scratch_model import build_character_tokenizer
from gvm_ray.protocols import Engine
from gvm_ray.types import Completion, ModelSpec, SampleRequest, SamplingParameters
from tests.builders import sample_request

MAX_MODEL_LEN = 96
MAX_TOKENS = 24
PROMPTS = [make_prompt(text) for text in ("1+1=", "a much longer prompt: 12*(3+4)=", "7")]


ENGINES: tuple[EngineKind, ...] = get_args(EngineKind)
CUSTOM = "examples.custom_engine:ReportingEngine"


def marks_of(kind: EngineKind) -> list[pytest.MarkDecorator]:
    return [pytest.mark.vllm] if kind == "vllm" else []


def skip_without(kind: EngineKind) -> None:
    """Skip where the engine's library, which is one of the extras, isn't installed."""
    if kind == "vllm":
        pytest.importorskip("vllm")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An engine under test and the weights it was given last."""

    engine: Engine
    model_path: str
    weights: dict[str, torch.Tensor]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((kind, tied), id=f"{kind}-{'tied' if tied else 'untied'}", marks=marks_of(kind))
        for kind in ENGINES
        for tied in (True, False)
    ],
)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    kind, tied = request.param
    skip_without(kind)
    model_path = build_tiny_model(tmp_path_factory.mktemp("model"), tied=tied)
    path = CUSTOM if kind == "custom" else None
    config = EngineConfig(type=kind, path=path, max_num_seqs=8, kv_cache_gib=0.05)
    engine = create_engine(kind, ModelSpec(path=model_path, max_model_len=MAX_MODEL_LEN), config=config)
    assert isinstance(engine, Engine)
    assert engine.policy_version == -1
    generate(engine, [sample_request(PROMPTS[0], num_samples=2)], sampling())  # fills the prefix cache with old weights
    weights = changed_weights(model_path, seed=1)
    engine.load_weights(5, weights.items())
    yield Loaded(engine=engine, model_path=model_path, weights=weights)
    engine.close()


def sampling(*, temperature: float = 1.0, max_tokens: int = MAX_TOKENS, top_p: float = 1.0) -> SamplingParameters:
    return SamplingParameters(temperature=temperature, max_tokens=max_tokens, top_p=top_p)


def tokens(completion: Completion) -> list[int]:
    return completion.token_ids.tolist()


def test_as_many_samples_as_asked_in_order(loaded: Loaded) -> None:
    requests = [sample_request(prompt, num_samples=n) for prompt, n in zip(PROMPTS, (3, 0, 7), strict=True)]
    result = generate(loaded.engine, requests, sampling())
    assert [len(completions) for completions in result] == [3, 0, 7]
    for completion in result[0] + result[2]:
        assert completion.token_ids.dtype == np.int32
        assert completion.logprobs.dtype == np.float32
        assert completion.token_ids.shape == completion.logprobs.shape
        assert completion.policy_versions.tolist() == [5] * len(completion.token_ids)
    assert generate(loaded.engine, [], sampling()) == []


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_forward_pass_under_the_new_weights(loaded: Loaded, temperature: float) -> None:
    requests = [sample_request(prompt, num_samples=3) for prompt in PROMPTS]
    result = generate(loaded.engine, requests, sampling(temperature=temperature))
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


def test_a_small_top_p_leaves_the_likeliest_token_alone(loaded: Loaded) -> None:
    request = sample_request(PROMPTS[0], num_samples=8)
    everything = generate(loaded.engine, [request], sampling())[0]
    likeliest = generate(loaded.engine, [request], sampling(top_p=1e-4))[0]
    assert len({tuple(tokens(completion)) for completion in everything}) > 1
    assert len({tuple(tokens(completion)) for completion in likeliest}) == 1
    assert np.abs(likeliest[0].logprobs).max() < 1e-6


def test_at_temperature_0_every_token_is_the_likeliest(loaded: Loaded) -> None:
    request = sample_request(PROMPTS[0], num_samples=3)
    greedy = generate(loaded.engine, [request], sampling(temperature=0))[0]
    assert len({tuple(tokens(completion)) for completion in greedy}) == 1
    whole = reference_distribution(loaded.model_path, loaded.weights, prompt=request.prompt)
    assert greedy[0].token_ids[0] == whole.argmax()
    assert_logprobs_match(loaded, request, greedy)
    likeliest = generate(loaded.engine, [request], sampling(top_p=1e-4))[0]
    assert tokens(greedy[0]) == tokens(likeliest[0])


def nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """[V] those of the likeliest tokens that together reach `top_p`, made to sum to 1 again; 0 for the others."""
    order = np.argsort(-probabilities)
    kept = order[: 1 + int(np.searchsorted(probabilities[order].cumsum(), top_p))]
    return np.where(np.isin(np.arange(len(order)), kept), probabilities, 0.0) / probabilities[kept].sum()


def test_the_nucleus_by_hand() -> None:
    probabilities = np.array([0.2, 0.5, 0.3])
    for top_p, expected in ((0.6, [0.0, 0.625, 0.375]), (0.4, [0.0, 1.0, 0.0]), (0.9, [0.2, 0.5, 0.3])):
        np.testing.assert_allclose(nucleus(probabilities, top_p), expected)


def test_top_p_keeps_the_likeliest_tokens_that_reach_it(loaded: Loaded) -> None:
    request = sample_request(PROMPTS[0], num_samples=32)
    completions = generate(loaded.engine, [request], sampling(top_p=0.6, max_tokens=1))[0]
    whole = reference_distribution(loaded.model_path, loaded.weights, prompt=request.prompt)
    kept = nucleus(whole, 0.6)
    sampled = [int(completion.token_ids[0]) for completion in completions]
    assert len(set(sampled)) > 1
    assert all(kept[token] for token in sampled)
    assert 1 < (kept > 0).sum() < (whole > 0).sum()
    logprobs = np.concatenate([completion.logprobs for completion in completions])
    np.testing.assert_allclose(logprobs, np.log(kept[sampled]), atol=1e-4)


def assert_logprobs_match(loaded: Loaded, request: SampleRequest, completions: tuple[Completion, ...]) -> None:
    for completion in completions:
        expected = reference_logprobs(
            loaded.model_path, loaded.weights, prompt=request.prompt, completion=completion, temperature=1.0
        )
        assert np.abs(completion.logprobs - expected).max() < 1e-4


def test_samples_depend_on_seeds_and_not_on_company_or_order(loaded: Loaded) -> None:
    first, second, third = (sample_request(prompt, num_samples=4, first_seed=2**62) for prompt in PROMPTS)
    together = generate(loaded.engine, [first, second, third], sampling())
    (alone,) = generate(loaded.engine, [second], sampling())
    reordered = generate(loaded.engine, [third, second], sampling())
    assert [tokens(c) for c in alone] == [tokens(c) for c in together[1]]
    assert [tokens(c) for c in reordered[1]] == [tokens(c) for c in together[1]]
    backwards = SampleRequest(prompt=second.prompt, sample_indices=(3, 2, 1, 0), seeds=second.seeds[::-1])
    (reversed_samples,) = generate(loaded.engine, [backwards], sampling())
    assert [tokens(c) for c in reversed_samples[::-1]] == [tokens(c) for c in alone]
    assert len({tuple(tokens(c)) for c in alone}) == 4  # other seeds, other samples


def test_the_transformers_engine_reads_a_prompt_once_for_all_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_path = build_tiny_model(tmp_path / "model", tied=True)
    config = EngineConfig(type="transformers", max_num_seqs=32)
    engine = create_engine("transformers", ModelSpec(path=model_path, max_model_len=MAX_MODEL_LEN), config=config)
    passes: list[tuple[int, ...]] = []
    forward = Qwen2ForCausalLM.forward

    def counted(self: Qwen2ForCausalLM, input_ids: torch.Tensor, **arguments: Any) -> Any:
        passes.append(tuple(input_ids.shape))
        return forward(self, input_ids, **arguments)

    monkeypatch.setattr(Qwen2ForCausalLM, "forward", counted)
    requests = [sample_request(prompt, num_samples=n) for prompt, n in zip(PROMPTS, (5, 1, 3), strict=True)]
    together = generate(engine, requests, sampling())
    width = max(len(prompt.token_ids) for prompt in PROMPTS)
    assert passes[0] == (3, width)
    assert passes[1] == (9, 1)
    alone = [generate(engine, [request], sampling())[0] for request in requests]
    assert [[tokens(c) for c in group] for group in together] == [[tokens(c) for c in group] for group in alone]
    engine.close()


def test_responses_end_with_end_of_sequence_or_at_max_tokens(loaded: Loaded) -> None:
    (completions,) = generate(loaded.engine, [sample_request(PROMPTS[0], num_samples=64)], sampling(temperature=2.0))
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


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=marks_of(kind)) for kind in ENGINES])
def test_every_end_token_that_the_model_names_ends_a_response(kind: EngineKind, tmp_path: Path) -> None:
    """The tokenizer names 1, config.json 40, generation_config.json 41 and 42; all but 1 are plain characters."""
    skip_without(kind)
    model_path = build_tiny_model(tmp_path, tied=True)
    name_end_tokens(tmp_path / "config.json", 40)
    name_end_tokens(tmp_path / "generation_config.json", [41, 42, 41, -1, None, 100_000])
    path = CUSTOM if kind == "custom" else None
    config = EngineConfig(type=kind, path=path, max_num_seqs=64, kv_cache_gib=0.05)
    engine = create_engine(kind, ModelSpec(path=model_path, max_model_len=MAX_MODEL_LEN), config=config)
    engine.load_weights(0, load_file(tmp_path / "model.safetensors").items())
    (completions,) = generate(engine, [sample_request(PROMPTS[0], num_samples=256)], sampling(temperature=2.0))
    engine.close()
    ends, last = {1, 40, 41, 42}, set()
    for completion in completions:
        ids = tokens(completion)
        written = ids[:-1] if completion.finish_reason == "stop" else ids
        assert not ends & {*written}
        assert completion.text == build_character_tokenizer().decode(written, skip_special_tokens=True)
        last |= {*ids[len(written) :]}
        assert completion.finish_reason == "stop" or len(ids) == MAX_TOKENS
    assert last == ends


def name_end_tokens(file: Path, eos_token_id: object) -> None:
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**values, "eos_token_id": eos_token_id}))


def test_max_tokens_cuts(loaded: Loaded) -> None:
    (completions,) = generate(loaded.engine, [sample_request(PROMPTS[0], num_samples=8)], sampling(max_tokens=1))
    assert {len(completion.token_ids) for completion in completions} == {1}


def test_sampling_follows_the_distribution(loaded: Loaded) -> None:
    """Each token comes up as often as its log-prob says, within five standard deviations."""
    (completions,) = generate(
        loaded.engine, [sample_request(PROMPTS[0], num_samples=1500)], sampling(temperature=0.5, max_tokens=1)
    )
    sampled = np.array([completion.token_ids[0] for completion in completions])
    probability = {int(c.token_ids[0]): float(np.exp(c.logprobs[0])) for c in completions}
    for token_id, expected in probability.items():
        deviation = 5 * np.sqrt(expected * (1 - expected) / len(sampled)) + 1 / len(sampled)
        assert abs((sampled == token_id).mean() - expected) < deviation


def test_a_prompt_too_long_for_the_engine_is_named(loaded: Loaded) -> None:
    long = make_prompt("x" * (MAX_MODEL_LEN - MAX_TOKENS + 1))
    with pytest.raises(DataError, match=f"{len(long.token_ids)} tokens"):
        generate(loaded.engine, [sample_request(long, num_samples=1)], sampling())
    fits = make_prompt("x" * (MAX_MODEL_LEN - MAX_TOKENS))
    assert generate(loaded.engine, [sample_request(fits, num_samples=1)], sampling())


def test_new_weights_change_samples_and_version(loaded: Loaded) -> None:
    request = sample_request(PROMPTS[1], num_samples=4)
    (before,) = generate(loaded.engine, [request], sampling())
    loaded.engine.load_weights(6, changed_weights(loaded.model_path, seed=2).items())
    (other,) = generate(loaded.engine, [request], sampling())
    loaded.engine.load_weights(7, loaded.weights.items())
    (after,) = generate(loaded.engine, [request], sampling())
    versions = [set(completion.policy_versions.tolist()) for completion in before + other + after]
    assert versions == [{5}] * 4 + [{6}] * 4 + [{7}] * 4
    assert [tokens(c) for c in other] != [tokens(c) for c in before]
    assert [tokens(c) for c in after] == [tokens(c) for c in before]


def test_weights_change_between_two_tokens_of_a_sample(loaded: Loaded) -> None:
    """Each token knows its version, and its log-prob is that of the weights and of the cache it was sampled with."""
    engine, changed = loaded.engine, changed_weights(loaded.model_path, seed=4)
    requests = [sample_request(prompt, num_samples=2, first_seed=40) for prompt in PROMPTS]
    engine.add(requests, sampling())
    num_before = 6
    finished = [answer for _ in range(num_before) for answer in engine.step()]
    assert not finished, "the seeds give samples that are longer"
    engine.load_weights(8, changed.items())
    while engine.num_unfinished:
        finished += engine.step()
    engine.load_weights(9, loaded.weights.items())
    assert {id(request) for request, _ in finished} == {id(request) for request in requests}
    for request, completions in finished:
        for completion in completions:
            num_after = len(completion.token_ids) - num_before
            assert num_after > 0
            assert completion.policy_versions.tolist() == [7] * num_before + [8] * num_after
            expected = reference_logprobs_across(
                loaded.model_path,
                loaded.weights,
                changed,
                prompt=request.prompt,
                completion=completion,
                num_before=num_before,
            )
            assert np.abs(completion.logprobs - expected).max() < 1e-4
    (again,) = generate(engine, [requests[0]], sampling())  # no cache of the other weights is left
    (first,) = generate(engine, [requests[0]], sampling())
    assert [tokens(c) for c in again] == [tokens(c) for c in first]
    assert_logprobs_match(loaded, requests[0], again)


def test_requests_come_while_others_are_under_way(loaded: Loaded) -> None:
    engine = loaded.engine
    early, late = (sample_request(prompt, num_samples=3, first_seed=7) for prompt in PROMPTS[:2])
    expected = generate(engine, [early], sampling()) + generate(engine, [late], sampling(max_tokens=9))
    engine.add([early], sampling())
    finished = engine.step()
    engine.add([late], sampling(max_tokens=9))
    assert engine.num_unfinished == 2
    while engine.num_unfinished:
        finished += engine.step()
    answers = {id(request): completions for request, completions in finished}
    for request, completions in zip((early, late), expected, strict=True):
        assert [tokens(c) for c in answers[id(request)]] == [tokens(c) for c in completions]


def test_aborted_requests_are_never_answered(loaded: Loaded) -> None:
    engine = loaded.engine
    request = sample_request(PROMPTS[1], num_samples=3)
    expected = generate(engine, [request], sampling())
    engine.add([sample_request(PROMPTS[0], num_samples=12)], sampling())
    engine.step()
    engine.abort()
    assert engine.num_unfinished == 0
    assert engine.step() == []
    (again,) = generate(engine, [request], sampling())
    assert [tokens(c) for c in again] == [tokens(c) for c in expected[0]]


def test_after_a_reset_versions_count_anew_and_nothing_old_is_left(loaded: Loaded) -> None:
    engine, request = loaded.engine, sample_request(PROMPTS[1], num_samples=3)
    version = engine.policy_version
    generate(engine, [request], sampling())  # fills the prefix cache with this version's keys and values
    engine.add([request, sample_request(PROMPTS[0], num_samples=12)], sampling())
    engine.step()
    engine.reset()
    assert engine.num_unfinished == 0
    assert engine.step() == []
    assert engine.policy_version == -1
    changed = changed_weights(loaded.model_path, seed=6)
    engine.load_weights(version, changed.items())
    (completions,) = generate(engine, [request], sampling())
    assert {int(v) for completion in completions for v in completion.policy_versions} == {version}
    assert_logprobs_match(replace(loaded, weights=changed), request, completions)


def test_incomplete_weights_are_refused(loaded: Loaded) -> None:
    """Last: an engine that was given half a policy is not used again."""
    incomplete = {name: tensor for name, tensor in loaded.weights.items() if "layers.1.mlp" not in name}
    with pytest.raises(SystemFailure, match=r"layers\.1\.mlp"):
        loaded.engine.load_weights(10, incomplete.items())
    assert loaded.engine.policy_version != 10


def test_the_settings_name_every_engine_and_auto() -> None:
    assert set(get_args(EngineConfig.model_fields["type"].annotation)) == {*ENGINES, "auto"}


def test_auto_takes_what_is_installed() -> None:
    assert resolve_engine(EngineConfig(type="transformers")) == "transformers"
    assert resolve_engine(EngineConfig(type="auto")) in ("vllm", "transformers")
