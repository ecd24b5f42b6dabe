"""Whose turn it is on GPUs that learner ranks and generators share, by what the ranks are asked to do."""

import contextlib
from collections.abc import Sequence

from gvm_ray.actors.commands import Command
from gvm_ray.actors.generator_fleet import GeneratorFleet


class LearnerTurns:
    """The turns of ranks that share GPUs with these generators; without generators, none is waited for."""

    def __init__(self, generators: GeneratorFleet | None) -> None:
        self._generators = generators

    async def nodes(self) -> Sequence[str]:
        """Ray's id of the node of each GPU that is shared, once the generators have started there."""
        return () if self._generators is None else await self._generators.nodes()

    def turn(self, command: Command) -> contextlib.AbstractAsyncContextManager[None]:
        """The GPUs as the command needs them: the generators away, or there to be sent weights, or either."""
        match command.generators:
            case "away":
                return self.alone()
            case "at_work" if self._generators is not None:
                return self._generators.at_work()
            case _:
                return contextlib.nullcontext()

    def alone(self) -> contextlib.AbstractAsyncContextManager[None]:
        """The generators away, where they take turns with the ranks."""
        return contextlib.nullcontext() if self._generators is None else self._generators.away()
