"""Small run folders, written by the reporter as a run writes them."""

from pathlib import Path
from typing import Any

import numpy as np

from gvm_ray.config import RunConfig, parse_config
from gvm_ray.phase_clock import PHASES
from gvm_ray.reporting import REQUIRED_KEYS, Reporter, RunFolder, write_summary
from gvm_ray.types import SampleText

NUM_STEPS = 6


def report_config(name: str, **changes: Any) -> RunConfig:
    return parse_config(
        {
            "name": name,
            "num_steps": NUM_STEPS,
            "model": {"type": "scratch"},
            "prompts": {"train": {"type": "arithmetic"}},
            "reporting": {"tensorboard": False, "progress": False},
            **changes,
        }
    )


def sample_text(**changes: Any) -> SampleText:
    values = {
        "rank": "best",
        "prompt_id": "p7",
        "prompt": "1+1=",
        "completion": "2",
        "answer": "2",
        "reward": 0.75,
        "num_tokens": 3,
        "truncated": False,
        "policy_version": 4,
    }
    return SampleText(**{**values, **changes})


def write_run(path: Path, *, num_steps: int = NUM_STEPS, texts: tuple[SampleText, ...] = (), **changes: Any) -> Path:
    """A run of `num_steps` steps, finished if those are all; every other step was evaluated, 0.25 before the first.

    Accuracy after step s is 0.3 + s / 10. Of two prompts p = 0.25 got 6 samples and p = 0.75 got 2; as many as expected
    of the first were accepted, and all of the second.
    """
    config, folder = report_config(path.name, **changes), RunFolder(path)
    folder.create()
    folder.save_config(config)
    folder.base_evaluation.write_text('{"eval/accuracy": 0.25}', encoding="utf-8")
    rates = np.array([0.25, 0.75])
    arrays = {
        "accept_rate": rates,
        "samples_per_prompt": np.array([6.0, 2.0]),
        "predicted_accept_rate": rates,
        "observed_accept_rate": np.array([0.25, 1.0]),
        "reward_deciles": np.linspace(0, 1, 11),
        "length_deciles": np.arange(11.0),
    }
    with Reporter(config, path) as reporter:
        for step in range(num_steps):
            metrics = {
                **dict.fromkeys(sorted(REQUIRED_KEYS), 1.0),
                **{f"time/{phase}_s": 0.5 for phase in PHASES},
                "cost/generated_tokens": 1500.0 * (step + 1),
                "entropy": 1.0 / (step + 1),
                "num_skipped_updates": 2.0,
                "faults/total": 3.0,
            }
            if step % 2:
                metrics["eval/accuracy"] = 0.3 + step / 10
            reporter.log_step(step, metrics, histograms=arrays, texts=texts)
    if num_steps == NUM_STEPS:
        write_summary(
            path,
            base_accuracy=0.25,
            final_accuracy=0.8,
            num_steps=num_steps,
            time_s=1.0,
            steps_s=1.0,
            phases={},
            costs={},
        )
    return path
