"""The simulated engine is an engine: what was asked for comes back, by seed, with the version of every token."""

import dataclasses
import subprocess
import sys
import time

import numpy as np
import pytest

from gvm_ray.config.engine import EngineConfig
from gvm_ray.engines import create_engine, generate
from gvm_ray.exceptions import DataError
from gvm_ray.lab.speed.simulated_engine import LatencyModel, SimulatedEngine
from gvm_ray.protocols import Engine
from gvm_ray.types import ModelSpec, SampleRequest, SamplingParameters
from tests.builders import prompt, sample_request

FAST = LatencyModel(speed=1000.0, median_tokens=40.0)
SAMPLING = SamplingParameters(temperature=1.0, max_tokens=64)


def make_engine(model: LatencyModel = FAST, *, max_num_seqs: int = 4) -> SimulatedEngine:
    config = EngineConfig(
        type="custom", path="gvm_ray.lab.speed.simulated_engine:SimulatedEngine", max_num_seqs=max_num_seqs
    )
    engine = create_engine("custom", ModelSpec(path=model.to_json(), max_model_len=100), config=config)
    assert isinstance(engine, SimulatedEngine)
    return engine


def make_request(prompt_id: str, seeds: tuple[int, ...]) -> SampleRequest:
    """Of a prompt of eight tokens."""
    return sample_request(prompt(prompt_id, token_ids=[0] * 8), seeds=seeds)


def test_as_many_samples_as_asked_in_order_of_their_seeds() -> None:
    engine = make_engine()
    assert isinstance(engine, Engine)
    requests = [make_request("a", (5, 6, 7)), make_request("b", ()), make_request("c", tuple(range(20, 40)))]
    answers = generate(engine, requests, SAMPLING)
    assert [[c.text for c in completions] for completions in answers] == [
        [str(seed) for seed in request.seeds] for request in requests
    ]
    for completion in answers[0] + answers[2]:
        shapes = {array.shape for array in (completion.token_ids, completion.logprobs, completion.policy_versions)}
        assert shapes == {(len(completion.token_ids),)}
    assert engine.num_unfinished == 0
    usage = engine.usage()
    assert usage.num_samples == 23
    assert usage.num_tokens == sum(len(c.token_ids) for completions in answers for c in completions)


def test_lengths_depend_on_the_seed_and_not_on_the_company() -> None:
    (alone,) = generate(make_engine(), [make_request("a", (1, 2, 3))], SAMPLING)
    others = make_request("b", tuple(range(100, 120)))
    _, together = generate(make_engine(max_num_seqs=7), [others, make_request("a", (1, 2, 3))], SAMPLING)
    lengths = [len(c.token_ids) for c in alone]
    assert [len(c.token_ids) for c in together] == lengths
    assert len(set(lengths)) == 3


def test_lengths_are_log_normal_and_cut() -> None:
    lengths = np.array([FAST.num_tokens(seed) for seed in range(4000)])
    assert np.median(lengths) == pytest.approx(40, rel=0.05)
    assert np.log(lengths).std() == pytest.approx(FAST.sigma, rel=0.05)
    (completions,) = generate(make_engine(), [make_request("a", tuple(range(50)))], SAMPLING)
    for completion, wanted in zip(completions, lengths, strict=False):
        assert len(completion.token_ids) == min(wanted, 64)
        assert completion.finish_reason == ("length" if wanted > 64 else "stop")
    assert {c.finish_reason for c in completions} == {"length", "stop"}


def test_stragglers_are_the_given_share_of_samples_and_so_much_longer() -> None:
    slow = dataclasses.replace(FAST, straggler_share=0.1, straggler_factor=10.0, sigma=0.01)
    lengths = np.array([slow.num_tokens(seed) for seed in range(4000)])
    assert (lengths > 100).mean() == pytest.approx(0.1, abs=0.02)
    assert np.median(lengths[lengths > 100]) == pytest.approx(400, rel=0.05)


def test_each_token_has_the_version_that_was_loaded_when_it_was_sampled() -> None:
    model = LatencyModel(step_s=0.05, sequence_s=0.0, prefill_s=0.0, load_s=0.0, median_tokens=6.0, sigma=0.0001)
    engine = make_engine(dataclasses.replace(model, speed=1.0), max_num_seqs=2)  # one token in one step
    engine.load_weights(3, [])
    engine.add([make_request("a", (1, 2, 3))], SAMPLING)
    answers = [*engine.step(), *engine.step()]
    engine.load_weights(4, iter([("weight", np.zeros(3))]))
    assert engine.policy_version == 4
    while engine.num_unfinished:
        answers += engine.step()
    ((_, completions),) = answers
    assert [c.policy_versions.tolist() for c in completions] == [[3, 3, 4, 4, 4, 4], [3, 3, 4, 4, 4, 4], [4] * 6]


def test_weights_are_read_and_the_next_samples_are_theirs() -> None:
    engine = make_engine()
    assert engine.policy_version == -1
    read: list[str] = []
    engine.load_weights(0, ((name, read.append(name)) for name in ("a", "b")))
    assert read == ["a", "b"]
    for version in (1, 2, 7):
        engine.load_weights(version, [])
        (completions,) = generate(engine, [make_request("a", (1, 2))], SAMPLING)
        assert {int(v) for c in completions for v in c.policy_versions} == {version}


def test_abort_drops_everything_and_the_engine_goes_on() -> None:
    engine = make_engine()
    engine.add([make_request("a", tuple(range(30)))], SAMPLING)
    engine.step()
    engine.abort()
    assert engine.num_unfinished == 0
    assert engine.step() == []
    (completions,) = generate(engine, [make_request("b", (1,))], SAMPLING)
    assert [c.text for c in completions] == ["1"]


def test_requests_that_do_not_fit_are_refused_together() -> None:
    engine = make_engine()
    long = prompt("long", token_ids=[0] * 37)
    with pytest.raises(DataError, match="long"):
        engine.add(
            [make_request("a", (1,)), sample_request(long, first_seed=1)],
            SAMPLING,
        )
    assert engine.num_unfinished == 0


def test_time_passes_as_the_model_says_and_is_counted() -> None:
    model = LatencyModel(step_s=0.002, sequence_s=0.001, prefill_s=0.001, median_tokens=50.0, sigma=0.0001)
    engine = make_engine(model, max_num_seqs=2)
    start = time.monotonic()
    generate(engine, [make_request("a", (1, 2, 3, 4))], SAMPLING)
    passed = time.monotonic() - start
    modelled = 0.008 + 2 * 50 * (0.002 + 2 * 0.001)  # the prompt once, then two samples at a time
    usage = engine.usage()
    assert modelled <= passed + 0.001
    assert usage.slot_s == pytest.approx(2 * 2 * 50 * 0.004)
    assert usage.slot_s / 2 <= usage.busy_s <= passed
    assert engine.usage().since(usage).busy_s == 0.0


def test_the_actor_of_a_simulated_engine_stays_light() -> None:
    script = (
        "import sys, gvm_ray.actors.generator, gvm_ray.lab.speed.simulated_engine; "
        "print([name for name in ('torch', 'transformers', 'vllm', 'datasets', 'pandas') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
