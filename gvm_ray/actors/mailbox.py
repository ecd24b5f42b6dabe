"""Mailbox for commands to the learner ranks. Ray Train starts functions, not actors, so the ranks fetch them here."""

import asyncio
from dataclasses import dataclass
from typing import Any

import ray

from gvm_ray.actors.commands import Command


@dataclass(frozen=True, kw_only=True, eq=False)
class RankIdentity:
    """Actor, node and process of a rank."""

    actor: Any  # handle of Ray Train's worker
    node: str  # address
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on node {self.node}"


@ray.remote(num_cpus=0)
class Mailbox:
    """Numbers the driver's commands from 0, gives each to every rank, and returns rank 0's answer."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._commands: dict[int, Command] = {}  # not yet taken by every rank
        self._num_takes: dict[int, int] = {}
        self._num_posted = 0
        self._posted = asyncio.Condition()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._failure: Exception | None = None
        self._ranks: dict[int, RankIdentity] = {}

    async def join(self, rank: int, identity: RankIdentity) -> None:
        """Register a rank. Each rank calls this first, before anything that could hang."""
        self._ranks[rank] = identity

    async def ranks(self) -> dict[int, RankIdentity]:
        """The ranks that have joined."""
        return self._ranks

    async def post(self, command: Command) -> Any:
        """Post a command; returns rank 0's answer.

        Raises:
            Exception: a rank's error, from this command or an earlier one.
        """
        if self._failure is not None:
            raise self._failure
        async with self._posted:
            number = self._num_posted
            self._num_posted += 1
            self._commands[number] = command
            self._answers[number] = asyncio.get_running_loop().create_future()
            self._posted.notify_all()
        return await self._answers[number]

    async def take(self, number: int) -> Command:
        """Command `number`, once it is posted. Each rank takes each command once."""
        async with self._posted:
            await self._posted.wait_for(lambda: number in self._commands)
        command = self._commands[number]
        self._num_takes[number] = self._num_takes.get(number, 0) + 1
        if self._num_takes[number] == self._num_ranks:  # free its payload, which may reference a step's samples
            del self._commands[number], self._num_takes[number]
        return command

    async def answer(self, number: int, value: Any) -> None:
        """Record rank 0's answer to command `number`."""
        self._answers.pop(number).set_result(value)

    async def fail(self, error: Exception) -> None:
        """Report a rank's error: every pending and later command fails with the first one reported."""
        self._failure = self._failure or error
        for future in self._answers.values():
            if not future.done():
                future.set_exception(self._failure)
        self._answers.clear()
