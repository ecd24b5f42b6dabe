"""Results on benchmarks: accuracies, averages over benchmarks, and differences between models."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gvm_ray.benchmarks.samples import Sample
from gvm_ray.evaluation import EvaluationResult
from gvm_ray.maths.student_t import MIN_SEEDS, Estimate, estimate_mean
from gvm_ray.reporting.plots import add_axes, new_figure, save_figure
from gvm_ray.reporting.run_folder import json_text
from gvm_ray.rewards.votes import merged_votes

# The averages of the paper (arXiv 2505.02391): each benchmark has the same weight, whatever its size.
_AVERAGES = {
    "3 average": ("math500", "minerva_math", "olympiad_bench"),
    "5 average": ("math500", "minerva_math", "olympiad_bench", "aime24", "amc23"),
}


@dataclass(frozen=True, kw_only=True)
class PromptSamples:
    """A prompt's finished samples, with its subject and level."""

    prompt_id: str
    subject: str | None
    level: str | None
    samples: tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """The result of one model on one benchmark."""

    overall: EvaluationResult
    subjects: dict[str, EvaluationResult]  # empty if the file names none
    levels: dict[str, EvaluationResult]
    accuracies: dict[str, float]  # prompt_id -> share of correct ones among its scored samples, if it has any
    num_too_long: int  # prompts left out because they have more tokens than prompts.max_tokens
    mean_tokens: float  # per response
    truncated: float  # share of truncated samples
    unanswered: float  # share of samples without an answer

    @classmethod
    def of(
        cls, prompts: Sequence[PromptSamples], *, accept_threshold: float, num_too_long: int = 0, seed: int = 0
    ) -> "BenchmarkResult":
        """The result from k samples of each prompt; subjects and levels without a scored sample are left out.

        Raises:
            SystemFailure: no sample was scored.
        """

        merged = merged_votes([[sample.answer for sample in prompt.samples] for prompt in prompts])
        votes = {prompt.prompt_id: of_prompt for prompt, of_prompt in zip(prompts, merged, strict=True)}

        def result(part: Sequence[PromptSamples]) -> EvaluationResult:
            return EvaluationResult.of_rewards(
                [_rewards(prompt) for prompt in part],
                answers=[votes[prompt.prompt_id] for prompt in part],
                accept_threshold=accept_threshold,
                seed=seed,
            )

        def results(group: Callable[[PromptSamples], str | None]) -> dict[str, EvaluationResult]:
            names = sorted({name for prompt in scored if (name := group(prompt)) is not None})
            return {name: result([prompt for prompt in scored if group(prompt) == name]) for name in names}

        scored = [prompt for prompt in prompts if np.isfinite(_rewards(prompt)).any()]
        samples = [sample for prompt in prompts for sample in prompt.samples]
        return cls(
            overall=result(prompts),
            subjects=results(lambda prompt: prompt.subject),
            levels=results(lambda prompt: prompt.level),
            accuracies={prompt.prompt_id: _accuracy(prompt, accept_threshold) for prompt in scored},
            num_too_long=num_too_long,
            mean_tokens=float(np.mean([sample.num_tokens for sample in samples])),
            truncated=float(np.mean([sample.finish_reason == "length" for sample in samples])),
            unanswered=float(np.mean([sample.answer is None for sample in samples])),
        )


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """The results of one model on all benchmarks."""

    name: str
    model: str
    benchmarks: dict[str, BenchmarkResult]

    def averages(self) -> dict[str, Estimate]:
        """Means of avg@k over benchmarks, with Student-t intervals over prompts (pooled as Welch and Satterthwaite)."""
        return _over_benchmarks({name: each.accuracies for name, each in self.benchmarks.items()})

    def minus(self, other: "ModelResult") -> dict[str, Estimate]:
        """avg@k minus another model's, by benchmark and on average, paired over prompts.

        Prompts for which one of the models has no scored sample are left out.
        """
        differences = {
            name: {
                prompt_id: accuracy - theirs
                for prompt_id, accuracy in result.accuracies.items()
                if (theirs := other.benchmarks[name].accuracies.get(prompt_id)) is not None
            }
            for name, result in self.benchmarks.items()
        }
        differences = {name: values for name, values in differences.items() if values}
        single = {name: estimate_mean({name: _numbered(values)}) for name, values in differences.items()}
        return single | _over_benchmarks(differences)


def _over_benchmarks(values: Mapping[str, Mapping[str, float]]) -> dict[str, Estimate]:
    """Estimates of the named averages that these benchmarks allow, and of the average of all benchmarks."""
    named = {name: parts for name, parts in _AVERAGES.items() if set(parts) <= values.keys()}
    if len(values) > 1 and set(values) not in map(set, named.values()):
        named[f"average of {len(values)}"] = tuple(values)
    return {name: estimate_mean({part: _numbered(values[part]) for part in parts}) for name, parts in named.items()}


def _numbered(values: Mapping[str, float]) -> dict[int, float]:
    return dict(enumerate(values.values()))


def _rewards(prompt: PromptSamples) -> list[float]:
    return [float("nan") if sample.reward is None else sample.reward for sample in prompt.samples]


def _accuracy(prompt: PromptSamples, accept_threshold: float) -> float:
    rewards = np.array(_rewards(prompt))
    return float((rewards[np.isfinite(rewards)] >= accept_threshold).mean())


_COLUMNS = ("model", "benchmark", "group", "value", "metric", "num_prompts", "mean", "low", "high")


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """The results of all models on all benchmarks, under the same settings."""

    models: tuple[ModelResult, ...]  # the first is the one that the others are compared with
    settings: Mapping[str, Any]

    @property
    def metric(self) -> str:
        """The name of the accuracy: avg@k."""
        first = next(iter(self.models[0].benchmarks.values()))
        return f"avg@{first.overall.num_samples}"

    def accuracies(self, model: ModelResult) -> dict[str, Estimate]:
        """avg@k by benchmark, and the averages over benchmarks."""
        single = {name: result.overall.metrics[self.metric] for name, result in model.benchmarks.items()}
        return {
            name: Estimate(value=each.mean, interval=(each.low, each.high)) for name, each in single.items()
        } | model.averages()

    def differences(self) -> dict[str, dict[str, Estimate]]:
        """avg@k of each other model minus that of the first model."""
        return {model.name: model.minus(self.models[0]) for model in self.models[1:]}

    def write(self, folder: Path) -> list[Path]:
        """Write results.json, results.csv, results.md and results.png; return their paths."""
        paths = [folder / f"results.{kind}" for kind in ("json", "csv", "md", "png")]
        paths[0].write_text(json_text(self.as_dict(), indent=2) + "\n", encoding="utf-8")
        with paths[1].open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows(self._csv_rows())
        paths[2].write_text(self.markdown(), encoding="utf-8")
        self._plot(paths[3])
        return paths

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "settings": dict(self.settings),
            "models": [
                {**asdict(model), "averages": {name: asdict(each) for name, each in model.averages().items()}}
                for model in self.models
            ],
            "differences": {
                name: {column: asdict(each) for column, each in columns.items()}
                for name, columns in self.differences().items()
            },
        }

    def markdown(self) -> str:
        """Tables of accuracies in percent, of differences, and of each benchmark's details."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        lines = [
            "# Evaluation",
            "",
            f"{settings}. {self.metric} in percent, with 95 % bootstrap intervals over prompts; an average over "
            f"benchmarks gives each the same weight; its interval, and that of a difference, is Student-t (none below "
            f"{MIN_SEEDS} prompts of each).",
            "",
            *_table("model", {model.name: _cells(self.accuracies(model)) for model in self.models}),
        ]
        if differences := self.differences():
            lines += [
                "",
                f"## Minus {self.models[0].name}, paired over prompts",
                "",
                *_table("model", {name: _cells(columns, form="+.2f") for name, columns in differences.items()}),
            ]
        for name in self.models[0].benchmarks:
            lines += ["", f"## {name}", "", *self._details(name)]
        return "\n".join([*lines, ""])

    def _details(self, name: str) -> Iterator[str]:
        results = {model.name: model.benchmarks[name] for model in self.models}
        yield from _table("model", {model: _detail_cells(result) for model, result in results.items()})
        groups: dict[str, Callable[[BenchmarkResult], dict[str, EvaluationResult]]] = {
            "subject": lambda result: result.subjects,
            "level": lambda result: result.levels,
        }
        for heading, parts in groups.items():
            values = dict.fromkeys(value for result in results.values() for value in parts(result))
            rows = {value: self._group_cells(value, {m: parts(r) for m, r in results.items()}) for value in values}
            if rows:
                yield ""
                yield from _table(heading, rows)

    def _group_cells(self, value: str, parts: Mapping[str, Mapping[str, EvaluationResult]]) -> dict[str, str]:
        known = {model: groups[value] for model, groups in parts.items() if value in groups}
        return {"prompts": str(max(result.num_prompts for result in known.values()))} | {
            model: _percent(each.mean, (each.low, each.high))
            for model, result in known.items()
            for each in (result.metrics[self.metric],)
        }

    def _csv_rows(self) -> Iterator[tuple[Any, ...]]:
        for model in self.models:
            for name, result in model.benchmarks.items():
                for group, parts in (
                    ("all", {"": result.overall}),
                    ("subject", result.subjects),
                    ("level", result.levels),
                ):
                    for value, part in parts.items():
                        for metric, each in part.metrics.items():
                            key = (model.name, name, group, value, metric)
                            yield (*key, part.num_prompts, each.mean, each.low, each.high)
            for name, average in model.averages().items():
                num_prompts = ""  # an average is over several benchmarks
                yield (model.name, name, "average", "", self.metric, num_prompts, average.value, *_ends(average))
        for model_name, columns in self.differences().items():
            metric = f"{self.metric} minus {self.models[0].name}"
            for name, each in columns.items():
                yield (model_name, name, "difference", "", metric, "", each.value, *_ends(each))

    def _plot(self, path: Path) -> None:
        """Plot avg@k of the models side by side, with intervals, for each benchmark and average."""
        accuracies = [self.accuracies(model) for model in self.models]
        columns = list(accuracies[0])
        figure = new_figure(width=max(5.0, 1.5 + 1.4 * len(columns)))
        axes = add_axes(figure)
        width = 0.8 / len(self.models)
        for index, (model, values) in enumerate(zip(self.models, accuracies, strict=True)):
            places = [place - 0.4 + width * (index + 0.5) for place in range(len(columns))]
            heights = [100 * values[name].value for name in columns]
            axes.bar(places, heights, width=0.92 * width, label=model.name)
            for place, name in zip(places, columns, strict=True):
                if (interval := values[name].interval) is not None:
                    axes.plot([place, place], [100 * end for end in interval], color="black", linewidth=1)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_ylabel(f"{self.metric}, %", fontsize=13)
        axes.set_ylim(bottom=0)
        figure.legend(frameon=False, fontsize=11, ncols=2, loc="outside upper center")
        save_figure(figure, path)


def _table(corner: str, rows: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """A Markdown table with all columns that any row has."""
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    yield "| " + " | ".join([corner, *columns]) + " |"
    yield "|---|" + "---:|" * len(columns)
    for name, cells in rows.items():
        yield "| " + " | ".join([name.replace("|", "\\|"), *(cells.get(column, "-") for column in columns)]) + " |"


def _cells(columns: Mapping[str, Estimate], *, form: str = ".2f") -> dict[str, str]:
    return {name: _percent(each.value, each.interval, form=form) for name, each in columns.items()}


def _detail_cells(result: BenchmarkResult) -> dict[str, str]:
    overall = result.overall
    num_samples = overall.num_prompts * overall.num_samples
    return {
        "prompts": f"{overall.num_prompts}" + (f" ({result.num_too_long} too long)" if result.num_too_long else ""),
        **{name: _percent(each.mean, (each.low, each.high)) for name, each in overall.metrics.items()},
        "mean tokens": f"{result.mean_tokens:.0f}",
        "truncated": _percent(result.truncated, None),
        "no answer": _percent(result.unanswered, None),
        "unscored": _percent(overall.num_unscored / num_samples, None),
    }


def _percent(value: float, interval: Sequence[float] | None, *, form: str = ".2f") -> str:
    ends = "" if interval is None else f" [{', '.join(format(100 * end, form) for end in interval)}]"
    return format(100 * value, form) + ends


def _ends(estimate: Estimate) -> tuple[float | str, float | str]:
    return ("", "") if estimate.interval is None else estimate.interval
