"""Settings of a simulation: sizes, latencies, and the upper bound that follows from them."""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from gvm_ray.config import RunConfig, parse_config
from gvm_ray.exceptions import ConfigError
from gvm_ray.lab.speed.simulated_engine import LatencyModel, SimulatedEngine
from gvm_ray.lab.speed.simulated_system import REWARD_PATH, LearnerLatency, SimulatedParts


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """One arm of a sweep."""

    num_generators: int = 64
    max_staleness: int = 2
    allocator: Literal["gvm", "uniform"] = "gvm"
    num_steps: int = 10  # measured steps
    warm_up_steps: int | None = None  # earlier steps; None = 2 (max_staleness + 1), as the first come in one burst
    prompts_per_step: int = 1024
    samples_per_prompt: int = 8
    num_prompts: int = 8192
    max_num_seqs: int = 128  # number of slots of a generator
    max_tokens: int = 3072
    num_reward_actors: int = 2
    samples_per_s: float | None = 300.0  # in real time, with all slots full; None keeps the model's speed
    model: LatencyModel = field(default_factory=LatencyModel)
    slow_share: float = 0.0  # share of slow generators
    slow_factor: float = 2.0
    update_share: float = 0.5  # time to train on a step's samples / time to sample them with all slots full
    weights_mb: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_warm_up < 1 or self.num_steps < 1:
            raise ConfigError(
                f"warm_up_steps={self.warm_up_steps} and num_steps={self.num_steps}; write 1 or more of each: the "
                "measurement begins at the end of one step and ends at the end of another"
            )

    @property
    def num_warm_up(self) -> int:
        """The number of steps before the measured ones."""
        return 2 * (self.max_staleness + 1) if self.warm_up_steps is None else self.warm_up_steps

    @property
    def num_slow(self) -> int:
        """The number of generators that take `slow_factor` times as long."""
        return round(self.slow_share * self.num_generators)

    @property
    def mean_tokens(self) -> float:
        """The mean tokens of a response, after cutting at max_tokens."""
        lengths = [self.model.num_tokens(seed) for seed in range(20_000)]
        return float(np.minimum(lengths, self.max_tokens).mean())

    @property
    def modelled_samples_per_s(self) -> float:
        """The upper bound on samples/s in modelled time: all slots of all generators always full."""
        model, slots = self.model, self.max_num_seqs
        equivalents = self.num_generators - self.num_slow + self.num_slow / self.slow_factor
        return equivalents * slots / (model.decode_s(slots) * self.mean_tokens)

    @property
    def timed_model(self) -> LatencyModel:
        """The latency model at the speed that gives `samples_per_s`."""
        if self.samples_per_s is None:
            return self.model
        return replace(self.model, speed=self.samples_per_s / self.modelled_samples_per_s)

    @property
    def ideal_samples_per_s(self) -> float:
        """The upper bound on samples/s in real time."""
        return self.modelled_samples_per_s * self.timed_model.speed

    def run_config(self) -> RunConfig:
        """Build the run configuration of the real parts.

        Raises:
            ConfigError: a setting is out of range.
        """
        num_steps = self.num_warm_up + self.num_steps + self.max_staleness  # sampling must not run dry at the end
        gvm = {"type": "gvm", "pilot_samples": max(1, self.samples_per_prompt // 2)}
        return parse_config(
            {
                "name": "simulation",
                "seed": self.seed,
                "num_steps": num_steps,
                "prompts_per_step": self.prompts_per_step,
                "samples_per_prompt": self.samples_per_prompt,
                "max_staleness": self.max_staleness,
                "model": {"type": "scratch"},
                "reporting": {"ray_metrics": False},
                "prompts": {"train": {"type": "arithmetic"}},
                "sampling": {"max_tokens": self.max_tokens},
                "engine": {
                    "type": "custom",
                    "path": f"{SimulatedEngine.__module__}:{SimulatedEngine.__name__}",
                    "num_generators": self.num_generators,
                    "cpus_per_generator": 0.01,
                    "max_num_seqs": self.max_num_seqs,
                },
                "rewards": {
                    "terms": [{"type": "function", "path": REWARD_PATH}],
                    "num_actors": self.num_reward_actors,
                    "cpus_per_actor": 0.01,
                    "memory_mb": 1024,
                },
                "allocator": gvm if self.allocator == "gvm" else {"type": self.allocator},
                "checkpoint": {"every_steps": num_steps + 1},
                "evaluation": {"every_steps": num_steps + 1},
                "deadlines": {"start_s": 1800},
                "cluster": {"dashboard": False, "object_store_mb": 3000},
            }
        )

    def parts(self) -> SimulatedParts:
        """Build the settings of the simulated parts."""
        tokens_per_s = self.ideal_samples_per_s * self.mean_tokens / self.update_share
        return SimulatedParts(
            model=self.timed_model,
            learners=LearnerLatency(constant_s=1.0 / self.timed_model.speed, tokens_per_s=tokens_per_s),
            num_prompts=self.num_prompts,
            weights_bytes=self.weights_mb * 2**20,
            num_slow=self.num_slow,
            slow_factor=self.slow_factor,
        )
