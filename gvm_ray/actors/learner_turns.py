"""Whose turn it is on GPUs that learner ranks and generators share, by what the ranks are asked to do."""

import contextlib
from collections.abc import Sequence

from gvm_ray.actors.generator_fleet import GeneratorFleet

# What fills a GPU for a while. The other commands copy tensor by tensor, and may come while samples are under way.
_FILLS_GPU = frozenset(
    ("reset", "load", "update", "gradient_norms", "prompt_states", "supervised_updates", "finish_warm_start")
)


class LearnerTurns:
    """The turns of ranks that share GPUs with these generators; without generators, none is waited for."""

    def __init__(self, generators: GeneratorFleet | None) -> None:
        self._generators = generators

    async def nodes(self) -> Sequence[str]:
        """Ray's id of the node of each GPU that is shared, once the generators have started there."""
        return () if self._generators is None else await self._generators.nodes()

    def turn(self, command: str) -> contextlib.AbstractAsyncContextManager[None]:
        """The GPUs as the command needs them: the generators away, or there to be sent weights, or either."""
        if command in _FILLS_GPU:
            return self.alone()
        if self._generators is not None and command == "send":
            return self._generators.at_work()
        return contextlib.nullcontext()

    def alone(self) -> contextlib.AbstractAsyncContextManager[None]:
        """The generators away, where they take turns with the ranks."""
        return contextlib.nullcontext() if self._generators is None else self._generators.away()
