"""`gvm-ray eval`."""

import argparse
import os
from collections.abc import Iterator

from gvm_ray.cli.options import Commands, add_overrides
from gvm_ray.config import RunConfig, load_config, parse_config
from gvm_ray.config.data import benchmark_defaults
from gvm_ray.config.prompts import SYSTEM_PROMPTS
from gvm_ray.exceptions import ModelError, UserError

_TEMPLATES = ("plain", "chat", *(name for name in SYSTEM_PROMPTS if name != "none"))


def add_to(commands: Commands) -> None:
    """Add the command."""
    evaluate = commands.add_parser(
        "eval",
        help="measure models on benchmarks or prompts",
        description="Measure avg@k, pass@k and maj@k with bootstrap intervals: of models on benchmarks (--benchmarks), "
        "or of one model on a config's evaluation prompts (--config alone).",
    )
    evaluate.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a Hugging Face folder or hub id, e.g. runs/quickstart/model; with --benchmarks several, or NAME=MODEL",
    )
    evaluate.add_argument("--config", metavar="CONFIG.toml", help="engine, rewards and sampling (and prompts)")
    add_overrides(evaluate)
    evaluate.add_argument(
        "--benchmarks",
        metavar="NAMES",
        help="names of .jsonl or .parquet files in --benchmark-dir, or paths, separated by commas: math500,aime24",
    )
    evaluate.add_argument(
        "--benchmark-dir",
        default=os.environ.get("GVM_RAY_BENCHMARK_DIR"),
        metavar="FOLDER",
        help="folder of the named benchmarks (default: $GVM_RAY_BENCHMARK_DIR)",
    )
    evaluate.add_argument("--num-samples", type=int, help="completions per prompt (default 8, or 1 if greedy)")
    evaluate.add_argument("--temperature", type=float, help="0 = greedy (default: evaluation.temperature)")
    evaluate.add_argument("--top-p", type=float, help="default: evaluation.top_p")
    evaluate.add_argument("--max-tokens", type=int, help="response tokens (default: sampling.max_tokens)")
    evaluate.add_argument("--prompt-template", choices=_TEMPLATES, help="default: prompts.template")
    evaluate.add_argument("--limit", type=int, metavar="N", help="only the first N prompts of each benchmark")
    evaluate.add_argument(
        "--output",
        metavar="PATH",
        help="with --benchmarks: the folder of samples and results (default: evaluation), from which an interrupted "
        "evaluation continues; else: a JSON file for the numbers",
    )
    evaluate.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    try:
        return _measure(options)
    except ModelError as error:
        raise ModelError(str(error).replace("model.path", "MODEL")) from error


def _measure(options: argparse.Namespace) -> int:
    if options.num_samples is not None and options.num_samples < 1:
        raise UserError(f"--num-samples {options.num_samples} is not a positive number; write e.g. --num-samples 8")
    overrides = [*_overrides(options), *options.overrides]
    config: RunConfig | None = None
    if options.config is not None:
        config = load_config(options.config, overrides)
    if options.benchmarks is not None:
        config = config or parse_config(benchmark_defaults(options.models[0]), overrides, origin="--set")
        return _on_benchmarks(options, config)
    if config is None:
        raise UserError("nothing to evaluate on; write --benchmarks math500,aime24, or --config CONFIG.toml")
    if len(options.models) > 1:
        raise UserError(f"{len(options.models)} models can be compared only on benchmarks; write --benchmarks NAMES")
    from gvm_ray.run import evaluate

    result = evaluate(options.models[0], config, num_samples=_num_samples(options, config), output=options.output)
    print(result.table())
    return 0


def _on_benchmarks(options: argparse.Namespace, config: RunConfig) -> int:
    from gvm_ray.benchmarks.evaluate import evaluate_benchmarks

    output = options.output or "evaluation"
    report = evaluate_benchmarks(
        options.models,
        [name.strip() for name in options.benchmarks.split(",") if name.strip()],
        config,
        benchmark_dir=options.benchmark_dir,
        num_samples=_num_samples(options, config),
        output=output,
    )
    print(f"\n{report.markdown()}\nsamples and results are in {output}")
    return 0


def _num_samples(options: argparse.Namespace, config: RunConfig) -> int:
    return options.num_samples or (1 if config.evaluation.temperature == 0 else 8)


def _overrides(options: argparse.Namespace) -> Iterator[str]:
    """The options that set a setting, as overrides."""
    num_samples = 1 if options.num_samples is None and options.temperature == 0 else options.num_samples
    for setting, value in (
        ("evaluation.num_samples", num_samples),
        ("evaluation.temperature", options.temperature),
        ("evaluation.top_p", options.top_p),
        ("evaluation.num_prompts", options.limit),
        ("sampling.max_tokens", options.max_tokens),
    ):
        if value is not None:
            yield f"{setting}={value}"
    if options.prompt_template is not None:
        plain = options.prompt_template in ("plain", "chat")
        yield f"prompts.template.type={options.prompt_template if plain else 'chat'}"
        wording = "none" if plain else options.prompt_template
        yield f'prompts.template.system_prompt="{wording}"'  # in quotes, because a bare none clears the setting
