"""A run under the control of a program: look at every step, and end when it is good enough.

python examples/step_by_step.py
"""

from pathlib import Path

from gvm_ray import Trainer, load_config

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.toml"
GOOD_ENOUGH = 0.7

if __name__ == "__main__":
    config = load_config(CONFIG, overrides=["name=step-by-step", "checkpoint.every_steps=1"])
    with Trainer(config, overwrite=True) as trainer:
        for result in trainer:
            accuracy = result.metrics.get("eval/accuracy")
            if accuracy is not None and accuracy >= GOOD_ENOUGH:
                print(f"{accuracy:.3f} after {result.step + 1} steps")
                break
