"""`gvm-ray predictor`: draws the pools, scores the predictions by every set of features, and writes what came out."""

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from gvm_ray.config import PredictionConfig
from gvm_ray.lab.predictor.pool import PredictionPool, draw_pools
from gvm_ray.lab.predictor.scores import FeatureScore, policy_scores
from gvm_ray.lab.responses import Say
from gvm_ray.reporting.plots import add_axes, new_figure, save_figure
from gvm_ray.reporting.run_folder import json_text

_COLOURS = ("#000000", "#7f7f7f", "#d1661b", "#2a6fb0", "#2e8b57", "#8e5bb5", "#c44e75", "#1aa6b7")
_DRAWN = (  # of the many sets of features, in the learning curves
    "token counts",
    "length",
    "embedding mean",
    "last layer, mean",
    "layer at 75%, mean",
    "own history of 1",
    "embedding mean, own history of 1",
    "embedding mean, responses' statistics, own history of 1",
)


def measure(
    settings: PredictionConfig,
    *,
    folder: Path,
    output: Path | None = None,
    overwrite: bool = False,
    say: Say = print,
) -> str:
    """Run a whole measurement, write its results, and return the Markdown text.

    Args:
        settings: the measurement's.
        folder: folder of its TOML file.
        output: folder for the results; None is the run's own folder.
        overwrite: draw the pools again, even if the run's folder has them.
        say: called with lines of progress.

    Raises:
        UserError: a setting, file, model or data row is wrong.
    """
    pools = draw_pools(settings, folder=folder, overwrite=overwrite, say=say)
    return write_scores(settings, pools, output or Path(settings.runs_dir).resolve() / settings.name, say=say)


def write_scores(settings: PredictionConfig, pools: Sequence[PredictionPool], output: Path, *, say: Say = print) -> str:
    """Score all sets of features in the pools, one policy after the other, and write predictor.{md,csv,json,png}."""
    scores: list[FeatureScore] = []
    for number, pool in enumerate(pools):
        scores += policy_scores(settings, pool, pools[:number])
        say(f"{pool.name}: {sum(score.policy == pool.name for score in scores)} predictions compared")
    text = markdown(scores, pools)
    output.mkdir(parents=True, exist_ok=True)
    (output / "predictor.md").write_text(text, encoding="utf-8")
    (output / "predictor.csv").write_text(csv_text(scores), encoding="utf-8")
    (output / "predictor.json").write_text(
        json_text({"settings": settings.model_dump(mode="json")}, indent=2) + "\n", encoding="utf-8"
    )
    plot_curves(scores, output / "predictor.png", samples=settings.num_samples // 2)
    return text


def csv_text(scores: Sequence[FeatureScore]) -> str:
    """Format the scores as CSV; `paid` is empty where all other prompts were learned from."""
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(_cells(scores[0])))
    writer.writeheader()
    writer.writerows(map(_cells, scores))
    return file.getvalue()


def _cells(score: FeatureScore) -> dict[str, Any]:
    own, ceiling = score.scores, score.ceiling
    numbers = {
        "r": own.correlation,
        "r_ceiling": ceiling.correlation,
        "r_corrected": own.true_correlation,
        "r_corrected_deviation": score.deviation,
        "mae": own.absolute_error,
        "mae_ceiling": ceiling.absolute_error,
        "brier": own.brier,
        "brier_ceiling": ceiling.brier,
    }
    return {
        "policy": score.policy,
        "features": score.features,
        "cost": score.cost,
        "paid": "" if score.paid is None else score.paid,
        **{name: f"{value:.4f}" for name, value in numbers.items()},
    }


def markdown(scores: Sequence[FeatureScore], pools: Sequence[PredictionPool]) -> str:
    """Format one table for each policy, below a legend."""
    by_policy = {name: list(group) for name, group in groupby(scores, key=lambda score: score.policy)}
    lines = ["# Predicted accept rates", "", *_legend(pools[0])]
    for pool in pools:
        lines += ["", f"## {pool.name}", "", *_facts(pool, by_policy[pool.name]), "", *_table(by_policy[pool.name])]
    return "\n".join([*lines, ""])


def _legend(pool: PredictionPool) -> list[str]:
    num_prompts, num_samples = pool.rewards.shape
    half = num_samples // 2
    return [
        f"{num_prompts} prompts with {num_samples} samples each, by the predictor that the allocators use. Half of a "
        f"prompt's samples are predicted; the other {half} are its earlier ones, for features that ask for any; then "
        "the other way round.",
        "",
        "- r: Pearson's correlation of predicted and true accept rate: that with the observed rate over its ceiling, "
        "± a bootstrap standard error over prompts. It says nothing of calibration.",
        "- MAE, Brier: mean absolute and mean squared difference from the observed rate. A perfect prediction scores "
        "the ceiling.",
        f"- `all`: learned from {half} samples of each prompt of the other folds; a number: from one sample each of so "
        "many other prompts.",
    ]


def _facts(pool: PredictionPool, scores: Sequence[FeatureScore]) -> list[str]:
    ceiling = scores[0].ceiling
    unsolved = np.mean(np.nansum(pool.accepted, axis=1) == 0)
    return [
        f"Mean accept rate {np.nanmean(pool.accepted):.3f}; {unsolved:.0%} of the prompts never solved. Ceilings: "
        f"observed r {ceiling.correlation:.2f}, MAE {ceiling.absolute_error:.3f}, Brier {ceiling.brier:.3f}."
    ]


def _table(scores: Sequence[FeatureScore]) -> list[str]:
    sizes = sorted({score.paid for score in scores if score.paid is not None})
    by_features: dict[str, dict[int | None, FeatureScore]] = {}
    for score in scores:
        by_features.setdefault(score.features, {})[score.paid] = score
    columns = ["features", "cost", "r, all", *(f"r, {size}" for size in sizes), "MAE, all", "Brier, all"]
    lines = ["| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * (len(columns) - 2)]
    for name, by_paid in by_features.items():
        whole = by_paid[None]
        cells = [
            name,
            whole.cost,
            _correlation(whole, deviation=True),
            *(_correlation(by_paid[size]) if size in by_paid else "-" for size in sizes),
            f"{whole.scores.absolute_error:.3f}",
            f"{whole.scores.brier:.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _correlation(score: FeatureScore, *, deviation: bool = False) -> str:
    """The corrected correlation; - where the rates scatter no more than their noise, so that there is none."""
    r = score.scores.true_correlation
    if not np.isfinite(r):
        return "-"
    return f"{r:.2f} ± {score.deviation:.2f}" if deviation else f"{r:.2f}"


def plot_curves(scores: Sequence[FeatureScore], path: Path, *, samples: int) -> None:
    """Plot the corrected correlation against the paid samples of other prompts, a panel for each policy."""
    policies: Mapping[str, list[FeatureScore]] = {}
    policies = {name: list(group) for name, group in groupby(scores, key=lambda score: score.policy)}
    figure = new_figure(width=5.2 * len(policies) + 3.2, height=4.8)
    for number, (policy, own) in enumerate(policies.items()):
        axes = add_axes(figure, 1, len(policies), number + 1)
        for colour, name in zip(_COLOURS, _DRAWN, strict=True):
            points = [score for score in own if score.features == name]
            if not points:
                continue
            curve = sorted((score.paid, score.scores.true_correlation) for score in points if score.paid is not None)
            whole = [score.scores.true_correlation for score in points if score.paid is None]
            labels = [str(paid) for paid, _ in curve] + [f"all x {samples}"]
            axes.plot(labels, [r for _, r in curve] + whole, color=colour, marker="o", linewidth=2, label=name)
        axes.set_title(policy, fontsize=13)
        axes.set_ylim(-0.1, 1)
        axes.set_xlabel("samples of other prompts", fontsize=13)
        if number == 0:
            axes.set_ylabel("r with the true accept rate", fontsize=13)
        if number == len(policies) - 1:
            axes.legend(frameon=False, fontsize=10, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_figure(figure, path)
