"""Means of input embeddings: read from weight files as the model would look them up, projected, free, and kept."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loop_fakes import START, fake_embeddings, make_system, run_config
from model_families import build_family
from safetensors.torch import load_file, save_file
from tiny_models import build_tiny_model
from transformers import AutoModelForCausalLM

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.base import PromptStatesConfig
from gvm_ray.allocators.gvm_pool import GVMPoolAllocatorConfig
from gvm_ray.allocators.rivals.vip import VIPAllocatorConfig
from gvm_ray.background import drain
from gvm_ray.config import parse_config
from gvm_ray.exceptions import ConfigError, ModelError
from gvm_ray.lab.estimator.pool import states_of
from gvm_ray.loop import train
from gvm_ray.prepare import BaseModel
from gvm_ray.pretrained import read_embeddings
from gvm_ray.prompt_states import EmbeddingStates
from gvm_ray.system import embeddings_of
from gvm_ray.types import FloatArray, IntArray, Prompt
from tests.builders import outcome, prompt

RUN = {"name": "run", "model": {"type": "scratch"}, "prompts": {"train": {"type": "arithmetic", "size": 64}}}
IDS = np.array([3, 7, 8, 20], dtype=np.int32)
POOL: dict[str, Any] = {"type": "gvm_pool", "candidates_per_step": 12, "group_size": 4, "states": "embedding"}


def looked_up(folder: Path | str, token_ids: IntArray) -> FloatArray:
    """The rows that the loaded model looks up, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        return model.get_input_embeddings()(torch.from_numpy(token_ids.astype(np.int64))).float().numpy()


def random_prompts(count: int, *, num_tokens: int = 9, vocabulary: int = 40) -> list[Prompt]:
    rng = np.random.default_rng(0)
    return [prompt(index, token_ids=rng.integers(vocabulary, size=num_tokens).tolist()) for index in range(count)]


def rename(folder: Path, name: Any) -> None:
    file = folder / "model.safetensors"
    save_file({name(each): values for each, values in load_file(file).items()}, file, metadata={"format": "pt"})


# --- reading ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", ["5GB", "50KB"])
def test_rows_are_those_that_the_model_looks_up(tmp_path: Path, tied: bool, dtype: torch.dtype, shards: str) -> None:
    build_tiny_model(tmp_path, tied=tied)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "50KB")
    rows = read_embeddings(tmp_path, IDS)
    assert (rows.dtype, rows.shape) == (np.float32, (4, 64))
    assert np.array_equal(rows, looked_up(tmp_path, IDS))


def test_pickled_weights_are_read_too(tmp_path: Path) -> None:
    build_tiny_model(tmp_path, tied=True)
    expected = looked_up(tmp_path, IDS)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert np.array_equal(read_embeddings(tmp_path, IDS), expected)


@pytest.mark.parametrize("sharded", [True, False])
def test_a_hub_id_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot, refs = (tmp_path / "hub" / "models--org--tiny" / name for name in (f"snapshots/{commit}", "refs"))
    build_tiny_model(snapshot, tied=True)
    expected = looked_up(snapshot, IDS)
    if sharded:
        model = AutoModelForCausalLM.from_pretrained(snapshot)
        (snapshot / "model.safetensors").unlink()
        model.save_pretrained(snapshot, max_shard_size="50KB")
    refs.mkdir()
    (refs / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert np.array_equal(read_embeddings("org/tiny", IDS), expected)
    for file in snapshot.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ModelError, match=r"org/tiny"):
        read_embeddings("org/tiny", IDS)


@pytest.mark.parametrize(
    "name",
    [
        lambda name: name.removeprefix("model."),
        lambda name: f"language_model.{name}",
        lambda name: "lm_head.weight" if name == "model.embed_tokens.weight" else name,
    ],
)
def test_the_table_is_found_under_other_names(tmp_path: Path, name: Any) -> None:
    build_tiny_model(tmp_path, tied=True)
    expected = looked_up(tmp_path, IDS)
    rename(tmp_path, name)
    assert np.array_equal(read_embeddings(tmp_path, IDS), expected)


def test_a_family_that_scales_its_embeddings_differs_by_that_factor_alone(tmp_path: Path) -> None:
    build_family(tmp_path, "gemma3_text")
    assert np.allclose(read_embeddings(tmp_path, IDS) * 32**0.5, looked_up(tmp_path, IDS), rtol=1e-2)


def test_a_table_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    build_tiny_model(tmp_path, tied=False)
    rename(tmp_path, lambda name: "model.words" if name == "model.embed_tokens.weight" else name)
    with pytest.raises(ModelError, match=r"no table of input embeddings 'model\.embed_tokens\.weight'.*or write alloc"):
        read_embeddings(tmp_path, IDS)


def test_a_table_of_another_shape_is_refused(tmp_path: Path) -> None:
    build_tiny_model(tmp_path, tied=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 8}))
    with pytest.raises(ModelError, match=r"has the shape \[\d+, 64\]"):
        read_embeddings(tmp_path, IDS)


def test_a_warm_started_run_takes_the_table_it_starts_from(tmp_path: Path) -> None:
    for name in ("cold", "warm"):
        build_tiny_model(tmp_path / name, tied=True)
    weights = load_file(tmp_path / "warm" / "model.safetensors")
    weights["model.embed_tokens.weight"] += 1
    save_file(weights, tmp_path / "warm" / "model.safetensors", metadata={"format": "pt"})
    cold, warm = str(tmp_path / "cold"), tmp_path / "warm"
    assert np.array_equal(embeddings_of(BaseModel(path=cold))(IDS), looked_up(cold, IDS))
    assert np.array_equal(embeddings_of(BaseModel(path=cold, warm_start_folder=warm))(IDS), looked_up(warm, IDS))
    with pytest.raises(ModelError, match="gone"):
        embeddings_of(BaseModel(path=cold, warm_start_folder=tmp_path / "gone"))(IDS)


# --- means ------------------------------------------------------------------------------------------------------------
def of(states: EmbeddingStates, group: list[Prompt], *, step: int = 0) -> FloatArray:
    rows, num_tokens = asyncio.run(states.of(group, step=step))
    assert num_tokens == 0
    return rows


def test_means_of_narrow_embeddings_are_plain_means(tmp_path: Path) -> None:
    build_tiny_model(tmp_path, tied=False)
    group = random_prompts(6)
    rows = of(EmbeddingStates(prompts=group, read=embeddings_of(BaseModel(path=str(tmp_path)))), group[2:])
    assert rows.dtype == np.float32
    expected = [looked_up(tmp_path, each.token_ids).mean(axis=0) for each in group[2:]]
    assert np.allclose(rows, expected, rtol=0, atol=1e-7)


def test_wide_ones_are_projected_on_their_principal_components() -> None:
    group = random_prompts(300, vocabulary=200)
    rows = of(EmbeddingStates(prompts=group, read=fake_embeddings), group)
    assert rows.shape == (300, 64)
    means = np.array([fake_embeddings(each.token_ids).mean(axis=0) for each in group], dtype=np.float64)
    centred = means - means.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    expected = centred @ vectors[:, :-65:-1] / np.sqrt(values[-1] / 300)
    assert np.allclose(rows.std(axis=0), expected.std(axis=0), rtol=1e-4)
    assert np.allclose(np.abs(rows), np.abs(expected), atol=1e-3)
    again = EmbeddingStates(prompts=group, read=fake_embeddings)
    assert np.array_equal(of(again, group[::-1]), rows[::-1])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_prompts_have_fewer_components(count: int) -> None:
    group = random_prompts(count)
    rows = of(EmbeddingStates(prompts=group, read=fake_embeddings), group)
    assert rows.shape == (count, max(count - 1, 1))
    assert np.isfinite(rows).all()


def test_the_embeddings_are_read_once_and_only_of_tokens_that_occur() -> None:
    asked: list[list[int]] = []

    def read(token_ids: IntArray) -> FloatArray:
        asked.append(token_ids.tolist())
        return fake_embeddings(token_ids)

    async def overlapping(states: EmbeddingStates) -> None:
        await asyncio.gather(*(states.of([each], step=0) for each in group))

    group = [prompt(0, token_ids=[9, 4, 4]), prompt(1, token_ids=[0, 9])]
    states = EmbeddingStates(prompts=group, read=read)
    assert states.state_dict(step=0) == {}
    asyncio.run(overlapping(states))
    of(states, group, step=50)
    assert asked == [[0, 4, 9]]


def test_a_resumed_run_has_the_same_to_the_bit_without_the_model() -> None:
    def gone(token_ids: IntArray) -> FloatArray:
        raise ModelError("the warm start is gone")

    group = random_prompts(90)
    states = EmbeddingStates(prompts=group, read=fake_embeddings)
    rows = of(states, group)
    resumed = EmbeddingStates(prompts=group, read=gone)
    resumed.load_state_dict({})
    with pytest.raises(ModelError, match="gone"):
        of(resumed, group)
    resumed.load_state_dict(states.state_dict(step=7))
    assert np.array_equal(of(resumed, group, step=7), rows)


# --- in a run ---------------------------------------------------------------------------------------------------------
async def _trained(num_steps: int, start: Any = START) -> tuple[Any, list[Any], list[Any]]:
    config = run_config(num_steps=num_steps, allocator=POOL, checkpoint={"every_steps": 2})
    system, pools, learners, records = make_system(config)

    async def refuse(*args: Any, **options: Any) -> FloatArray:
        raise AssertionError("no forward pass")

    learners.prompt_states = refuse  # type: ignore[method-assign]
    pools.version = start.step
    if start.step:
        system.prompts.load_state_dict(start.cursor)
        system.states.load_state_dict(start.prompt_states)
        await system.allocator.load_state_dict(start.allocator)
    await drain(train(system, config, start=start))
    counts = [{group.prompt_id: len(group.sample_indices) for group in batch.groups} for batch in learners.batches]
    return records, counts, [metrics for _, metrics in records.steps]


def test_a_run_makes_no_pass_pays_nothing_and_resumes_to_the_bit() -> None:
    records, counts, metrics = asyncio.run(_trained(6))
    assert all(each.get("cost/prefill_tokens", 0) == 0 for each in metrics)
    assert metrics[-1]["cost/charged_tokens"] == metrics[-1]["cost/generated_tokens"]
    (saved,) = [state for state in records.saved if state.step == 4]
    through_json = {name: json.loads(json.dumps(getattr(saved, name))) for name in ("cursor", "allocator", "costs")}
    _, resumed_counts, resumed = asyncio.run(_trained(6, replace(saved, **through_json)))
    assert resumed_counts == counts[4:]
    assert [each["allocation/p_hat_mean"] for each in resumed] == [
        each["allocation/p_hat_mean"] for each in metrics[4:]
    ]


def test_the_pool_learns_what_is_linear_in_the_embeddings() -> None:
    direction = np.random.default_rng(5).standard_normal(80)
    everything = random_prompts(1200, vocabulary=60)
    means = np.array([fake_embeddings(each.token_ids).mean(axis=0) for each in everything]) @ direction
    rates = dict(zip((each.prompt_id for each in everything), 1 / (1 + np.exp(-means / means.std() * 3)), strict=True))
    states = EmbeddingStates(prompts=everything, read=fake_embeddings)
    driver = AllocationDriver.of(GVMPoolAllocatorConfig(group_size=4), accept_threshold=0.5, seed=0)
    for step in range(6):
        rng = np.random.default_rng(step)
        group = everything[200 * step : 200 * step + 200]
        counts = driver.plan(group, step=step, budget=256, states=of(states, group, step=step)).counts
        driver.observe(
            [
                outcome(id_, (rng.random(count) < rates[id_]).astype(np.float64))
                for id_, count in counts.items()
                if count
            ],
            step=step,
        )
        predicted = driver.report(step=step).estimator.accept_rates
    true = [rates[id_] for id_ in predicted]
    assert np.corrcoef([*predicted.values()], true)[0, 1] > 0.7
    spread = np.mean([rates[id_] * (1 - rates[id_]) for id_ in predicted])
    assert spread > 1.2 * np.mean([each * (1 - each) for each in rates.values()])


def test_the_estimator_gives_every_arm_its_kind_of_states() -> None:
    class Measure:
        def prompt_states(self, token_ids: list[IntArray], *, pooling: str) -> FloatArray:
            assert pooling == "last"
            return np.zeros((len(token_ids), 3), dtype=np.float32)

    group = random_prompts(90, vocabulary=200)
    embeddings = EmbeddingStates(prompts=group, read=fake_embeddings)
    arms = [
        parse_config({**RUN, "allocator": {"type": "neyman", "states": states}})
        for states in ("embedding", "none", {"pooling": "last"}, {"pooling": "last", "refresh_steps": 3})
    ]
    found = states_of(arms, group[:5], Measure(), embeddings)  # type: ignore[arg-type]
    assert {kind: rows.shape for kind, rows in found.items()} == {"embedding": (5, 64), "last": (5, 3)}


# --- settings ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["gvm_pool", "gvm_online", "neyman", "vip"])
def test_settings(kind: str) -> None:
    config = parse_config({**RUN, "allocator": {"type": kind, "states": "embedding"}})
    assert config.prompt_states == "embedding"
    assert parse_config(json.loads(config.model_dump_json())) == config
    assert parse_config({**RUN, "allocator": {"type": kind}}, ["allocator.states=embedding"]) == config
    paid = parse_config({**RUN, "allocator": {"type": kind, "states": {"refresh_steps": 3}}})
    assert paid.prompt_states == PromptStatesConfig(refresh_steps=3)


def test_candidates_are_as_many_as_without_states() -> None:
    free, none = (parse_config({**RUN, "allocator": {"type": "gvm_pool", "states": s}}) for s in ("embedding", "none"))
    assert free.candidates_per_step == none.candidates_per_step == 2048


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ("embeddings", r'allocator\.states: takes "embedding", "none", or a table .*got \'embeddings\''),
        (3, r"allocator\.states: takes"),
        ({"refresh_steps": 0}, r"1 problem\(s\)\n  allocator\.states\.refresh_steps: takes an integer ≥ 1"),
        ({"pooling": "embedding"}, r"1 problem\(s\)\n  allocator\.states\.pooling: "),
    ],
)
def test_nonsense_is_refused(states: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**RUN, "allocator": {"type": "gvm_pool", "states": states}})


def test_embeddings_have_nothing_to_refresh() -> None:
    allocator = {"type": "gvm_pool", "states": "embedding"}
    with pytest.raises(ConfigError, match=r"'states' is a value, not a table"):
        parse_config({**RUN, "allocator": allocator}, ["allocator.states.refresh_steps=5"])


def test_vip_needs_states() -> None:
    assert VIPAllocatorConfig(states="embedding").states == "embedding"
    with pytest.raises(ConfigError, match="needs states"):
        parse_config({**RUN, "allocator": {"type": "vip", "states": "none"}})
