"""The nodes of the cluster that this process is connected to: what each has, and its answer to a question."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """One living node."""

    cpus: float  # Ray's logical ones, as for the rest
    gpus: float
    gpu_type: str  # as Ray names it; "" if it has none
    memory_bytes: float
    object_store_bytes: float
    answer: Any  # to the question; the exception if there was none


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
