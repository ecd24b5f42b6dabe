"""`gvm-ray train`."""

import argparse

from gvm_ray.cli.options import Commands, add_config
from gvm_ray.config import RunConfig, load_config


def add_to(commands: Commands) -> None:
    """Add the command."""
    train = commands.add_parser("train", help="train a policy", description="Train a policy as a TOML file describes.")
    add_config(train, what="the run's settings")
    train.add_argument("--resume", action="store_true", help="continue the run of this name from its last checkpoint")
    train.add_argument("--overwrite", action="store_true", help="replace an earlier run of this name")
    train.add_argument("--dry-run", action="store_true", help="check the settings, print what would run, and stop")
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    if options.dry_run:
        print(describe(config))
        return 0
    from gvm_ray.run import train

    train(config, resume=options.resume, overwrite=options.overwrite)
    return 0


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
