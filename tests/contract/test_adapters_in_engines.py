"""Adapters in both engines: the learner's log-probs, one version at a time, and nothing left of the one before."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tiny_models import build_tiny_model, make_prompt, reference_logprobs_across
from torch import Tensor

from gvm_ray.config.engine import EngineConfig
from gvm_ray.engines import create_engine, generate
from gvm_ray.engines.adapters import MAX_VLLM_RANK, VLLM_ARCHITECTURES, adapter_drawback, adapter_obstacle
from gvm_ray.exceptions import SystemFailure
from gvm_ray.learner.learner import Learner
from gvm_ray.learner.lora import adapter_spec
from gvm_ray.learner.norms import PolicyMeasurements
from gvm_ray.learner.sequences import BatchLayout, train_sample
from gvm_ray.protocols import Engine
from gvm_ray.types import AdapterSpec, Completion, ModelSpec, RolloutGroup, SampleRequest, SamplingParameters
from tests.builders import sample_request
from tests.learner_cases import SurrogateLoss, batch_of, learner_config, ragged_groups

PROMPTS = [make_prompt(text) for text in ("1+1=", "a much longer prompt: 12*(3+4)=")]
SAMPLING = SamplingParameters(temperature=0.7, max_tokens=16)
LAYERS = {
    "all layers": {"rank": 3, "alpha": 6.0},
    "two layers": {"rank": 9, "rank_stabilized": True, "target_modules": ["q_proj", "down_proj"]},
}


@dataclass(kw_only=True)
class Trained:
    """A learner of adapters, and an engine that has loaded the same base."""

    learner: Learner
    engine: Engine
    spec: AdapterSpec
    model_path: str
    steps: int = 0

    def update(self) -> None:
        """Move the adapters by a lot, and give them to the engine as its next version."""
        groups = ragged_groups(seed=self.steps)
        for _ in range(2):  # A gets a gradient once B isn't 0
            assert self.learner.update(batch_of(groups, step=self.steps), groups).metrics["num_updates"] == 1
            self.steps += 1
        self.engine.load_weights(self.engine.policy_version + 1, self.adapters().items())

    def adapters(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.learner.named_adapter_tensors()}

    def merged(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.learner.named_full_tensors()}

    def difference(self, answers: list[tuple[Completion, ...]]) -> float:
        """The largest difference between the engine's log-probs and those of the policy as the learner holds it."""
        groups = [RolloutGroup.of(each, found) for each, found in zip(PROMPTS, answers, strict=True)]
        samples = [train_sample(group, i) for group in groups for i in range(len(group))]
        layout = BatchLayout(max_tokens=100_000, packed=False, device=torch.device("cpu"))
        expected = PolicyMeasurements(self.learner.policy, layout=layout).logprobs(samples)
        found = [completion.logprobs for group in groups for completion in group.completions]
        return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))


def requests() -> list[SampleRequest]:
    return [sample_request(each, num_samples=3, first_seed=20) for each in PROMPTS]


def texts(answers: list[tuple[Completion, ...]]) -> list[list[int]]:
    return [completion.token_ids.tolist() for found in answers for completion in found]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((kind, layers), id=f"{kind}, {layers}", marks=[pytest.mark.vllm] if kind == "vllm" else [])
        for kind in ("transformers", "vllm")
        for layers in LAYERS
    ],
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    kind, layers = request.param
    if kind == "vllm":
        pytest.importorskip("vllm")
    model_path = build_tiny_model(tmp_path_factory.mktemp("model"), tied=True)
    settings = {"lora": LAYERS[layers], "optimizer": {"learning_rate": 0.05, "epsilon": 1e-3}}
    config = learner_config(learner=settings)
    learner = Learner(config, base_path=model_path, token_loss=SurrogateLoss())
    assert config.learner.lora is not None
    spec = adapter_spec(learner.policy.causal_lm, config.learner.lora)
    model = ModelSpec(path=model_path, max_model_len=96, adapters=spec)
    engine = create_engine(kind, model, config=EngineConfig(type=kind, max_num_seqs=8, kv_cache_gib=0.05))
    yield Trained(learner=learner, engine=engine, spec=spec, model_path=model_path)
    engine.close()


def test_before_the_first_version_it_is_the_base(trained: Trained) -> None:
    assert trained.engine.policy_version == -1
    assert trained.difference(generate(trained.engine, requests(), SAMPLING)) < 1e-4


def test_log_probs_are_those_of_the_learner_after_every_update(trained: Trained) -> None:
    before = generate(trained.engine, requests(), SAMPLING)
    for _ in range(2):
        trained.update()
        answers = generate(trained.engine, requests(), SAMPLING)
        assert trained.difference(answers) < 1e-4
        assert trained.difference(before) > 1e-2
        versions = {version for found in answers for each in found for version in each.policy_versions.tolist()}
        assert versions == {trained.engine.policy_version}
        assert texts(answers) != texts(before)
        before = answers


def test_nothing_is_left_of_a_replaced_version(trained: Trained) -> None:
    first, samples = trained.adapters(), generate(trained.engine, requests(), SAMPLING)
    trained.update()
    assert texts(generate(trained.engine, requests(), SAMPLING)) != texts(samples)
    trained.engine.load_weights(trained.engine.policy_version + 1, first.items())
    again = generate(trained.engine, requests(), SAMPLING)
    assert texts(again) == texts(samples)
    for a, b in zip((c for found in again for c in found), (c for found in samples for c in found), strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-6)
    vllm: Any = getattr(trained.engine, "llm_engine", None)
    assert vllm is None or vllm.list_loras() == {1}


def test_samples_under_way_continue_with_new_adapters(trained: Trained) -> None:
    """Each token knows its version; its log-prob is that of the weights and of the cache it was sampled with."""
    engine = trained.engine
    engine.load_weights(engine.policy_version + 1, trained.adapters().items())
    version, before = engine.policy_version, trained.merged()
    engine.add(requests(), SAMPLING)
    finished = [answer for _ in range(4) for answer in engine.step()]
    trained.update()
    while engine.num_unfinished:
        finished += engine.step()
    crossed = 0
    for request, completions in finished:
        for completion in completions:
            num_before = int((completion.policy_versions == version).sum())
            crossed += num_before < len(completion.token_ids)
            assert completion.policy_versions.tolist()[num_before:] == [version + 1] * (
                len(completion.token_ids) - num_before
            )
            expected = reference_logprobs_across(
                trained.model_path,
                before,
                trained.merged(),
                prompt=request.prompt,
                completion=completion,
                num_before=num_before,
                temperature=SAMPLING.temperature,
            )
            assert np.abs(completion.logprobs - expected).max() < 1e-4
    assert crossed, "the seeds give samples that are longer"
    assert trained.difference(generate(engine, requests(), SAMPLING)) < 1e-4  # no cache of the old version is used


@pytest.mark.parametrize("wrong", ["missing", "unknown", "another shape"])
def test_wrong_adapters_are_refused(trained: Trained, wrong: str) -> None:
    tensors, name = trained.adapters(), trained.spec.shapes[0][0]
    tensor = tensors.pop(name)
    if wrong != "missing":
        tensors[name if wrong == "another shape" else "model.norm.lora_A.weight"] = tensor[:1]
    with pytest.raises(SystemFailure, match=r"have [12] tensors that are missing, unknown or of another shape"):
        trained.engine.load_weights(trained.engine.policy_version + 1, tensors.items())


def test_only_adapters_are_published(tmp_path: Path) -> None:
    config = learner_config(learner={"lora": {"rank": 3}})
    model_path = build_tiny_model(tmp_path, tied=True)
    learner = Learner(config, base_path=model_path, token_loss=SurrogateLoss())
    tensors = dict(learner.named_adapter_tensors())
    assert config.learner.lora is not None
    spec = adapter_spec(learner.policy.causal_lm, config.learner.lora)
    assert [(name, tuple(tensor.shape)) for name, tensor in tensors.items()] == list(spec.shapes)
    queries_and_outputs, keys_and_values, feed_forward = 2 * (64 + 64), 2 * (64 + 32), 3 * (64 + 96)
    per_block = queries_and_outputs + keys_and_values + feed_forward  # inputs and outputs of its layers
    assert (
        sum(tensor.nbytes for tensor in tensors.values()) == 2 * per_block * 3 * 4
    )  # blocks x layers x rank x float32
    assert len(spec.layers) == 2 * 7


@pytest.mark.parametrize(
    ("kind", "engine", "rank", "reason"),
    [
        ("transformers", {}, 8, None),
        ("transformers", {"gpus_per_generator": 1}, 4096, None),
        ("vllm", {}, 8, None),
        ("vllm", {"gpus_per_generator": 1, "dtype": "bfloat16"}, 8, None),
        ("vllm", {"gpus_per_generator": 1}, 8, "don't compute in engine.dtype='float32'"),
        ("vllm", {}, MAX_VLLM_RANK + 1, "learner.lora.rank=513"),
        ("custom", {"type": "custom", "path": "a:B"}, 8, "a custom engine takes whole weights only"),
    ],
)
def test_obstacles(kind: str, engine: dict[str, Any], rank: int, reason: str | None) -> None:
    spec = AdapterSpec(rank=rank, scale=2.0, shapes=())
    found = adapter_obstacle(kind, EngineConfig.model_validate(engine), spec)
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_drawbacks() -> None:
    on_cpu, on_gpu = EngineConfig(), EngineConfig(gpus_per_generator=1)
    assert adapter_drawback("transformers", on_cpu, architectures=["AnyForCausalLM"]) is None
    assert "more slowly" in str(adapter_drawback("vllm", on_cpu, architectures=["LlamaForCausalLM"]))
    assert adapter_drawback("vllm", on_gpu, architectures=["LlamaForCausalLM"]) is None
    quantized = EngineConfig.model_validate({"gpus_per_generator": 1, "vllm": {"quantization": "fp8"}})
    assert "[engine.vllm] quantization" in str(adapter_drawback("vllm", quantized, architectures=["LlamaForCausalLM"]))
    assert "takes adapters of AnyForCausalLM" in str(adapter_drawback("vllm", on_gpu, architectures=["AnyForCausalLM"]))


@pytest.mark.vllm
def test_what_is_said_of_vllm_is_so() -> None:
    pytest.importorskip("vllm")
    from gvm_ray.engines.vllm import ModelRegistry
    from gvm_ray.engines.vllm_weights import MaxLoRARanks

    assert max(get_args(MaxLoRARanks)) == MAX_VLLM_RANK
    for architecture in sorted(VLLM_ARCHITECTURES):
        known: Any = ModelRegistry.models[architecture]
        assert known.load_model_cls().supports_lora, architecture
