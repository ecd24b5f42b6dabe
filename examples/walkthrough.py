# %% [markdown]
"""A run, cell by cell: what GVM allocates and why, and what a changed setting does.

The cells open as a notebook in VS Code or by Jupytext; as a script it runs through and leaves `walkthrough.png`:

    python examples/walkthrough.py
"""

# %% Settings: the quickstart's task and model, and few steps.
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from gvm_ray import Trainer, load_config
from gvm_ray.config import RunConfig
from gvm_ray.reporting import RunFolder, read_rows

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.toml"
NUM_STEPS = 4


def configured(name: str, *changes: str) -> RunConfig:
    """The quickstart with few steps, and without the evaluations on the way."""
    few = [f"name={name}", f"num_steps={NUM_STEPS}", f"evaluation.every_steps={NUM_STEPS}"]
    return load_config(CONFIG, overrides=[*few, *changes])


# %% Train step by step. Between two steps nothing happens: look at the metrics, or end the run.
def steps_of(config: RunConfig) -> RunFolder:
    """Make the steps of a run, with a line for each, and give its folder."""
    with Trainer(config, overwrite=True) as trainer:
        for result in trainer:
            metrics = result.metrics
            print(
                f"step {result.step}: reward {metrics['reward/mean']:.3f}, "
                f"{metrics['groups/with_signal']:.0f} prompts with a gradient, "
                f"{metrics['allocation/min']:.0f} to {metrics['allocation/max']:.0f} samples a prompt"
            )
    return RunFolder(Path(config.runs_dir) / config.name)


# %% Allocations and accept rates: one number for each prompt of each step, in histograms.jsonl.
def allocations(folder: RunFolder) -> tuple[np.ndarray, np.ndarray]:
    """Accept rates and samples, [steps * prompts] each."""
    rows = read_rows(folder.histograms)
    rates, counts = (np.concatenate([row[name] for row in rows]) for name in ("accept_rate", "samples_per_prompt"))
    return rates, counts


def samples_by_accept_rate(folder: RunFolder, *, num_bins: int = 4) -> list[float]:
    """Mean samples of the prompts in each bin of the accept rate, from hard to easy; NaN where there is none."""
    rates, counts = allocations(folder)
    bins = np.minimum((rates * num_bins).astype(int), num_bins - 1)
    return [float(counts[bins == index].mean()) if (bins == index).any() else float("nan") for index in range(num_bins)]


# %% A larger alpha holds back more from the prompts that are hardly ever solved (Proposition 1 of arXiv 2505.02391).
RUNS = {"alpha = 0.001": (), "alpha = 0.3": ("allocator.alpha=0.3",)}


def plot(folders: dict[str, RunFolder], path: Path) -> None:
    """Samples against accept rate, one colour for each run."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for label, folder in folders.items():
        axes.scatter(*allocations(folder), s=8, alpha=0.5, label=label)
    axes.set(xlabel="estimated accept rate", ylabel="samples of the prompt in the step")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


# %% Both runs, what they gave to hard and easy prompts, and the plot.
def main() -> None:
    """Train once for each alpha, and compare."""
    made = {
        label: steps_of(configured(f"walkthrough-{index}", *changes))
        for index, (label, changes) in enumerate(RUNS.items())
    }
    for label, folder in made.items():
        means = " ".join(f"{mean:.1f}" for mean in samples_by_accept_rate(folder))
        print(f"{label}: mean samples from the hardest prompts to the easiest: {means}")
    plot(made, Path("walkthrough.png"))


if __name__ == "__main__":
    main()
