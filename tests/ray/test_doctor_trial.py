"""The doctor's trial through real actors: weights that arrive, weights that don't, and the nodes of a cluster."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gvm_ray.actors.pools import SamplingPools
from gvm_ray.lab.doctor.cluster import ask_nodes
from gvm_ray.lab.doctor.trial import try_path
from gvm_ray.reporting.summary import package_versions
from gvm_ray.types import WeightsRef

pytestmark = pytest.mark.ray


def states(**options: Any) -> dict[str, tuple[str, str]]:
    return {each.subject: (each.state, each.text) for each in try_path(limit_s=400, engine="transformers", **options)}


def test_the_path_of_a_step_is_right_on_a_cpu(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gvm_ray.lab.doctor.trial.find_gpus", lambda: ())
    found = states()
    assert {subject: state for subject, (state, _) in found.items()} == {
        "step, object_store": "right",
        "step, nccl": "not applicable",
        "step, ipc": "not applicable",
        "sleep and wake": "not applicable",
    }, found
    assert found["step, nccl"][1] == "needs vLLM in the generators, and the engine here is transformers"


def test_old_weights_under_a_new_version_are_found(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gvm_ray.lab.doctor.trial.find_gpus", lambda: ())
    publish: Callable[[SamplingPools, WeightsRef], Any] = SamplingPools.publish
    first: list[WeightsRef] = []

    async def publish_the_first(pools: SamplingPools, weights: WeightsRef) -> None:
        first.append(weights)
        await publish(pools, replace(first[0], policy_version=weights.policy_version))

    monkeypatch.setattr(SamplingPools, "publish", publish_the_first)
    state, text = states()["step, object_store"]
    assert state == "WRONG"
    assert "new weights don't arrive as they are" in text


def test_a_part_that_cant_start_is_a_finding(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gvm_ray.lab.doctor.trial.find_gpus", lambda: ())

    def broken(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("no model here")

    monkeypatch.setattr("gvm_ray.lab.doctor.trial.prepare", broken)
    assert states()["step, object_store"] == ("WRONG", "RuntimeError: no model here")


def test_every_node_answers(ray_cluster: None) -> None:
    (node,) = ask_nodes(package_versions, timeout_s=120)
    assert node.answer == package_versions()
    assert (node.cpus, node.gpus) == (32, 4)
    assert node.object_store_bytes == 2 * 2**30
