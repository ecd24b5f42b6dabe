"""Weights from an FSDP2 policy into a vLLM engine by vLLM's own NCCL transfer, with gloo in the place of NCCL."""

import asyncio
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build_tiny_model, make_prompt, reference_logprobs

from gvm_ray.config.engine import EngineConfig
from gvm_ray.config.run import DeadlineConfig
from gvm_ray.engines import create_engine
from gvm_ray.engines.server import EngineServer
from gvm_ray.engines.weight_receiver import WeightReceiver
from gvm_ray.exceptions import SystemFailure
from gvm_ray.learner.learner import Learner
from gvm_ray.learner.policy import local_shards
from gvm_ray.learner.transfer import WeightSender
from gvm_ray.types import ModelSpec, SamplingParameters, TransferMember, TransferPhase, TransferWorld
from tests import gloo_transfer
from tests.builders import sample_request
from tests.learner_cases import SurrogateLoss, learner_config

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

BUCKET_BYTES = 2**15  # a fraction of the tiny model, and more than its largest tensor


class LocalGenerator:
    """A generator actor's part in a transfer, with its event loop in a thread of this process."""

    def __init__(self, model_path: str) -> None:
        config = EngineConfig(type="vllm", kv_cache_gib=0.05)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.server = EngineServer(
            lambda: create_engine("vllm", ModelSpec(path=model_path, max_model_len=64, transfer="nccl"), config=config),
            in_flight="keep",
        )
        self.receiver = WeightReceiver(self.server, name="generator-0")

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=120)

    def ask(
        self, messages: Sequence[tuple[TransferMember, TransferPhase]], timeout_s: float
    ) -> Mapping[str, Exception | None]:
        ((member, phase),) = messages
        try:
            self.run(self.receiver.take(phase))
        except Exception as error:
            return {member.name: error}
        return {}

    async def sample(self, *, num_prompts: int = 3) -> list[Any]:
        requests = [sample_request(make_prompt(f"{i}+{i}="), num_samples=2) for i in range(num_prompts)]
        sampling = SamplingParameters(temperature=0.8, max_tokens=8)
        return [answer async for answer in self.server.sample(requests, sampling)]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("model"), tied=request.param)


@pytest.fixture(scope="module")
def generator(model_path: str) -> Iterator[LocalGenerator]:
    gloo_transfer.install()
    generator = LocalGenerator(model_path)
    yield generator
    generator.loop.call_soon_threadsafe(generator.loop.stop)


@pytest.fixture(scope="module")
def learner(model_path: str) -> Learner:
    config = learner_config()
    return Learner(config, base_path=model_path, token_loss=SurrogateLoss(), device=torch.device("cpu"))


@pytest.fixture(scope="module")
def sender(learner: Learner, generator: LocalGenerator) -> WeightSender:
    def endpoint() -> tuple[str, int]:
        with socket.socket() as probe:
            probe.bind(("", 0))
            return "127.0.0.1", probe.getsockname()[1]

    return WeightSender(
        lambda: learner.policy,
        transfer="nccl",
        dtype=torch.float32,
        device=torch.device("cpu"),
        rank=0,
        bucket_bytes=BUCKET_BYTES,
        deadlines=DeadlineConfig(),
        ask=generator.ask,
        endpoint=endpoint,
    )


def world(generation: int) -> TransferWorld:
    return TransferWorld(
        generation=generation, members=(TransferMember(name="generator-0", actor=None, num_workers=1),)
    )


def change(learner: Learner, *, seed: int) -> dict[str, torch.Tensor]:
    """Every weight by a lot; the new ones."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for shard in local_shards(learner.policy.parameters()):
            shard *= 0.5 + torch.rand(shard.shape, generator=random)
            shard += 0.05 * torch.randn(shard.shape, generator=random)
    return {name: tensor.clone() for name, tensor in learner.named_full_tensors()}


def check_samples(generator: LocalGenerator, model_path: str, weights: dict[str, torch.Tensor], version: int) -> None:
    for request, completions in generator.run(generator.sample()):
        for completion in completions:
            assert set(completion.policy_versions.tolist()) == {version}
            expected = reference_logprobs(
                model_path, weights, prompt=request.prompt, completion=completion, temperature=0.8
            )
            assert np.abs(completion.logprobs - expected).mean() < 1e-4


def test_what_is_sent_is_what_the_engine_samples_from(
    sender: WeightSender, learner: Learner, generator: LocalGenerator, model_path: str
) -> None:
    for version in (1, 2):  # by the same connection
        weights = change(learner, seed=version)
        delivery = sender.send(world(1), policy_version=version)
        assert (delivery.policy_version, dict(delivery.failures)) == (version, {})
        assert generator.run(generator.server.policy_version()) == version
        check_samples(generator, model_path, weights, version)
    ours, theirs = gloo_transfer.GlooCommunicator.made[-2:]
    assert {ours.rank, theirs.rank} == {0, 1}
    assert ours.sizes == theirs.sizes
    assert len(ours.sizes) >= 8  # several buckets a version


def test_another_generation_connects_anew(
    sender: WeightSender, learner: Learner, generator: LocalGenerator, model_path: str
) -> None:
    before = len(gloo_transfer.GlooCommunicator.made)
    weights = change(learner, seed=3)
    assert not sender.send(world(2), policy_version=3).failures
    assert len(gloo_transfer.GlooCommunicator.made) == before + 2
    check_samples(generator, model_path, weights, 3)


def test_wrong_bits_are_noticed_before_anything_is_sampled_from_them(
    sender: WeightSender, learner: Learner, generator: LocalGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test of an engine: it is spoiled."""
    monkeypatch.setenv(gloo_transfer.TAMPER, "1")
    delivery = sender.send(world(2), policy_version=4)
    assert delivery.halfway
    with pytest.raises(SystemFailure, match=r"generator-0 received other weights than were sent as version 4: .*"):
        raise delivery.failures["generator-0"]
    with pytest.raises(SystemFailure, match="received other weights"):
        generator.run(generator.sample())
