"""Preparation of a run: all checks that are possible before an actor starts, of model, prompts, rewards and sizes."""

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gvm_ray.algorithms import create_algorithm, token_loss
from gvm_ray.config import RunConfig
from gvm_ray.config.model import PretrainedModelConfig, ScratchModelConfig
from gvm_ray.config.prompts import FunctionSourceConfig, GeneratedSourceConfig
from gvm_ray.engines import EngineKind, resolve_engine
from gvm_ray.engines.adapters import adapter_drawback, adapter_obstacle
from gvm_ray.envs.environments import create_environment
from gvm_ray.exceptions import ConfigError, DataError, obstacle_to_writing
from gvm_ray.learner.lora import adapter_spec, add_adapters, check_target_modules
from gvm_ray.learner.model_folder import try_model_folder
from gvm_ray.learner.model_trial import check_output
from gvm_ray.learner.policy import output_head
from gvm_ray.learner.scratch_model import build_scratch_model, warm_start_key
from gvm_ray.model_files import check_tied_weights, check_weight_files
from gvm_ray.pretrained import (
    check_not_quantized,
    check_published_names,
    check_vocabulary,
    empty_causal_lm,
    find_embeddings,
    load_end_token_ids,
    load_generation_config,
    load_model_config,
    load_tokenizer,
    read_model_sizes,
)
from gvm_ray.resources import find_hardware, plan_resources
from gvm_ray.rewards import create_reward
from gvm_ray.rewards.math_verify import can_parse_answer
from gvm_ray.tasks.demonstrations import RationaleReport, check_rationales
from gvm_ray.tasks.prompt_set import PromptSets, check_source, load_prompts
from gvm_ray.tasks.rows import Task
from gvm_ray.tasks.sources.function import find_function
from gvm_ray.tasks.templates import reads_date
from gvm_ray.types import AdapterSpec, Completion, ModelSpec, Prompt, WeightTransfer


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """The starting policy, as a Hugging Face folder or hub id."""

    path: str
    revision: str | None = None  # of a hub id
    trust_remote_code: bool = False
    warm_start_folder: Path | None = None  # folder for the warm start's result; None if it needn't run


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A checked run, ready to start its actors."""

    base: BaseModel
    prompts: PromptSets
    rationales: RationaleReport | None = None  # of the warm start to come; None without one, or if they are generated
    tokenizer: Any
    engine_kind: EngineKind
    max_model_len: int  # prompt and response tokens
    end_token_ids: frozenset[int] = frozenset()  # each of them ends a response
    transfer: WeightTransfer = "object_store"
    adapters: AdapterSpec | None = None  # if given, new weights are these adapters
    whole_because: str | None = None  # reason why new weights are whole although adapters are trained
    left_out_of_export: tuple[str, ...] = ()  # generation settings that contradict others
    changing_options: tuple[str, ...] = ()  # of the engine, which change the distribution that it samples from

    @property
    def model(self) -> ModelSpec:
        """The starting policy, as the generators' engines load it."""
        return ModelSpec(
            path=self.base.path,
            max_model_len=self.max_model_len,
            revision=self.base.revision,
            trust_remote_code=self.base.trust_remote_code,
            transfer=self.transfer,
            adapters=self.adapters,
        )


def prepare(
    config: RunConfig, *, run_dir: Path, load: Callable[..., PromptSets] = load_prompts, learners: bool = True
) -> Prepared:
    """Check everything that can be checked without a cluster, build or find the base model, and load the prompts.

    Args:
        config: the run.
        run_dir: its folder.
        load: replaces `load_prompts`, for a caller that already has the prompts.
        learners: False if nothing is trained; then learner memory and the prompts of a step aren't checked.

    Raises:
        UserError: a setting, file, model or data row is wrong.
    """
    _check_first(config, data=load is load_prompts, learners=learners)
    engine_kind = resolve_engine(config.engine)
    transfer = _transfer(config, engine_kind) if learners else "object_store"
    _create_parts(config)
    base = find_base_model(config, run_dir=run_dir)
    tokenizer = load_tokenizer(base.path, revision=base.revision, trust_remote_code=base.trust_remote_code)
    max_model_len = config.prompts.max_tokens + config.sampling.max_tokens
    model_config = load_model_config(base.path, revision=base.revision, trust_remote_code=base.trust_remote_code)
    _check_context_length(model_config, max_model_len)
    attention = "sdpa" if learners else None
    empty = empty_causal_lm(model_config, trust_remote_code=base.trust_remote_code, attention=attention)
    check_vocabulary(tokenizer, empty.config)
    check_weight_files(base.path)
    check_tied_weights(base.path, empty.config)
    left_out, adapters, whole_because = (), None, None
    if learners:
        left_out = _try_training(config, base, empty, tokenizer=tokenizer, kind=engine_kind)
        adapters, whole_because = _adapters(config, base, empty, kind=engine_kind)
    sizes = read_model_sizes(base.path, revision=base.revision)
    plan_resources(config, sizes, find_hardware(config), learners=learners).check()
    prompts = _load_prompts(config, tokenizer, load=load, learners=learners)
    return Prepared(
        base=base,
        prompts=prompts,
        rationales=_rationales(config, base) if learners else None,
        tokenizer=tokenizer,
        end_token_ids=load_end_token_ids(base.path, tokenizer=tokenizer, revision=base.revision),
        engine_kind=engine_kind,
        max_model_len=max_model_len,
        transfer=transfer if adapters is None else "object_store",
        adapters=adapters,
        whole_because=whole_because,
        left_out_of_export=left_out,
        changing_options=tuple(config.engine.vllm.changing_given),
    )


def _check_first(config: RunConfig, *, data: bool, learners: bool) -> None:
    """Check what takes no time."""
    if data:
        check_data(config)
    if learners:
        _check_micro_batch(config)


def check_data(config: RunConfig) -> None:
    """Refuse a run one of whose data files, folders or functions is missing, before the model is loaded.

    Raises:
        UserError: it names the setting.
    """
    for setting, source in config.sources.items():
        check_source(source, setting=setting)
        if isinstance(source, FunctionSourceConfig):
            try:
                find_function(source.path)
            except ConfigError as error:
                raise ConfigError(f"{setting}.path: {error}") from error


def _load_prompts(config: RunConfig, tokenizer: Any, *, load: Callable[..., PromptSets], learners: bool) -> PromptSets:
    verified = any(term.type == "math_verify" for term in config.rewards.terms)
    prompts = load(config.prompts, tokenizer, verify_answer=can_parse_answer if verified else None)
    if learners:
        _check_batch(config, len(prompts.train))
    return prompts


def with_date(config: RunConfig, *, earlier: datetime.date | None = None) -> RunConfig:
    """The run with a fixed date for a chat template that prints today's: `earlier`, or else today.

    Unchanged if its settings name a date, or if no prompt depends on the date.

    Raises:
        UserError: the tokenizer or its chat template can't be used.
    """
    model, template = config.model, config.prompts.template
    if template.type == "plain" or template.date is not None or not isinstance(model, PretrainedModelConfig):
        return config
    tokenizer = load_tokenizer(model.path, revision=model.revision, trust_remote_code=model.trust_remote_code)
    if not reads_date(template, tokenizer=tokenizer):
        return config
    dated = template.model_copy(update={"date": earlier or datetime.date.today()})
    return config.model_copy(update={"prompts": config.prompts.model_copy(update={"template": dated})})


def check_date(config: RunConfig, tokenizer: Any) -> None:
    """Refuse prompts that change from day to day, for work that takes several runs or days.

    Raises:
        ConfigError: the chat template prints the date, and no setting fixes it.
    """
    template = config.prompts.template
    if template.date is None and reads_date(template, tokenizer=tokenizer):
        raise ConfigError(
            "the tokenizer's chat template prints today's date, so prompts would change from day to day; write one "
            f"date for all runs: prompts.template.date='{datetime.date.today()}'"
        )


def _try_training(
    config: RunConfig, base: BaseModel, causal_lm: Any, *, tokenizer: Any, kind: EngineKind
) -> tuple[str, ...]:
    """Try what learners do with the model, without its weights; return the generation settings left out of exports."""
    check_not_quantized(causal_lm.config)
    check_output(causal_lm, output_head, base.path)
    if config.learner.lora is not None:
        check_target_modules(causal_lm, config.learner.lora)
    if kind == "vllm":
        check_published_names(causal_lm, base.path)
    if config.prompt_states == "embedding" and Path(base.path).is_dir():  # a hub id's weights may not be here yet
        find_embeddings(causal_lm, base.path)
    generation_config, left_out = load_generation_config(base.path, revision=base.revision)
    try_model_folder(
        causal_lm,
        generation_config=generation_config,
        tokenizer=tokenizer,
        trust_remote_code=base.trust_remote_code,
    )
    return left_out


def _adapters(
    config: RunConfig, base: BaseModel, causal_lm: Any, *, kind: EngineKind
) -> tuple[AdapterSpec | None, str | None]:
    """The adapters that generators get, or the reason why they get whole weights; adds adapters to the model.

    Raises:
        ConfigError: the settings ask for adapters, and the engine can't take them.
    """
    lora = config.learner.lora
    if lora is None or lora.sync == "merge":
        return None, None
    add_adapters(causal_lm, lora, seed=0)
    adapters = adapter_spec(causal_lm, lora)
    if base.warm_start_folder is not None:
        obstacle = "engines load the model as it is before this run's warm start"
    else:
        obstacle = adapter_obstacle(kind, config.engine, adapters)
    if lora.sync == "auto":
        if config.weight_sync.transfer not in ("auto", "object_store"):
            obstacle = obstacle or f"weight_sync.transfer={config.weight_sync.transfer!r}"
        obstacle = obstacle or adapter_drawback(
            kind, config.engine, architectures=causal_lm.config.architectures or [type(causal_lm).__name__]
        )
    elif obstacle is not None:
        raise ConfigError(
            f"learner.lora.sync='adapter', but {obstacle}; write learner.lora.sync='merge', or leave it 'auto'"
        )
    return (adapters, None) if obstacle is None else (None, obstacle)


def find_base_model(config: RunConfig, *, run_dir: Path) -> BaseModel:
    """The cached warm-started model, if any, else the model itself; a scratch model is built in the run folder."""
    model, target = config.model, _warm_start_folder(config, run_dir)
    trusted = isinstance(model, PretrainedModelConfig) and model.trust_remote_code
    if target is not None and (target / "config.json").is_file():
        return BaseModel(path=str(target), trust_remote_code=trusted)
    match model:
        case PretrainedModelConfig(path=path, revision=revision):
            return BaseModel(path=path, revision=revision, trust_remote_code=trusted, warm_start_folder=target)
        case ScratchModelConfig():
            folder = run_dir / "base"
            if not (folder / "config.json").is_file():
                build_scratch_model(model, folder)
            return BaseModel(path=str(folder), warm_start_folder=target)


def _warm_start_folder(config: RunConfig, run_dir: Path) -> Path | None:
    if config.warm_start is None:
        return None
    # The cache can't tell whether a function's data has changed.
    by_function = any(
        isinstance(source, FunctionSourceConfig) for source in (config.demonstrated.train, config.prompts.eval)
    )
    if not config.warm_start.cache or by_function:
        return run_dir / "warm_start"
    cache = os.environ.get("GVM_RAY_CACHE") or os.path.expanduser("~/.cache/gvm_ray")
    key = warm_start_key(
        config.model, prompts=config.demonstrated, warm_start=config.warm_start, dtype=config.learner.dtype
    )
    folder = Path(cache) / "warm_start" / key
    if not folder.is_dir() and (obstacle := obstacle_to_writing(folder.parent)):
        raise ConfigError(
            f"the cache of warm starts {str(folder.parent)!r} can't be written ({obstacle}); set GVM_RAY_CACHE to a "
            "writable folder, or write warm_start.cache=false, which keeps the result in the run's folder"
        )
    return folder


def _transfer(config: RunConfig, engine_kind: EngineKind) -> WeightTransfer:
    try:
        return config.weight_transfer(engine_kind)
    except ValueError as error:  # engine.type='auto' resolved to another engine than vLLM
        raise ConfigError(str(error)) from error


def _check_context_length(model_config: Any, max_model_len: int) -> None:
    limit = getattr(model_config, "max_position_embeddings", None)
    if limit is not None and max_model_len > limit:
        raise ConfigError(
            f"prompts.max_tokens + sampling.max_tokens = {max_model_len} is more than the model's context of {limit} "
            f"tokens; lower one of them"
        )


def _rationales(config: RunConfig, base: BaseModel) -> RationaleReport | None:
    if base.warm_start_folder is None or isinstance(config.demonstrated.train, GeneratedSourceConfig):
        return None
    judged = all(term.type in ("math_verify", "exact") for term in config.rewards.terms)  # takes milliseconds
    return check_rationales(config.demonstrated, is_right=_judge(config) if judged else None)


def _judge(config: RunConfig) -> Callable[[Task], bool]:
    """The run's reward of a task's rationale as if it were a response."""
    reward, none = create_reward(config.rewards), np.zeros(0, dtype=np.int32)

    def is_right(task: Task) -> bool:
        prompt = Prompt(prompt_id=task.prompt_id, text=task.problem, token_ids=none, answer=task.answer)
        rationale = Completion(
            token_ids=none,
            logprobs=none.astype(np.float32),
            policy_versions=none,
            finish_reason="stop",
            text=task.rationale or "",
        )
        return reward(prompt, rationale) >= config.rewards.accept_threshold

    return is_right


def _create_parts(config: RunConfig) -> None:
    """Create everything that may be a user's own code, once, to see that it can be created."""
    create_reward(config.rewards)
    create_environment(config.environment)
    config.allocator.build(accept_threshold=config.rewards.accept_threshold, seed=config.seed)
    create_algorithm(config.algorithm, accept_threshold=config.rewards.accept_threshold)
    token_loss(config.algorithm)


def _check_micro_batch(config: RunConfig) -> None:
    """Refuse a micro-batch that the longest sample exceeds: the memory plan counts on the bound."""
    bound, prompt, response = config.learner.micro_batch_tokens, config.prompts.max_tokens, config.sampling.max_tokens
    if bound < prompt + response:
        raise ConfigError(
            f"learner.micro_batch_tokens={bound} is below the {prompt + response} tokens of one prompt and its longest "
            f"response, prompts.max_tokens={prompt} + sampling.max_tokens={response}, and a sample isn't divided; "
            f"write learner.micro_batch_tokens={prompt + response} or more, or lower one of the other two"
        )


def _check_batch(config: RunConfig, num_train_prompts: int) -> None:
    needed = config.prompts_per_step * config.block_steps
    if needed > num_train_prompts:
        raise DataError(
            f"prompts_per_step={config.prompts_per_step}"
            + (f" x allocator.block_steps={config.block_steps}" if config.block_steps > 1 else "")
            + f" needs {needed} training prompts and {num_train_prompts} are left after loading; lower it, or add "
            "prompts"
        )


def report_lines(prepared: Prepared) -> Sequence[str]:
    """Lines for the console about the loaded prompts, the model and the engine."""
    return [
        *prepared.prompts.report.lines(),
        *([] if prepared.rationales is None else prepared.rationales.lines("warm start")),
        f"model {prepared.base.path}" + (", to be warm-started" if prepared.base.warm_start_folder is not None else ""),
        _engine_line(prepared),
        *(
            f"{option} changes the distribution that samples come from: importance weights correct for it, and "
            "logprob_difference/mean shows by how much"
            for option in prepared.changing_options
        ),
        *_left_out_lines(prepared),
    ]


def _engine_line(prepared: Prepared) -> str:
    sent = "weights" if prepared.adapters is None else "adapters"
    why = f", adapters merged in: {prepared.whole_because}" if prepared.whole_because else ""
    return f"engine {prepared.engine_kind}, {sent} by {prepared.transfer}{why}"


def _left_out_lines(prepared: Prepared) -> Sequence[str]:
    if not (names := prepared.left_out_of_export):
        return []
    return [
        f"warning: generation settings of {prepared.base.path} that contradict the others there aren't exported: "
        + ", ".join(names)
    ]
