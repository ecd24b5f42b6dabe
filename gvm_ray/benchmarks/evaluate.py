"""`gvm-ray eval`: evaluation of models on published benchmarks."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gvm_ray.actors.cluster import connected, find_threads
from gvm_ray.actors.context import RunContext
from gvm_ray.actors.pools import fetch_groups
from gvm_ray.benchmarks.results import BenchmarkReport, BenchmarkResult, ModelResult, PromptSamples
from gvm_ray.benchmarks.samples import Benchmark, SampleFile, earlier_date, find_benchmarks, writing
from gvm_ray.config import RunConfig, parse_config
from gvm_ray.config.data import benchmark_defaults
from gvm_ray.exceptions import ConfigError
from gvm_ray.model_files import model_files
from gvm_ray.prepare import Prepared, prepare, with_date
from gvm_ray.reporting.run_folder import RAY_LOG
from gvm_ray.run import evaluation_config, run_to_end
from gvm_ray.system import make_evaluator, start_pools
from gvm_ray.tasks.prompt_set import PromptSets, load_prompts
from gvm_ray.types import Prompt, RolloutGroup

PROMPTS_PER_PIECE = 64
_PIECES_AT_ONCE = 2  # the second keeps the generators busy while the first's longest responses are finished

Sampler = Callable[[Sequence[Prompt]], Awaitable[list[RolloutGroup]]]


@dataclass(frozen=True, kw_only=True)
class Work:
    """A benchmark's prompts, and the file for their samples."""

    label: str
    prompts: Sequence[Prompt]
    file: SampleFile

    @property
    def missing(self) -> list[Prompt]:
        """The prompts whose samples aren't in the file yet."""
        return [prompt for prompt in self.prompts if prompt.prompt_id not in self.file.finished]

    def __str__(self) -> str:
        return f"{self.label}: {len(self.prompts) - len(self.missing)} of {len(self.prompts)} prompts"


async def sample_missing(work: Sequence[Work], sample: Sampler, *, on_piece: Callable[[Work], None]) -> None:
    """Sample the missing prompts in order, a few pieces at once; call `on_piece` when a piece is in its file."""
    gate = asyncio.Semaphore(_PIECES_AT_ONCE)

    async def finish(part: Work, piece: Sequence[Prompt]) -> None:
        async with gate:
            part.file.append(await sample(piece))
        on_piece(part)

    async with asyncio.TaskGroup() as tasks:
        for part in work:
            missing = part.missing
            for start in range(0, len(missing), PROMPTS_PER_PIECE):
                tasks.create_task(finish(part, missing[start : start + PROMPTS_PER_PIECE]))


_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]*"


@dataclass(frozen=True, kw_only=True)
class CheckedModel:
    """A checked model with its prompts and files."""

    name: str
    path: str
    config: RunConfig
    prepared: Prepared
    settings: Mapping[str, Any]  # those that decide what the samples are
    work: Mapping[str, Work]
    num_too_long: Mapping[str, int]


def evaluate_benchmarks(
    models: Sequence[str],
    benchmarks: Sequence[str],
    config: RunConfig | None = None,
    *,
    benchmark_dir: str | Path | None = None,
    num_samples: int = 8,
    output: str | Path = "evaluation",
) -> BenchmarkReport:
    """Measure avg@k, pass@k and maj@k of models on benchmarks, averages, and differences to the first model.

    Finished samples are written to OUTPUT/<model>/<benchmark>/samples.jsonl, and are not sampled again. The results are
    results.json, .csv, .md and .png in OUTPUT.

    Args:
        models: Hugging Face folders or hub ids, each with or without a name: NAME=MODEL.
        benchmarks: names of files in `benchmark_dir`, or paths; see `find_benchmarks`.
        config: engine, rewards, template and sampling (`evaluation.temperature`, `.top_p`, `.num_prompts` of each
            benchmark; `sampling.max_tokens`); its model, training and own prompts are not used. Without it, Math-Verify
            grades chats with the paper's wording.
        benchmark_dir: the folder of the named benchmarks.
        num_samples: completions per prompt, k.
        output: the output folder.

    Raises:
        UserError: a model, a file or a setting is wrong, or the folder has samples drawn under other settings.
        SystemFailure: a part of the running system failed; the same call continues from the finished samples.
    """
    named = named_models(models)
    found = find_benchmarks(benchmarks, folder=benchmark_dir)
    config = parse_config(benchmark_defaults(models[0])) if config is None else config
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"num_samples": num_samples})})
    folder = Path(output)
    checked = [checked_model(name, path, found, config=config, folder=folder) for name, path in named.items()]
    waiting = [model for model in checked if any(work.missing for work in model.work.values())]
    if waiting:
        with connected(waiting[0].config, learners=False, ray_log=folder / RAY_LOG):
            for model in waiting:
                run_to_end(_sample(model))
    report = BenchmarkReport(models=tuple(map(_result, checked)), settings=_shown_settings(checked[0]))
    with writing(folder):
        report.write(folder)
    return report


def named_models(models: Sequence[str]) -> dict[str, str]:
    """name -> model; a run's model folder, runs/NAME/model, has the run's name.

    Raises:
        ConfigError: there is none, two have one name, or one gives none.
    """
    if not models:
        raise ConfigError("there is no model to evaluate; name at least one, e.g. runs/quickstart/model")
    named: dict[str, str] = {}
    for model in models:
        given = re.fullmatch(rf"({_NAME})=(.+)", model)
        name, path = (given[1], given[2]) if given else (_name_of(model), model)
        if name in named:
            raise ConfigError(f"two models are called {name!r}; name them: first={named[name]} second={path}")
        named[name] = path
    return named


def _name_of(model: str) -> str:
    path = Path(model)
    name = path.resolve().parent.name if path.name == "model" else path.name or path.resolve().name
    if not re.fullmatch(_NAME, name):
        raise ConfigError(f"{model!r} gives no name for a folder; write NAME=MODEL, e.g. base={model}")
    return name


def checked_model(
    name: str, path: str, benchmarks: Sequence[Benchmark], *, config: RunConfig, folder: Path
) -> CheckedModel:
    """A model with its prompts and files, before an actor starts.

    Raises:
        UserError: a setting, the model, a benchmark or an earlier sample file is wrong.
    """
    changes = {
        "prompts": {"train": benchmarks[0].source.model_dump(), "eval": None},
        "allocator": {"type": "uniform"},
        "prompts_per_step": 1,
    }
    own = with_date(evaluation_config(config, path, changes), earlier=earlier_date(folder))
    sets: dict[str, PromptSets] = {}

    def load(settings: Any, *arguments: Any, **named_arguments: Any) -> PromptSets:
        for each in benchmarks:
            sources = settings.model_copy(update={"train": each.source})
            sets[each.name] = load_prompts(
                sources, *arguments, **named_arguments, train_name=f"benchmark {each.name!r}"
            )
        return sets[benchmarks[0].name]

    prepared = prepare(own, run_dir=folder / name, load=load, learners=False)
    for benchmark, prompts in sets.items():
        print("\n".join(prompts.report.train.lines(benchmark)), flush=True)
    settings = _settings(own, path, prepared)
    files = {
        each.name: SampleFile(folder / name / each.name, settings=settings, num_samples=own.evaluation.num_samples)
        for each in benchmarks
    }
    for each, prompts in sets.items():
        files[each].check_prompts(prompts.train)
    work = {
        each.name: Work(
            label=f"{name} on {each.name}",
            prompts=[_described(prompt, each) for prompt in sets[each.name].train[: own.evaluation.num_prompts]],
            file=files[each.name],
        )
        for each in benchmarks
    }
    num_too_long = {each: len(prompts.report.train.too_long_ids) for each, prompts in sets.items()}
    return CheckedModel(
        name=name, path=path, config=own, prepared=prepared, settings=settings, work=work, num_too_long=num_too_long
    )


def _described(prompt: Prompt, benchmark: Benchmark) -> Prompt:
    """The prompt with its subject and level as the features "subject" and "level"."""
    fields = {"subject": benchmark.subject_field, "level": benchmark.level_field}
    features = {
        name: str(prompt.features[field])
        for name, field in fields.items()
        if field is not None and prompt.features[field] is not None
    }
    return replace(prompt, features=features)


def _settings(config: RunConfig, model: str, prepared: Prepared) -> dict[str, Any]:
    """The settings that decide what a prompt's samples are."""
    return {
        "model": model_files(model),
        "engine": prepared.engine_kind if config.engine.path is None else config.engine.path,
        "dtype": config.engine.dtype,
        "template": config.prompts.template.model_dump(mode="json"),
        "num_samples": config.evaluation.num_samples,
        "temperature": config.evaluation.temperature,
        "top_p": config.evaluation.top_p,
        "max_tokens": config.sampling.max_tokens,
        "environment": config.environment.model_dump(mode="json"),
        "rewards": [term.model_dump(mode="json") for term in config.rewards.terms],
        "seed": config.seed,
    }


def _shown_settings(model: CheckedModel) -> dict[str, Any]:
    """The settings that all models share, for the report."""
    settings = model.settings
    template = settings["template"]
    return {
        "samples": settings["num_samples"],
        **{name: settings[name] for name in ("temperature", "top_p", "max_tokens", "seed", "engine", "dtype")},
        "template": template["type"] if template["system_prompt"] == "none" else template["system_prompt"],
        "rewards": " + ".join(term["type"] for term in settings["rewards"]),
    }


async def _sample(model: CheckedModel) -> None:
    prepared = model.prepared
    context = RunContext.of(model.config, threads=find_threads(model.config, learners=False))
    pools = start_pools(
        model.config, prepared.model, kind=prepared.engine_kind, context=context, prefix=f"{model.name}-"
    )
    try:
        await pools.start()
        evaluator = make_evaluator(model.config, model.prepared, pools)

        async def sample(prompts: Sequence[Prompt]) -> list[RolloutGroup]:
            outcomes = await replace(evaluator, prompts=prompts).sample()
            return await fetch_groups(outcomes, timeout_s=model.config.deadlines.sample_s)

        await sample_missing(list(model.work.values()), sample, on_piece=lambda work: print(work, flush=True))
    finally:
        pools.close()


def _result(model: CheckedModel) -> ModelResult:
    return ModelResult(
        name=model.name,
        model=model.path,
        benchmarks={
            name: BenchmarkResult.of(
                [
                    PromptSamples(
                        prompt_id=prompt.prompt_id,
                        subject=prompt.features.get("subject"),
                        level=prompt.features.get("level"),
                        samples=work.file.finished[prompt.prompt_id],
                    )
                    for prompt in work.prompts
                ],
                accept_threshold=model.config.rewards.accept_threshold,
                num_too_long=model.num_too_long[name],
                seed=model.config.seed,
            )
            for name, work in model.work.items()
        },
    )
