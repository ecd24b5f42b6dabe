"""How weights travel: the automatic choice, and what contradicts the run."""

from typing import Any

import pytest

from gvm_ray.cli.train import describe
from gvm_ray.config import RunConfig, parse_config
from gvm_ray.config.cluster import TransferSituation, choose_transfer
from gvm_ray.exceptions import ConfigError

ON_GPUS = {
    "learner": {"gpus_per_worker": 1},
    "engine": {"type": "vllm", "gpus_per_generator": 1},
    "cluster": {"placement": "disaggregated"},
}
COLOCATED = ON_GPUS | {"cluster": {"placement": "colocated"}}
ON_PARTS = ON_GPUS | {"engine": {"type": "vllm", "gpus_per_generator": 0.5}}
OTHER_ENGINE = ON_GPUS | {"engine": {"type": "transformers", "gpus_per_generator": 1}}


def run(tables: dict[str, Any], transfer: str = "auto") -> RunConfig:
    values = {
        "name": "transfer",
        "model": {"type": "scratch"},
        "prompts": {"train": {"type": "arithmetic"}},
        "allocator": {"type": "uniform"},
        "weight_sync": {"transfer": transfer},
    }
    return parse_config(values | tables)


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({}, "object_store"),
        (ON_GPUS, "nccl"),
        (COLOCATED, "ipc"),
        (ON_PARTS, "object_store"),
        (OTHER_ENGINE, "object_store"),
        (ON_GPUS | {"learner": {"gpus_per_worker": 0}}, "object_store"),
    ],
)
def test_the_choice_follows_the_gpus_and_is_printed(tables: dict[str, Any], expected: str) -> None:
    config = run(tables)
    assert config.weight_transfer() == expected
    assert f"new weights      by {expected}" in describe(config)
    assert run(tables, "object_store").weight_transfer() == "object_store"
    if expected != "object_store":
        assert run(tables, expected).weight_transfer() == expected


def test_an_engine_that_turns_out_otherwise_changes_the_choice() -> None:
    config = run(ON_GPUS | {"engine": {"type": "auto", "gpus_per_generator": 1}})
    assert (config.weight_transfer(), config.weight_transfer("transformers")) == ("nccl", "object_store")
    asked = run(ON_GPUS | {"engine": {"type": "auto", "gpus_per_generator": 1}}, "nccl")
    with pytest.raises(ValueError, match=r"needs vLLM in the generators, but engine.type='transformers'; write"):
        asked.weight_transfer("transformers")


@pytest.mark.parametrize(
    ("tables", "transfer", "message"),
    [
        ({}, "nccl", "sends from GPU to GPU, but learner.gpus_per_worker=0 and engine.gpus_per_generator=0; write"),
        ({}, "ipc", "sends from GPU to GPU"),
        (COLOCATED, "nccl", "cluster.placement='colocated'; write weight_sync.transfer='ipc'"),
        (ON_GPUS, "ipc", "cluster.placement='disaggregated'; write cluster.placement='colocated'"),
        (ON_PARTS, "nccl", "needs a whole GPU for every generator, but engine.gpus_per_generator=0.5; write"),
        (OTHER_ENGINE, "nccl", "engine.type='transformers'; write engine.type='vllm'"),
    ],
)
def test_contradictions_are_refused(tables: dict[str, Any], transfer: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"weight_sync.transfer='{transfer}' ") as refused:
        run(tables, transfer)
    assert message in str(refused.value)
    assert "or leave it 'auto'" in str(refused.value)


def test_merged_adapters_travel_as_other_weights_and_adapters_through_the_object_store() -> None:
    merged, apart = ({"gpus_per_worker": 1, "lora": {"sync": sync}} for sync in ("merge", "adapter"))
    assert run(ON_GPUS | {"learner": merged}, "nccl").weight_transfer() == "nccl"
    assert "new weights      by nccl" in describe(run(ON_GPUS | {"learner": merged}))
    assert "new weights      adapters by object_store\n" in describe(run(ON_GPUS | {"learner": apart})) + "\n"
    auto = run(ON_GPUS | {"learner": {"gpus_per_worker": 1, "lora": {}}})
    assert "adapters by object_store if the engine takes them, else by nccl" in describe(auto)
    with pytest.raises(ConfigError, match=r"weight_sync\.transfer='nccl'; leave out weight_sync"):
        run(ON_GPUS | {"learner": apart}, "nccl")


@pytest.mark.parametrize("engine", ["auto", "vllm", "transformers", "custom"])
def test_auto_always_finds_one(engine: str) -> None:
    for ranks in (0, 1):
        for generators in (0, 0.5, 1, 2):
            for colocated in (False, True):
                situation = TransferSituation(
                    engine=engine, learner_gpus=ranks, generator_gpus=generators, colocated=colocated
                )
                assert choose_transfer("auto", situation) in ("object_store", "nccl", "ipc")
