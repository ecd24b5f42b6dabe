"""The settings of a measurement of gradient estimators: one policy, one pool of samples, algorithms x arms."""

from typing import Annotated

from pydantic import Field, model_validator

from gvm_ray.config.arena import ArmConfig, Name, VariantConfig, check_arms_algorithms, check_distinct
from gvm_ray.settings import Count, NonNegativeCount, Settings


class EstimatorConfig(Settings):
    """What is drawn from the policy, and how often each arm's step is repeated on it."""

    name: Name
    runs_dir: str = "runs"
    config: str  # path of a run's TOML file, from this one's folder; its starting policy is measured
    seed: NonNegativeCount = 0
    num_prompts: Count = 64  # of the training set: the gradient is that of their mean
    num_samples: Count = 256  # of each prompt: they stand for the policy
    prompts_per_step: Count | None = None  # that an arm which doesn't select gets; none = all, so only n_i differs
    samples_per_prompt: Count | None = None  # of the step's budget, for each of its prompts; none = as in `config`
    num_repeats: Annotated[int, Field(ge=2)] = 200
    warm_up_steps: NonNegativeCount = 8  # on other prompts before each measured step, for allocators that learn
    num_warm_up_prompts: Count = 64
    projection_size: Count | None = 2048  # dimensions that gradients are projected on; none = all of the model's
    baseline: str = "uniform"  # the arm that errors are compared with
    algorithms: tuple[VariantConfig, ...] = (VariantConfig(name="as_configured"),)
    arms: tuple[ArmConfig, ...]

    @property
    def step_prompts(self) -> int:
        """Prompts of a step; its budget is so many times samples_per_prompt, for every arm."""
        return self.prompts_per_step or self.num_prompts

    @model_validator(mode="after")
    def _names_fit(self) -> "EstimatorConfig":
        algorithms = [algorithm.name for algorithm in self.algorithms]
        check_distinct("algorithms", algorithms)
        arms = [arm.name for arm in self.arms]
        check_distinct("arms", arms)
        if self.baseline not in arms:
            raise ValueError(f"baseline={self.baseline!r} is no arm; write one of {', '.join(arms)}")
        check_arms_algorithms(self.arms, algorithms, baseline=self.baseline)
        return self

    @model_validator(mode="after")
    def _steps_fit(self) -> "EstimatorConfig":
        if self.step_prompts > self.num_prompts:
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} is above num_prompts={self.num_prompts}; write "
                f"num_prompts={self.prompts_per_step} or more"
            )
        return self
