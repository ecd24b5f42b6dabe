"""The settings of a whole run."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gvm_ray.allocators import AllocatorSettings
from gvm_ray.allocators.base import Needs, PromptStates, RunShape
from gvm_ray.allocators.gvm_pool import GVMPoolAllocatorConfig
from gvm_ray.config.cluster import ClusterConfig, TransferSituation, WeightSyncConfig, check_gpus, choose_transfer
from gvm_ray.config.engine import EngineConfig, GreedyTemperature, SamplingConfig
from gvm_ray.config.environments import EnvironmentSettings, SingleTurnConfig, with_environment
from gvm_ray.config.model import LearnerConfig, ModelSettings, WarmStartConfig
from gvm_ray.config.prompts import (
    ChainSourceConfig,
    EnvironmentSourceConfig,
    PromptsConfig,
    ReasoningGymSourceConfig,
    SourceSettings,
)
from gvm_ray.config.rewards import EnvironmentRewardConfig, RewardsConfig
from gvm_ray.config.strategy import AlgorithmSettings, RaftPlusPlusConfig, check_accept_rates, check_baselines
from gvm_ray.settings import Count, NonNegative, NonNegativeCount, Positive, Settings
from gvm_ray.types import WeightTransfer


class EvaluationConfig(Settings):
    """Evaluation on prompts.eval: at the start, every `every_steps` steps, after each of `at_steps`, and at the end."""

    every_steps: Count = 10  # each costs num_prompts x num_samples samples, which aren't charged
    at_steps: tuple[Count, ...] = ()  # numbers of steps after which to evaluate as well, while accuracy rises fastest
    # Generators like those of [engine], for evaluation alone: training continues meanwhile, and waits only if an
    # evaluation is unfinished when the next one is due. 0 = evaluate on the training generators while training waits;
    # the evaluations before the first step and after the last always do.
    num_generators: NonNegativeCount = 0
    num_prompts: Count | None = None  # the number of prompts, from the first on; none = all
    num_samples: Count = 1  # k of avg@k
    # Of evaluation alone; training has sampling.temperature. 0 = greedy decoding: always the likeliest token.
    temperature: GreedyTemperature = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0  # total probability of the tokens that may be sampled
    # Training prompts sampled before the first step, samples_per_prompt times each (at least 4), for the accept rates
    # that the run starts from. A starting policy that solves none or all of them gets a warning. 0 = none.
    base_prompts: NonNegativeCount = 32
    # Seeds of an evaluation's samples: new ones each time, whose errors average out along a curve; or the same each
    # time, so that two policies differ by less noise.
    fresh_seeds: bool = False

    @model_validator(mode="after")
    def _samples_differ(self) -> "EvaluationConfig":
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"temperature=0 is greedy decoding, which would give the same response num_samples={self.num_samples} "
                "times; write num_samples=1, or a temperature above 0"
            )
        return self

    def is_due(self, num_steps: int) -> bool:
        """True if the policy after this number of steps is evaluated, apart from the first and the last one."""
        return num_steps % self.every_steps == 0 or num_steps in self.at_steps


class CheckpointConfig(Settings):
    """Checkpoints: atomic folders in the run's folder."""

    every_steps: Count = 50  # steps between two: at most so many are made again after a failure
    keep: Count = 2  # newest checkpoints on disk; each has the weights and two moments of the optimizer


class DeadlineConfig(Settings):
    """The longest time that each wait may take; after it the actor or learner counts as failed."""

    start_s: Positive = 600.0  # actors and learners to start
    sample_s: Positive = 1800.0  # one round of sampling and scoring
    update_s: Positive = 1800.0  # one learner command: update, gradient norms, save
    sync_s: Positive = 300.0  # new weights in every generator; each phase if they are sent directly

    @property
    def transfer_s(self) -> float:
        """The deadline for all phases of weights that the learners send."""
        return self.start_s + self.sample_s + 4 * self.sync_s

    @property
    def handover_s(self) -> float:
        """The deadline for sending an update's weights: the learners' restart, the repeated work, and a transfer."""
        return self.transfer_s + self.start_s + 2 * self.update_s


class FaultsConfig(Settings):
    """Failures of actors and nodes (dead or hung) that a run recovers from; one more within the window ends it."""

    max_failures: NonNegativeCount = 20  # 0 = the first failure ends the run
    window_s: Positive = 3600.0  # seconds in which they are counted


class WandbConfig(Settings):
    """Weights & Biases, by the extra `wandb`. A resumed run goes on as the same run there."""

    project: str = "gvm-ray"
    entity: str | None = None  # user or team; none = the account's default
    # "offline" writes files only, which `wandb sync` uploads later. "online" goes on offline, and says so, if the
    # server can't be reached when the run starts.
    mode: Literal["online", "offline"] = "online"


class SinkConfig(Settings):
    """A sink of your own: any importable `module:Class` with the methods of `gvm_ray.reporting.Sink`.

    It is called with the run's settings, and the parameters as keywords.
    """

    path: str = Field(pattern=r"^[\w.]+:[\w.]+$")  # of the class, e.g. "my_package.sinks:MySink"
    # Keyword arguments of the class, besides the run's settings.
    parameters: dict[str, Any] = Field(default_factory=dict)


class ReportingConfig(Settings):
    """Reports of a run besides metrics.jsonl. A sink that fails doesn't end the run."""

    tensorboard: bool = True  # event files in the run's folder
    ray_metrics: bool = True  # gauges on Ray's metrics endpoint, for Prometheus and Grafana
    wandb: WandbConfig | None = None
    sinks: tuple[SinkConfig, ...] = ()
    progress: bool = True  # lines on the console while a long phase is under way; false for logs
    samples_every_steps: NonNegativeCount = 10  # steps between kept texts of the best and worst response; 0 = none


class RunConfig(Settings):
    """All settings of a run. Loaded from TOML by `load_config`; saved with all defaults as config.json."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")  # the run's folder is runs_dir/name
    # A place with room for checkpoints and the model, which every node of a cluster sees.
    runs_dir: str = Field(default="runs", pattern=r"^[^\x00]*$")
    seed: NonNegativeCount = 0  # of sampling, the prompts' order and the allocator
    num_steps: Count = 100  # each draws a budget of samples and trains on it
    token_budget: Count | None = None  # charged tokens after which the run ends before num_steps; none = no limit
    prefill_price: NonNegative = 1.0  # charge, in generated tokens, for a token prefilled only for the allocator
    prompts_per_step: Count = 64  # prompts of a step; an allocator that selects may sample fewer or more of them
    samples_per_prompt: Count = 8  # the budget of a step is prompts_per_step * samples_per_prompt
    max_staleness: NonNegativeCount = 0  # steps that sampling may run ahead of training; 0 = strictly on-policy
    max_unscored_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5  # of one step's samples; above it the run stops
    model: ModelSettings
    prompts: PromptsConfig
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    environment: EnvironmentSettings = SingleTurnConfig()
    rewards: RewardsConfig = RewardsConfig()
    allocator: AllocatorSettings = GVMPoolAllocatorConfig()
    algorithm: AlgorithmSettings = RaftPlusPlusConfig()
    learner: LearnerConfig = LearnerConfig()
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    warm_start: WarmStartConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    deadlines: DeadlineConfig = DeadlineConfig()
    faults: FaultsConfig = FaultsConfig()
    cluster: ClusterConfig = ClusterConfig()
    reporting: ReportingConfig = ReportingConfig()

    @property
    def samples_per_step(self) -> int:
        """The sample budget of one step."""
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def block_steps(self) -> int:
        """The number of steps that share one allocation."""
        return self.needs.block_steps

    @property
    def candidates_per_step(self) -> int:
        """The number of prompts shown to the allocator in a step. An allocator that doesn't select samples them all."""
        return self.needs.candidates

    @property
    def needs(self) -> Needs:
        """The allocator's requirements."""
        return self.allocator.needs(self._shape)

    @property
    def _shape(self) -> RunShape:
        return RunShape(
            prompts_per_step=self.prompts_per_step,
            samples_per_prompt=self.samples_per_prompt,
            max_staleness=self.max_staleness,
            checkpoint_every_steps=self.checkpoint.every_steps,
            max_prompt_tokens=self.prompts.max_tokens,
            max_response_tokens=self.sampling.max_tokens,
            prefill_price=self.prefill_price,
        )

    @property
    def sources(self) -> dict[str, SourceSettings]:
        """The sources of prompts and demonstrations, by their settings."""
        warm_start = self.warm_start
        sources = {
            "prompts.train": self.prompts.train,
            "prompts.eval": self.prompts.eval,
            "warm_start.source": None if warm_start is None else warm_start.source,
        }
        return {name: source for name, source in sources.items() if source is not None}

    @property
    def demonstrated(self) -> PromptsConfig:
        """The prompts whose rationales the warm start learns, as `train`."""
        source = None if self.warm_start is None else self.warm_start.source
        return self.prompts if source is None else self.prompts.model_copy(update={"train": source})

    @property
    def demonstration_source(self) -> str:
        """The name of the setting with the warm start's problems, for messages."""
        return "prompts.train" if self.demonstrated is self.prompts else "warm_start.source"

    @property
    def generators_sleep(self) -> bool:
        """True if generators free their shared GPUs while the learners work."""
        return self.cluster.placement == "colocated" and self.engine.sleep

    @property
    def max_skipped_updates(self) -> int:
        """The number of consecutive optimizer updates with a non-finite gradient that stops the run."""
        return self.learner.max_skipped_updates or 3 * self.algorithm.updates_per_batch

    @property
    def prompt_states(self) -> PromptStates | None:
        """The hidden states or embeddings of prompts that the allocator needs; None if it needs neither."""
        return self.needs.states

    @property
    def training_gradient_norms(self) -> bool:
        """True if the allocator needs the gradient norm of every trained sample."""
        return self.needs.training_norms

    def weight_transfer(self, engine: str | None = None) -> WeightTransfer:
        """The transfer of whole weights to generators with this engine, or with `engine.type`.

        Raises:
            ValueError: `weight_sync.transfer` doesn't fit the run's other settings.
        """
        situation = TransferSituation(
            engine=engine or self.engine.type,
            learner_gpus=self.learner.gpus_per_worker,
            generator_gpus=self.engine.gpus_per_generator,
            colocated=self.cluster.placement == "colocated",
        )
        return choose_transfer(self.weight_sync.transfer, situation)

    @model_validator(mode="after")
    def _other_distributions_are_corrected(self) -> "RunConfig":
        if self.engine.vllm.changing_given and self.algorithm.importance.level == "off":
            raise ValueError(
                f"{' and '.join(self.engine.vllm.changing_given)} changes the distribution that samples come from, and "
                "algorithm.importance.level='off' leaves that uncorrected; write algorithm.importance.level='token', "
                "or remove the option"
            )
        return self

    @model_validator(mode="after")
    def _weights_can_travel(self) -> "RunConfig":
        self.weight_transfer()
        lora, transfer = self.learner.lora, self.weight_sync.transfer
        if lora is not None and lora.sync == "adapter" and transfer not in ("auto", "object_store"):
            raise ValueError(
                f"learner.lora.sync='adapter' goes through the object store, but weight_sync.transfer={transfer!r}; "
                "leave out weight_sync.transfer, or write learner.lora.sync='merge'"
            )
        return self

    @model_validator(mode="after")
    def _allocator_fits(self) -> "RunConfig":
        if self.candidates_per_step < self.prompts_per_step:
            raise ValueError(
                f"allocator.candidates_per_step={self.candidates_per_step} is below "
                f"prompts_per_step={self.prompts_per_step}; write a multiple of it, e.g. {self.prompts_per_step * 16}"
            )
        self.allocator.check_fits(self._shape)
        check_baselines(self.allocator, self.algorithm, self._shape)
        check_accept_rates(self.allocator, self.algorithm)
        return self

    @model_validator(mode="after")
    def _gpus_fit(self) -> "RunConfig":
        check_gpus(self)
        return self

    @model_validator(mode="before")
    @classmethod
    def _environment_is_written_once(cls, data: Any) -> Any:
        """Sources and rewards of type `environment` take that of [environment] where they name none."""
        return with_environment(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _rewards_fit_source(self) -> "RunConfig":
        scored_by_gym = any(term.type == "reasoning_gym" for term in self.rewards.terms)
        if scored_by_gym and not isinstance(self.prompts.train, ReasoningGymSourceConfig):
            raise ValueError(
                f"rewards.terms has 'reasoning_gym', but prompts.train is {self.prompts.train.type!r}, which has no "
                "such scorer; write rewards.terms = [{type = 'math_verify'}], or prompts.train.type = 'reasoning_gym'"
            )
        return self

    @model_validator(mode="after")
    def _environments_are_named(self) -> "RunConfig":
        sources = {"prompts.train": self.prompts.train, "prompts.eval": self.prompts.eval}
        rewards = [("rewards.terms", term) for term in self.rewards.terms]
        kinds = (EnvironmentSourceConfig, EnvironmentRewardConfig)
        parts = [(name, part) for name, part in [*sources.items(), *rewards] if isinstance(part, kinds)]
        for name, part in parts:
            if part.environment is None:
                raise ValueError(
                    f"{name} has type 'environment', but [environment] is {self.environment.type!r}; write "
                    "environment = { type = 'verifiers', id = '...' }"
                )
        named = [(part.environment.type, part.environment.id) for _, part in parts if part.environment is not None]
        if len({*named}) > 1:
            shown = " and ".join(f"{kind} {name!r}" for kind, name in sorted({*named}))
            raise ValueError(f"a run takes prompts and scores of one environment, but {shown} are named")
        scored = any(isinstance(term, EnvironmentRewardConfig) for term in self.rewards.terms)
        if scored and not isinstance(self.prompts.train, EnvironmentSourceConfig):
            raise ValueError(
                f"rewards.terms has 'environment', but prompts.train is {self.prompts.train.type!r}, which that "
                "environment can't score; write prompts.train.type = 'environment'"
            )
        return self

    @model_validator(mode="after")
    def _warm_start_has_rationales(self) -> "RunConfig":
        source, name = self.demonstrated.train, self.demonstration_source
        if self.warm_start is None or isinstance(source, ChainSourceConfig):
            return self
        if isinstance(source, EnvironmentSourceConfig):
            raise ValueError("warm_start needs reference rationales, and an environment has none; remove [warm_start]")
        setting = "rationale_format" if isinstance(source, ReasoningGymSourceConfig) else "rationale_field"
        if getattr(source, setting) is None:
            raise ValueError(
                f"warm_start needs reference rationales, and {name} ({source.type!r}) names none; "
                f"write {name}.{setting} = '...', or remove [warm_start]"
            )
        return self
