"""An allocator whose third step fails."""

from collections.abc import Sequence
from typing import Any

from gvm_ray.allocators import UniformAllocator
from gvm_ray.protocols import Rounds
from gvm_ray.types import Prompt


class NoSuchStep(UniformAllocator):
    """Uniform until then."""

    def rounds(self, prompts: Sequence[Prompt], *, step: int, **rest: Any) -> Rounds:
        if step == 2:
            raise RuntimeError("the third step is one too many")
        return super().rounds(prompts, step=step, **rest)
