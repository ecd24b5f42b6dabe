"""An allocator whose third step fails."""

from gvm_ray.allocators import Rounds, Step
from gvm_ray.allocators.uniform import UniformAllocator


class NoSuchStep(UniformAllocator):
    """Uniform until then."""

    def rounds(self, step: Step) -> Rounds:
        if step.number == 2:
            raise RuntimeError("the third step is one too many")
        return super().rounds(step)
