"""`gvm-ray train`."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from gvm_ray.cli.options import Commands, add_configs
from gvm_ray.config import RunConfig, load_config
from gvm_ray.exceptions import DataError, existing_place, obstacle_to_writing
from gvm_ray.resources import actor_groups, find_gpus, find_hardware, plan_resources, sizes_of_settings
from gvm_ray.tasks.prompt_set import check_source


def add_to(commands: Commands) -> None:
    """Add the command."""
    train = commands.add_parser("train", help="train a policy", description="Train a policy as TOML files describe.")
    add_configs(train, what="the run's settings, in one or several files; a later file overrides an earlier one")
    train.add_argument("--resume", action="store_true", help="continue the run of this name from its last checkpoint")
    train.add_argument("--overwrite", action="store_true", help="replace an earlier run of this name")
    instead = train.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="check the settings, print what would run and the memory it needs, and stop",
    )
    instead.add_argument(
        "--print-config",
        action="store_true",
        help="check the settings, print all of them with their defaults as JSON (a run's config.json), and stop",
    )
    train.add_argument(
        "--push-to-hub",
        metavar="OWNER/NAME",
        help="upload the trained model to this repository of the Hugging Face Hub, which is made, private, if need be",
    )
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    if options.print_config:
        print(config.model_dump_json(indent=2))
        return 0
    if options.dry_run:
        print(describe(config))
        plan = plan_resources(config, sizes_of_settings(config.model), find_hardware(config))
        print("\n".join(plan.lines()))
        plan.check()
        return 0
    from gvm_ray.model_hub import check_push, push_model

    if options.push_to_hub is not None:
        check_push(options.push_to_hub)
    from gvm_ray.run import train

    train(config, resume=options.resume, overwrite=options.overwrite)
    if options.push_to_hub is not None:
        model = Path(config.runs_dir) / config.name / "model"
        print(f"model pushed: {push_model(model, options.push_to_hub)}", flush=True)
    return 0


def describe(config: RunConfig) -> str:
    """The run in words, with the sizes that follow from its settings, and what it lacks here."""
    per_update = config.samples_per_step / config.algorithm.updates_per_batch
    prefill = [] if config.prompt_states is None else [f"prefill          {describe_prefill(config)}"]
    norms = [f"gradient norms   {words}" for words in describe_gradient_norms(config)]
    return "\n".join(
        [
            f"run              {config.runs_dir}/{config.name}",
            f"algorithm        {config.algorithm.type} ({config.algorithm.weighting})",
            f"allocator        {config.allocator.type}",
            f"steps            {config.num_steps} of {config.prompts_per_step} prompts and "
            f"{config.samples_per_step} samples",
            *prefill,
            *norms,
            f"updates          {config.algorithm.updates_per_batch} per step, about {per_update:g} samples each",
            f"engine           {config.engine.type}",
            f"new weights      {_describe_new_weights(config)}",
            *(f"missing          {words}" for words in missing(config)),
        ]
    )


def missing(config: RunConfig) -> Iterator[str]:
    """The reasons for which the run would be refused here and now: data, GPUs, a place for its folder."""
    for setting, source in config.sources.items():
        try:
            check_source(source, setting=setting)
        except DataError as error:
            yield str(error)
    needed = sum(group.number * group.gpus for group in actor_groups(config))
    elsewhere = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if needed and not elsewhere and (found := len(find_gpus())) < needed:
        lack = f"GPUs: the run needs {needed:g} and this machine has {found}"
        yield f"{lack}; take one that has them, or write cluster.address"
    folder = Path(config.runs_dir).absolute() / config.name
    if obstacle := obstacle_to_writing(existing_place(folder)):
        yield f"a place for {str(folder)!r}: it can't be written ({obstacle}); write runs_dir=FOLDER"


def _describe_new_weights(config: RunConfig) -> str:
    lora, whole = config.learner.lora, f"by {config.weight_transfer()}"
    if lora is None or lora.sync == "merge":
        return whole
    return "adapters by object_store" + (f" if the engine takes them, else {whole}" if lora.sync == "auto" else "")


def describe_prefill(config: RunConfig) -> str:
    """The most prompt tokens that a step prefills for the allocator's hidden states, and the most it generates."""
    candidates, prompt_tokens = config.needs.shortlist or config.candidates_per_step, config.prompts.max_tokens
    if config.prompt_states == "embedding":
        return f"none: input embeddings of at most {candidates:,} prompts per step are looked up"
    prefilled = candidates * prompt_tokens
    generated = config.samples_per_step * config.allocator.max_budget_factor * config.sampling.max_tokens
    charged = config.prefill_price * prefilled
    text = (
        f"at most {candidates:,} prompts x {prompt_tokens:,} tokens = {prefilled:,} per step, charged as "
        f"{charged:,.0f}; at most {generated:,} tokens are generated"
    )
    if config.learner.packing in ("auto", "shared"):
        text += "; what all prompts begin with is read and charged once in a micro-batch, if the model's attention can"
    if charged > generated and getattr(config.allocator, "candidates_per_step", None) is not None:
        text += "; a lower allocator.candidates_per_step saves most of it"
    return text


def describe_gradient_norms(config: RunConfig) -> list[str]:
    """The passes over prompts that gradient norms take, none of which is charged; empty without gradient norms."""
    passes = []
    if config.needs.pilot_norms is not None:
        passes.append("of accepted pilots: each is read with its own prompt, forward and backward, at no charge")
    if config.training_gradient_norms:
        passes.append("of all samples trained on: in the update's own pass, where each reads its own prompt")
    return passes
