"""Hand-made pools of samples for the tests of estimators: two responses a prompt, or Gaussian gradients."""

from typing import Any

import numpy as np

from gvm_ray.config import EstimatorConfig, RunConfig, parse_config
from gvm_ray.lab.estimator.arms import PlannedArm
from gvm_ray.lab.estimator.pool import SamplePool
from tests.builders import prompt


def gaussian_pool(
    accept_rates: list[float], *, num_warm_up: int = 0, num_samples: int = 40, dimensions: int = 16, seed: int = 0
) -> SamplePool:
    """Every sample another response; its gradient is its prompt's, plus noise of a size that differs from prompt to
    prompt. The share of accepted samples is the accept rate, as far as integers allow."""
    rng = np.random.default_rng(seed)
    rates = [*accept_rates, *rng.uniform(size=num_warm_up)]
    rows = np.arange(len(rates) * num_samples).reshape(len(rates), num_samples)
    rewards = np.concatenate([np.arange(num_samples) < round(rate * num_samples) for rate in rates]).astype(float)
    noise = rng.normal(size=(len(rates), num_samples, dimensions)) * rng.uniform(0.5, 2, size=(len(rates), 1, 1))
    gradients = rng.normal(size=(len(rates), 1, dimensions)) + noise
    gradients = gradients.reshape(-1, dimensions) * np.where(rewards, 1, -0.5)[:, None]
    norms = np.linalg.norm(gradients, axis=1)
    return SamplePool(
        prompts=tuple(prompt(f"p{index}", token_ids=[index]) for index in range(len(rates))),
        num_targets=len(accept_rates),
        samples=tuple(rows),
        rewards=rewards,
        num_tokens=np.full(len(rewards), 5, dtype=np.int32),
        truncated=np.zeros(len(rewards), dtype=np.bool_),
        gradients=gradients[: len(accept_rates) * num_samples].astype(np.float32),
        pilot_norms={"embed_tokens": norms, "lm_head": norms},
        training_norms=norms,
        states=dict.fromkeys(("mean", "embedding"), np.array(rates, dtype=np.float32)[:, None]),
    )


def run_config(*, prompts: int, samples: int = 8, **tables: Any) -> RunConfig:
    """A run of so many prompts a step; `tables` replace or add settings."""
    values = {
        "name": "estimator",
        "prompts_per_step": prompts,
        "samples_per_prompt": samples,
        "model": {"type": "scratch"},
        "prompts": {"train": {"type": "arithmetic"}},
        "rewards": {"terms": [{"type": "exact"}]},
        "allocator": {"type": "uniform"},
    }
    return parse_config({**values, **tables})


def planned_arm(allocator: dict[str, Any], *, prompts: int, **tables: Any) -> PlannedArm:
    """An arm named as its allocator's type."""
    config = run_config(prompts=prompts, allocator=allocator, **tables)
    return PlannedArm(algorithm=config.algorithm.type, name=allocator["type"], config=config)


def settings(*, prompts: int, **changes: Any) -> EstimatorConfig:
    """A measurement of a uniform arm."""
    values = {"name": "e", "config": "run.toml", "num_prompts": prompts, "arms": [{"name": "uniform"}]}
    return EstimatorConfig.model_validate({**values, **changes})
