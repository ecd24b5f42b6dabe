"""The command line. Parses and validates first, so that --help and config errors answer before anything heavy loads."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gvm_ray.config import EstimatorConfig, RunConfig, load_arena, load_config, load_estimator
from gvm_ray.exceptions import RunStopped, SystemFailure, UserError

_ESTIMATOR_SETTINGS = {
    "prompts": "num_prompts",
    "samples": "num_samples",
    "repeats": "num_repeats",
    "seed": "seed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 1 (the run failed), 2 (the request was wrong) or 128 + a signal's number."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemFailure as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except RunStopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gvm-ray",
        description="Reinforcement learning for reasoning models with a dynamic sampling budget, on Ray.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train a policy", description="Train a policy as a TOML file describes.")
    _add_config_arguments(train)
    train.add_argument("--resume", action="store_true", help="continue the run of this name from its last checkpoint")
    train.add_argument("--overwrite", action="store_true", help="replace an earlier run of this name")
    train.add_argument("--dry-run", action="store_true", help="check the settings, print what would run, and stop")
    train.set_defaults(run=_train)
    evaluate = commands.add_parser(
        "eval",
        help="measure a model on prompts",
        description="avg@k, pass@k and maj@k of a model on a config's evaluation prompts, with bootstrap intervals.",
    )
    evaluate.add_argument("model", metavar="MODEL", help="a Hugging Face folder or hub id, e.g. runs/quickstart/model")
    _add_config_arguments(evaluate, positional=False)
    evaluate.add_argument("--num-samples", type=int, default=8, help="completions for each prompt (default 8)")
    evaluate.add_argument("--temperature", type=float, default=None, help="default: evaluation.temperature")
    evaluate.add_argument("--output", default=None, metavar="FILE", help="also write the numbers as JSON")
    evaluate.set_defaults(run=_evaluate)
    _add_compare_command(commands)
    _add_estimator_command(commands)
    _add_bench_command(commands)
    return parser


def _add_bench_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    bench = commands.add_parser(
        "bench",
        help="measure this machine",
        description="Figures of the package's parts and of whole runs, each beside the same done the bare way.",
    )
    bench.add_argument("names", nargs="*", metavar="NAME", help="parts to measure (default: all; see --list)")
    bench.add_argument("--list", action="store_true", help="print the names of the parts, and stop")
    bench.add_argument("--quick", action="store_true", help="smaller cases and fewer repeats")
    bench.add_argument("--output", default=None, metavar="FOLDER", help="also write bench.md and bench.json there")
    bench.add_argument(
        "--trl-python",
        default=os.environ.get("GVM_RAY_TRL_PYTHON"),
        metavar="PATH",
        help="Python with TRL installed, the peer of end_to_end (default: $GVM_RAY_TRL_PYTHON; none = no peer)",
    )
    bench.set_defaults(run=_bench)


def _add_compare_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    compare = commands.add_parser(
        "compare",
        help="compare allocators at equal tokens and updates",
        description="Arms x task families x base policies x training sets x algorithms x seeds, each run to one budget "
        "of tokens. Runs that are done are not run again, so a comparison may be interrupted and called anew.",
    )
    compare.add_argument("arena", metavar="ARENA.toml", help="the comparison's settings")
    compare.add_argument(
        "--phase", choices=("exploration", "confirmation"), default="exploration", help="which seeds and tests"
    )
    compare.add_argument(
        "--only",
        action="append",
        metavar="GLOB",
        help="make only the runs whose family/base/training_set/algorithm/arm/seed matches, e.g. '*/a/*/grpo/*'",
    )
    compare.add_argument("--dry-run", action="store_true", help="check every run's settings, list them, and stop")
    compare.add_argument("--report", action="store_true", help="only tables and plots of the runs that are done")
    compare.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=C", help="as for train")
    compare.set_defaults(run=_compare)


def _add_estimator_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    estimator = commands.add_parser(
        "estimator",
        help="measure the gradient estimates of allocators at a fixed policy",
        description="Variance, squared bias and mean squared error of each arm's gradient estimate against the true "
        "gradient, x a baseline and beside an oracle. One process, no Ray.",
    )
    estimator.add_argument("config", metavar="ESTIMATOR.toml", help="the measurement's settings")
    for option, setting in _ESTIMATOR_SETTINGS.items():
        estimator.add_argument(f"--{option}", metavar="N", help=f"short for --set {setting}=N")
    estimator.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=C", help="as for train")
    estimator.add_argument(
        "--output", default=None, metavar="FOLDER", help="of the results (default: the run's folder)"
    )
    estimator.add_argument("--dry-run", action="store_true", help="check every arm's settings, list them, and stop")
    estimator.set_defaults(run=_estimator)


def _add_config_arguments(parser: argparse.ArgumentParser, *, positional: bool = True) -> None:
    if positional:
        parser.add_argument("config", metavar="CONFIG.toml", help="the run's settings")
    else:
        parser.add_argument("--config", required=True, metavar="CONFIG.toml", help="prompts, rewards and engine")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="A.B=C",
        help="override one setting, e.g. --set allocator.alpha=0.01; may be repeated",
    )


def _train(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    if options.dry_run:
        print(describe(config))
        return 0
    from gvm_ray.run import train

    train(config, resume=options.resume, overwrite=options.overwrite)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    if options.num_samples < 1:
        raise UserError(f"--num-samples {options.num_samples} is not a positive number; write e.g. --num-samples 8")
    config = load_config(options.config, options.overrides)
    from gvm_ray.run import evaluate

    result = evaluate(
        options.model, config, num_samples=options.num_samples, temperature=options.temperature, output=options.output
    )
    print(result.table())
    return 0


def _compare(options: argparse.Namespace) -> int:
    arena = load_arena(options.arena, options.overrides)
    arena_folder = Path(options.arena).parent
    from gvm_ray.arena.plan import planned_runs, selected, warnings

    only = options.only or ["*"]
    for line in warnings(arena, phase=options.phase):
        print(f"warning: {line}", file=sys.stderr)
    if options.dry_run:
        runs = selected(planned_runs(arena, folder=arena_folder, phase=options.phase), only)
        print("\n".join([*(run.name for run in runs), f"{len(runs)} runs of {arena.token_budget:,} tokens each"]))
        return 0
    from gvm_ray.arena.compare import ComparisonFolder, compare, report

    if options.report:
        records = report(arena, arena_folder=arena_folder, phase=options.phase)
    else:
        records = compare(arena, arena_folder=arena_folder, phase=options.phase, only=only)
    results = ComparisonFolder.of(arena, arena_folder=arena_folder, phase=options.phase).results
    print((results / "comparison.md").read_text(encoding="utf-8"))
    print(f"tables, plots and CSV files are in {results}")
    return 1 if any(record.status == "failed" for record in records) else 0


def _estimator(options: argparse.Namespace) -> int:
    short = {setting: getattr(options, option) for option, setting in _ESTIMATOR_SETTINGS.items()}
    overrides = [*options.overrides, *(f"{name}={value}" for name, value in short.items() if value is not None)]
    estimator, folder = load_estimator(options.config, overrides), Path(options.config).parent
    from gvm_ray.estimator.plan import planned_arms

    arms = planned_arms(estimator, folder=folder)
    if options.dry_run:
        print("\n".join([*(f"{arm.algorithm}/{arm.name}" for arm in arms), describe_estimator(estimator)]))
        return 0
    from gvm_ray.estimator.measure import measure

    print(measure(estimator, folder=folder, output=None if options.output is None else Path(options.output)))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from gvm_ray.bench.suite import BenchOptions, part_names, run_parts, select

    if options.list:
        print("\n".join(part_names()))
        return 0
    names = select(options.names)
    from gvm_ray.bench.table import BenchReport, Machine

    results = run_parts(
        names,
        BenchOptions(quick=options.quick, trl_python=options.trl_python),
        on_start=lambda name: print(f"measuring {name} ...", file=sys.stderr, flush=True),
    )
    report = BenchReport(machine=Machine.here(), quick=options.quick, results=results)
    print(report.markdown())
    if options.output is not None:
        report.write(Path(options.output))
    return 1 if report.failed else 0


def describe_estimator(estimator: EstimatorConfig) -> str:
    """What would be measured, in words."""
    num_warm_up = estimator.num_warm_up_prompts if estimator.warm_up_steps else 0
    return (
        f"{estimator.num_repeats} repeats of each, on {estimator.num_samples} samples of {estimator.num_prompts} "
        f"prompts and of {num_warm_up} to warm up on"
    )


def describe(config: RunConfig) -> str:
    """What would run, in words: the resolved settings and the sizes that follow from them."""
    engine, learner = config.engine, config.learner
    per_update = config.samples_per_step / config.algorithm.updates_per_batch
    return "\n".join(
        [
            config.model_dump_json(indent=2),
            f"run              {config.runs_dir}/{config.name}",
            f"algorithm        {config.algorithm.type} ({config.algorithm.weighting})",
            f"allocator        {config.allocator.type}",
            f"steps            {config.num_steps} of {config.prompts_per_step} prompts and "
            f"{config.samples_per_step} samples",
            f"updates          {config.algorithm.updates_per_batch} a step, about {per_update:g} samples each",
            f"generators       {engine.num_generators} ({engine.type}), {engine.cpus_per_generator:g} CPUs and "
            f"{engine.gpus_per_generator:g} GPUs each",
            f"learners         {learner.num_workers} (FSDP2), {learner.cpus_per_worker:g} CPUs and "
            f"{learner.gpus_per_worker:g} GPUs each",
            f"reward actors    {config.rewards.num_actors}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
