"""`gvm-ray train`."""

import argparse
import os
from pathlib import Path

from gvm_ray.cli.options import Commands, add_configs
from gvm_ray.config import RunConfig, load_config
from gvm_ray.config.prompts import FileSourceConfig
from gvm_ray.resources import find_hardware, plan_resources, sizes_of_settings


def add_to(commands: Commands) -> None:
    """Add the command."""
    train = commands.add_parser("train", help="train a policy", description="Train a policy as TOML files describe.")
    add_configs(train, what="the run's settings, in one or several files; a later file overrides an earlier one")
    train.add_argument("--resume", action="store_true", help="continue the run of this name from its last checkpoint")
    train.add_argument("--overwrite", action="store_true", help="replace an earlier run of this name")
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="check the settings, print what would run and the memory it needs, and stop",
    )
    train.add_argument(
        "--push-to-hub",
        metavar="OWNER/NAME",
        help="upload the trained model to this repository of the Hugging Face Hub, which is made, private, if need be",
    )
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
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
    """The run in words: the resolved settings and the sizes that follow from them."""
    per_update = config.samples_per_step / config.algorithm.updates_per_batch
    prefill = [] if config.prompt_states is None else [f"prefill          {describe_prefill(config)}"]
    norms = [f"gradient norms   {words}" for words in describe_gradient_norms(config)]
    return "\n".join(
        [
            config.model_dump_json(indent=2),
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
            *(f"missing          {path}: the run is refused until this file exists" for path in missing_files(config)),
        ]
    )


def missing_files(config: RunConfig) -> list[str]:
    """The files of prompts and demonstrations that don't exist."""
    warm_start = config.warm_start
    sources = [config.prompts.train, config.prompts.eval, None if warm_start is None else warm_start.source]
    paths = dict.fromkeys(source.path for source in sources if isinstance(source, FileSourceConfig))
    return [path for path in paths if not Path(os.path.expanduser(path)).exists()]


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
