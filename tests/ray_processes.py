"""The processes of Ray's actors, found by the names that Ray gives them, and the actor that a learner group goes by."""

import asyncio
import os
from typing import Any

import psutil
import ray
from ray.util import list_named_actors


def command_of(process: psutil.Process) -> str:
    """Its command line; empty where it ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def processes_named(name: str, *, of: int | None = None) -> list[psutil.Process]:
    """The descendants of a process, or else of this one, whose command begins so, such as "ray::TrainController"."""
    family = psutil.Process(os.getpid() if of is None else of).children(recursive=True)
    return [process for process in family if command_of(process).startswith(name)]


async def learner_mailbox() -> Any:
    """The handle of the only learner group's mailbox; one that was killed keeps its name for a moment."""
    while True:
        actors = [
            each for each in list_named_actors(all_namespaces=True) if each["name"].startswith("learner-mailbox-")
        ]
        if len(actors) == 1:
            return ray.get_actor(actors[0]["name"], namespace=actors[0]["namespace"])
        await asyncio.sleep(0.1)


async def rank_process(rank: int) -> int:
    """The process id of a rank of the only learner group."""
    ranks = await (await learner_mailbox()).ranks.remote()
    return ranks[rank].pid
