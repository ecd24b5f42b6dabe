"""A custom allocator, named by its import path."""

from typing import Any, Literal

from pydantic import Field

from gvm_ray.allocators.base import Allocator, AllocatorConfig, Needs, OptionalPromptStates, RunShape
from gvm_ray.exceptions import ConfigError
from gvm_ray.settings import Count, import_object

_SHAPE = """
    from gvm_ray.allocators import Allocator

    class MyAllocator(Allocator):
        def rounds(self, step):  # step.ids, .budget, .memory, .samples, .states, .rng
            outcomes = yield {prompt_id: step.budget // len(step.ids) for prompt_id in step.ids}"""


class CustomAllocatorConfig(AllocatorConfig):
    """A custom allocator: any importable `module:Class` derived from `gvm_ray.allocators.Allocator`."""

    type: Literal["custom"] = "custom"
    path: str = Field(pattern=r"^[\w.]+:[\w.]+$")  # e.g. "my_package.allocators:MyAllocator"
    parameters: dict[str, Any] = Field(default_factory=dict)  # keyword arguments of the class
    candidates_per_step: Count | None = None  # number of prompts in a step's `step.prompts`; none = prompts_per_step
    states: OptionalPromptStates = None
    training_gradient_norms: bool = False  # measure gradient norms of samples while training, for the class to observe

    @property
    def knows_accept_rates(self) -> bool:
        """True: its reports may give them, and are checked when they arrive."""
        return True

    def needs(self, run: RunShape) -> Needs:
        """The candidates, states and norms that the settings ask for."""
        return Needs(
            candidates=self.candidates_per_step or run.prompts_per_step,
            states=self.states,
            training_norms=self.training_gradient_norms,
        )

    def smallest_group(self, run: RunShape) -> None:
        """None: the class decides. The metric `groups/alone` counts groups of one."""
        return

    def build(self, *, accept_threshold: float, seed: int) -> Allocator:
        """Create an instance of the class.

        Raises:
            ConfigError: the class can't be imported or called, or is not an allocator.
        """
        try:
            made = import_object(self.path)(**self.parameters)
        except ImportError as error:
            raise ConfigError(f"allocator.path: {error}") from error
        except TypeError as error:
            raise ConfigError(
                f"allocator.path: {self.path!r} can't be called with {sorted(self.parameters)}: {error}; an allocator "
                f"has this shape:{_SHAPE}"
            ) from error
        if not isinstance(made, Allocator):
            raise ConfigError(f"allocator.path: {self.path!r} doesn't make an Allocator; write{_SHAPE}")
        return made
