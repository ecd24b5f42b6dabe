"""Which generators take part in the transfers of a fleet's weights, and when they must be connected anew."""

from collections.abc import Sequence

from gvm_ray.actors.generator_client import GeneratorClient
from gvm_ray.types import TransferWorld


class TransferWorlds:
    """One world after the other; each has a generation of its own."""

    def __init__(self) -> None:
        self._world = TransferWorld(generation=0, members=())
        self._lives: tuple[tuple[str, int], ...] | None = None  # of its members; None = not to be used again

    def of(self, generators: Sequence[GeneratorClient]) -> TransferWorld:
        """The present world where it has just these members, each alive since; else the next."""
        lives = tuple((generator.name, generator.life) for generator in generators)
        if lives != self._lives:
            members = tuple(generator.member for generator in generators)
            self._world = TransferWorld(generation=self._world.generation + 1, members=members)
            self._lives = lives
        return self._world

    def end(self) -> None:
        """After a failure, what is left of the connections is not used again."""
        self._lives = None
