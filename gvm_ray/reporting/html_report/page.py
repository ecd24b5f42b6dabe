"""The HTML report: its sections, and the page that they form."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from gvm_ray.reporting.html_report.curves import (
    Calibration,
    accuracy_panels,
    calibration_panel,
    flow_panel,
    length_panel,
    metric_panel,
    phase_panel,
    reward_distribution_panel,
    reward_panels,
    thirds_panel,
)
from gvm_ray.reporting.html_report.figures import Panel
from gvm_ray.reporting.html_report.run_data import RunData, read_runs
from gvm_ray.reporting.progress import short_count, short_duration
from gvm_ray.reporting.summary import chosen_settings, differing_settings, flat_settings

_SHOWN_STEPS = 3  # number of last steps whose sample texts are shown


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text cells."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page; `note` explains its content, or why it is empty."""

    key: str  # anchor for links
    title: str
    note: str = ""
    panels: Sequence[Panel] = ()
    table: Table | None = None
    samples: Sequence[Mapping[str, Any]] = ()  # rows of samples.jsonl, and their `run`


def all_sections(runs: Sequence[RunData]) -> list[Section]:
    """Build all sections; an empty section explains why it is empty."""
    sections = [
        learning_section(runs),
        budget_section(runs),
        calibration_section(runs),
        phases_section(runs),
        distributions_section(runs),
        staleness_section(runs),
        optimization_section(runs),
        failures_section(runs),
        samples_section(runs),
        settings_section(runs),
    ]
    nothing = "No step has reported any of these metrics yet."
    return [each if each.note or each.panels or each.table else replace(each, note=nothing) for each in sections]


def learning_section(runs: Sequence[RunData]) -> Section:
    """Accuracy and reward against their costs."""
    accuracy, reward = accuracy_panels(runs), reward_panels(runs)
    note = "" if accuracy else "The held-out accuracy was not measured yet, or the run has no prompts.eval."
    return Section(key="learning", title="Learning curves", note=note, panels=[*accuracy, *reward])


def budget_section(runs: Sequence[RunData]) -> Section:
    """The distribution of samples over prompts."""
    panels = [panel for i, run in enumerate(runs) for panel in (*flow_panel(run, i), *thirds_panel(run, i))]
    note = "By the allocator's estimate p̂ of each prompt's accept rate; prompts without an estimate are left out."
    return Section(
        key="budget",
        title="The budget's flow",
        note=note if panels else "histograms.jsonl has no estimates of accept rates.",
        panels=panels,
    )


def calibration_section(runs: Sequence[RunData]) -> Section:
    """Accept rates predicted before sampling, compared with those observed."""
    found = {run.name: Calibration.of(run) for run in runs}
    rows = [
        [name, f"{each.brier:.4f}", _number(each.rank_correlation), f"{each.num_prompts:,}"]
        for name, each in found.items()
        if each is not None
    ]
    silent = [name for name, each in found.items() if each is None]
    note = f"The allocator of these runs predicts no accept rates: {', '.join(silent)}." if silent else ""
    return Section(
        key="calibration",
        title="Calibration of p̂",
        note=note,
        panels=[
            *calibration_panel(runs),
            *metric_panel(runs, "allocation/brier", title="Brier score of a step"),
            *metric_panel(runs, "allocation/calibration_error", title="Expected calibration error of a step"),
        ],
        table=Table(head=("run", "Brier score", "rank correlation", "prompts"), rows=rows) if rows else None,
    )


def phases_section(runs: Sequence[RunData]) -> Section:
    """The time spent in each phase."""
    panels = [panel for index, run in enumerate(runs) for panel in phase_panel(run, index)]
    note = (
        "Phases overlap in an asynchronous run, so their sum may exceed the step's duration. The longest steps may be "
        "cut off."
    )
    return Section(
        key="phases",
        title="Phases",
        note=note if panels else "No step has recorded the duration of its phases.",
        panels=panels,
    )


def distributions_section(runs: Sequence[RunData]) -> Section:
    """Lengths and rewards of the samples."""
    panels = [
        *metric_panel(runs, "length/mean", title="Mean response length (tokens)"),
        *metric_panel(runs, "samples/truncated_fraction", title="Share of responses cut at max_tokens"),
        *metric_panel(runs, "reward/std", title="Standard deviation of the rewards"),
    ]
    for index, run in enumerate(runs):
        panels += [*length_panel(run, index), *reward_distribution_panel(run, index)]
    return Section(key="distributions", title="Lengths and rewards", panels=panels)


def staleness_section(runs: Sequence[RunData]) -> Section:
    """The distance between the sampling policy and the learning policy."""
    stale = [run for run in runs if np.nansum(run.column("staleness/max")) > 0]
    panels = [
        *(metric_panel(runs, "staleness/mean", title="Updates between sampling and training") if stale else ()),
        *metric_panel(runs, "importance/effective_sample_size", title="Effective sample size, as a share"),
        *metric_panel(runs, "importance/clipped_fraction", title="Share of clipped importance weights"),
        *metric_panel(runs, "logprob_difference/mean", title="|learner - engine| per token (nats)", log=True),
    ]
    note = "" if stale else "Strictly on-policy: no sample was stale."
    return Section(key="staleness", title="Staleness and importance", note=note, panels=panels)


def optimization_section(runs: Sequence[RunData]) -> Section:
    """Entropy, gradient norm and clipping of the updates."""
    panels = [
        *metric_panel(runs, "entropy", title="Entropy (nats per token)"),
        *metric_panel(runs, "grad_norm", title="Gradient norm"),
        *metric_panel(runs, "clip_fraction", title="Share of clipped tokens"),
    ]
    return Section(key="optimization", title="Optimization", panels=panels)


def failures_section(runs: Sequence[RunData]) -> Section:
    """Failures from which the runs recovered, and dropped work."""
    rows = [
        [
            run.name,
            short_count(run.last("faults/total") or 0.0),
            short_count(float(np.nansum(run.column("num_skipped_updates")))),
            short_count(float(np.nansum(run.column("samples/unscored")))),
            short_count(run.last("cost/refilled_samples") or 0.0),
        ]
        for run in runs
    ]
    head = ("run", "failures recovered from", "updates skipped", "samples unscored", "samples drawn again")
    return Section(key="failures", title="Failures", table=Table(head=head, rows=rows))


def samples_section(runs: Sequence[RunData]) -> Section:
    """The best and worst responses of the last steps with kept samples, newest first."""
    samples = []
    for run in runs:
        steps = sorted({row["step"] for row in run.samples})[-_SHOWN_STEPS:]
        shown = [row for row in run.samples if row["step"] in steps]
        samples += [{"run": run.name, **row} for row in sorted(shown, key=lambda row: -row["step"])]
    note = "Samples of training, newest first."
    if not samples:
        note = "samples.jsonl has none; reporting.samples_every_steps sets how often samples are kept."
    return Section(key="samples", title="Sample completions", note=note, samples=samples)


def settings_section(runs: Sequence[RunData]) -> Section:
    """The settings in which the runs differ; for a single run, the settings that aren't defaults."""
    if len(runs) > 1:
        rows = [
            [name, *("—" if value is None else value for value in values)]
            for name, values in differing_settings([run.config for run in runs]).items()
        ]
        note = "" if rows else "The runs have the same settings."
        head = ("setting", *(run.name for run in runs))
        return Section(
            key="settings", title="Settings that differ", note=note, table=Table(head=head, rows=rows) if rows else None
        )
    config = runs[0].config
    chosen = chosen_settings(config)
    title = "Settings that are not the defaults" if chosen is not None else "Settings"
    values = {name: json.dumps(value) for name, value in flat_settings(config).items()} if chosen is None else chosen
    return Section(
        key="settings",
        title=title,
        note="" if values else "The run's folder has no config.json.",
        table=Table(head=("setting", "value"), rows=list(values.items())) if values else None,
    )


def key_numbers(run: RunData) -> dict[str, str]:
    """Key figures of a run: name -> text."""
    total = run.config.get("num_steps")
    numbers = {
        "held-out accuracy": _accuracy(run),
        "steps": f"{run.num_steps:,}" + (f" of {total:,}" if total else ""),
        "generated tokens": short_count(run.last("cost/generated_tokens") or 0.0),
        "samples": short_count(run.last("cost/generated_samples") or 0.0),
        "optimizer updates": short_count(run.last("cost/optimizer_updates") or 0.0),
        "wall time": short_duration(run.last("time_s") or 0.0),
    }
    for name in ("allocator", "algorithm"):
        if name in run.config:
            numbers[name] = str(run.config[name]["type"])
    return numbers


def _accuracy(run: RunData) -> str:
    last = run.last("eval/accuracy")
    if run.base_accuracy is None or last is None:
        known = run.base_accuracy if last is None else last
        return "not measured" if known is None else f"{known:.3f}"
    return f"{run.base_accuracy:.3f} → {last:.3f} ({last - run.base_accuracy:+.3f})"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "—"


def write_html_report(folders: Sequence[Path], output: Path) -> list[Path]:
    """Write the page about the runs in these folders, and next to it its figures as `<page's name>-<figure>.png`.

    Returns the written files, the page first.

    Raises:
        DataError: a file of a run is damaged.
    """
    runs = read_runs(folders)
    sections = all_sections(runs)
    output.parent.mkdir(parents=True, exist_ok=True)
    # A model's text may contain half of a surrogate pair, which UTF-8 can't encode.
    output.write_text(render(runs, sections), encoding="utf-8", errors="replace")
    written = [output]
    for panel in (panel for section in sections for panel in section.panels):
        written.append(output.with_name(f"{output.stem}-{panel.name}.png"))
        panel.save(written[-1])
    return written


def render(runs: Sequence[RunData], sections: Sequence[Section]) -> str:
    """Render the page. All foreign text in it, above all model output, is escaped."""
    environment = Environment(
        loader=PackageLoader(__name__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        title=", ".join(run.name for run in runs),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=[{"name": run.name, "status": run.status, "numbers": key_numbers(run)} for run in runs],
        sections=sections,
    )
