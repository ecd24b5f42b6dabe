"""The seam of engines that can leave their GPUs for a while."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Sleeps(Protocol):
    """What an engine offers besides, if it can leave its GPUs to the learners that share them."""

    def sleep(self) -> None:
        """Give back the memory of weights, keys and values; no request is under way.

        The weights stay the engine's. `load_weights` brings those back, and `add` everything, whichever comes first.
        """
        ...
