"""Settings of comparisons, and of measurements of estimators and of predictions."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gvm_ray.allocators.predictive import PredictorConfig
from gvm_ray.settings import Count, NonNegative, NonNegativeCount, Probability, Settings

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]  # also the name of a folder
Overrides = dict[str, Any]  # nested as in the run's own TOML; a table whose `type` changes is replaced as a whole
Phase = Literal["exploration", "confirmation"]


class VariantConfig(Settings):
    """A named change to a run's settings."""

    name: Name
    set: Overrides = Field(default_factory=dict)


class TrainingSetConfig(VariantConfig):
    """A training set, and the changes to the family's test that give it the same distribution."""

    test_takes: tuple[str, ...] = ("levels",)  # settings of prompts.train that prompts.eval gets for the test "train"
    test: Overrides = Field(default_factory=dict)  # further changes to prompts.eval for that test


class FamilyConfig(Settings):
    """A task family: one run configuration and its variants. Its own prompts.eval is the test "balanced"."""

    name: Name
    config: str  # path of a run's TOML file, relative to the comparison's folder
    bases: tuple[VariantConfig, ...] = (VariantConfig(name="a"),)
    training_sets: tuple[TrainingSetConfig, ...]


class ArmConfig(VariantConfig):
    """An allocator with all its settings; `by_algorithm` holds further changes for single algorithms."""

    by_algorithm: dict[str, Overrides] = Field(default_factory=dict)
    algorithms: tuple[str, ...] | None = Field(default=None, min_length=1)  # those it runs with; none = all

    def runs_with(self, algorithm: str) -> bool:
        """True if the arm runs with this algorithm. An algorithm without a baseline may take arms that GRPO can't."""
        return self.algorithms is None or algorithm in self.algorithms


class ComparedArmConfig(ArmConfig):
    """An arm of a comparison of curves."""

    # Added to the seeds of its runs; they stay paired with the other arms' runs as without it. The same settings twice,
    # once with an offset, show what noise alone makes of a comparison.
    seed_offset: NonNegativeCount = 0


class PriceConfig(Settings):
    """Prices of a machine, in microseconds a token: what a curve costs in seconds."""

    decode_us: NonNegative  # a generated token
    prefill_us: NonNegative  # a prompt's token that is read, of a sampled prompt (once a request) or of a candidate
    learner_us: NonNegative  # a token that is trained on; a request's samples share their prompt
    source: str = ""  # of the prices, for the table's legend


# The arena's models of 0.6 M parameters on one thread, medians over the shipped runs.
_CPU = PriceConfig(
    decode_us=170.0,
    prefill_us=73.0,
    learner_us=230.0,
    source="a model of 0.6 M parameters on one CPU thread, medians over the shipped runs, on a machine that did other "
    "work too",
)
# Requests of 128 tokens with answers of 2048 (22,714 tokens/s), and of 2048 with 128 (3,450), give two equations. The
# learner does a forward pass for the old log-probs and an update: 8 FLOPs a parameter, at 400 TFLOPS.
_H100 = PriceConfig(
    decode_us=43.0,
    prefill_us=15.4,
    learner_us=160.0,
    source="a model of 8 B parameters on an H100: TensorRT-LLM 1.0's published throughput of Llama 3.1 8B in FP8 "
    "(nvidia.github.io/TensorRT-LLM, performance overview), and 400 TFLOPS in training (Llama 3, arXiv 2407.21783)",
)


class ComparisonConfig(Settings):
    """A whole comparison. Exploration and confirmation use different seeds, and may use different tests."""

    name: Name
    runs_dir: str = "runs"
    results_dir: str | None = None  # tables, plots and CSV files, relative to this file; none = with the runs
    token_budget: Count  # charged tokens after which every run ends
    prefill_price: NonNegative  # cost of a prefilled candidate token, in generated tokens: measure it
    # Machines whose prices turn tokens into seconds in the tables.
    prices: dict[Name, PriceConfig] = Field(default_factory=lambda: {"cpu": _CPU, "h100": _H100})
    baseline: str = "uniform"
    highlighted: str | None = None  # an arm that the plots emphasise
    exploration_seeds: tuple[NonNegativeCount, ...] = (0, 1, 2)
    confirmation_seeds: tuple[NonNegativeCount, ...] = (100, 101, 102, 103, 104)
    phases: dict[Phase, Overrides] = Field(default_factory=dict)  # changes for one phase only, such as its tests
    num_slots: Count = 2  # concurrent runs, each with engines and learners of its own
    families: tuple[FamilyConfig, ...]
    algorithms: tuple[VariantConfig, ...] = (VariantConfig(name="as_configured"),)
    arms: tuple[ComparedArmConfig, ...]

    def seeds(self, phase: Phase) -> tuple[int, ...]:
        """The seeds of a phase."""
        return self.exploration_seeds if phase == "exploration" else self.confirmation_seeds

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "ComparisonConfig":
        check_distinct("families", [family.name for family in self.families])
        check_distinct("algorithms", [algorithm.name for algorithm in self.algorithms])
        check_distinct("arms", [arm.name for arm in self.arms])
        for family in self.families:
            check_distinct(f"bases of {family.name!r}", [base.name for base in family.bases])
            check_distinct(f"training_sets of {family.name!r}", [variant.name for variant in family.training_sets])
        check_distinct("exploration_seeds and confirmation_seeds", self.exploration_seeds + self.confirmation_seeds)
        return self

    @model_validator(mode="after")
    def _names_are_known(self) -> "ComparisonConfig":
        arms = [arm.name for arm in self.arms]
        for setting, name in (("baseline", self.baseline), ("highlighted", self.highlighted)):
            if name is not None and name not in arms:
                raise ValueError(f"{setting}={name!r} is not an arm; write one of {', '.join(arms)}")
        check_arms_algorithms(self.arms, [algorithm.name for algorithm in self.algorithms], baseline=self.baseline)
        return self


def check_arms_algorithms(arms: Sequence[ArmConfig], algorithms: Sequence[str], *, baseline: str) -> None:
    """Refuse arms with an unknown algorithm, and a baseline that doesn't run with every algorithm.

    Raises:
        ValueError: an arm's algorithms are wrong.
    """
    for arm in arms:
        for name in (*arm.by_algorithm, *(arm.algorithms or ())):
            if name not in algorithms:
                raise ValueError(f"arm {arm.name!r} names the algorithm {name!r}; write one of {', '.join(algorithms)}")
        if arm.name == baseline and not all(map(arm.runs_with, algorithms)):
            raise ValueError(
                f"the baseline {arm.name!r} runs only with {list(arm.algorithms or ())}, so the other algorithms have "
                "nothing to compare with; leave out its algorithms"
            )


def check_distinct(what: str, names: Sequence[object]) -> None:
    """Refuse an empty list of names, and a name that occurs twice.

    Raises:
        ValueError: the list is empty or has a duplicate.
    """
    if not names:
        raise ValueError(f"{what} is empty; write at least one")
    if double := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{what} hold {double[0]!r} more than once; write it once")


class EstimatorConfig(Settings):
    """A measurement of gradient estimators: the pool drawn from the policy, and the repetitions of each arm's step."""

    name: Name
    runs_dir: str = "runs"
    config: str  # path of a run's TOML file, relative to this file's folder; its starting policy is measured
    seed: NonNegativeCount = 0
    num_prompts: Count = 64  # of the training set: the true gradient is the mean over them
    num_samples: Count = 256  # per prompt: they represent the policy
    prompts_per_step: Count | None = None  # for an arm that doesn't select; none = all, so that only n_i differs
    samples_per_prompt: Count | None = None  # sets the step's budget; none = as in `config`
    num_repeats: Annotated[int, Field(ge=2)] = 200
    warm_up_steps: NonNegativeCount = 8  # on other prompts before each measured step, for allocators that learn
    num_warm_up_prompts: Count = 64
    projection_size: Count | None = 2048  # dimensions of the projected gradients; none = no projection
    baseline: str = "uniform"  # the arm whose error is the reference
    algorithms: tuple[VariantConfig, ...] = (VariantConfig(name="as_configured"),)
    arms: tuple[ArmConfig, ...]

    @property
    def step_prompts(self) -> int:
        """The number of prompts in a step. For every arm, a step's budget is this times samples_per_prompt."""
        return self.prompts_per_step or self.num_prompts

    @model_validator(mode="after")
    def _names_fit(self) -> "EstimatorConfig":
        algorithms = [algorithm.name for algorithm in self.algorithms]
        check_distinct("algorithms", algorithms)
        arms = [arm.name for arm in self.arms]
        check_distinct("arms", arms)
        if self.baseline not in arms:
            raise ValueError(f"baseline={self.baseline!r} is not an arm; write one of {', '.join(arms)}")
        check_arms_algorithms(self.arms, algorithms, baseline=self.baseline)
        return self

    @model_validator(mode="after")
    def _steps_fit(self) -> "EstimatorConfig":
        if self.step_prompts > self.num_prompts:
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} is above num_prompts={self.num_prompts}; write "
                f"num_prompts={self.prompts_per_step} or more"
            )
        return self


class PolicyConfig(Settings):
    """A policy of the run: its starting policy, one after another warm start, or one that was trained."""

    name: Name
    model: str | None = None  # folder that a run exported (its model/), or a hub id; none = the run's starting policy
    warm_start_updates: Count | None = None  # in place of warm_start.num_updates
    step: NonNegativeCount = 0  # the training step that it stands for: earlier policies' samples are forgotten by it

    @model_validator(mode="after")
    def _has_one_origin(self) -> "PolicyConfig":
        if self.model is not None and self.warm_start_updates is not None:
            raise ValueError(
                f"model={self.model!r} is taken as it is, so warm_start_updates={self.warm_start_updates} has no "
                "effect; leave one of them out"
            )
        return self


class PredictionConfig(Settings):
    """A measurement of how well accept rates can be predicted: prompts, samples and policies."""

    name: Name
    runs_dir: str = "runs"
    config: str  # path of a run's TOML file, relative to this file's folder
    set: Overrides = Field(default_factory=dict)  # changes to that run, e.g. another training set
    seed: NonNegativeCount = 0
    num_prompts: Annotated[int, Field(ge=8)] = 400  # of the training set
    # Of a prompt. One half is predicted, the other plays the prompt's earlier samples, and then the other way round.
    num_samples: Annotated[int, Field(ge=4, multiple_of=2)] = 8
    num_folds: Annotated[int, Field(ge=2)] = 10
    paid_prompts: tuple[Count, ...] = (64, 128, 256)  # learning curves: one sample each of so many other prompts
    layers: tuple[Probability, ...] = (0.0, 0.5, 0.75, 1.0)  # whose states are tried, as shares of the model's depth
    response_layer: Probability = 0.75  # whose states of the earlier responses are tried
    predictor: PredictorConfig = PredictorConfig()
    forgetting: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.9, 0.97, 1.0)  # by step, of earlier policies
    policies: tuple[PolicyConfig, ...] = (PolicyConfig(name="start"),)

    @model_validator(mode="after")
    def _fits(self) -> "PredictionConfig":
        check_distinct("policies", [policy.name for policy in self.policies])
        steps = [policy.step for policy in self.policies]
        if sorted(steps) != steps:
            raise ValueError(f"policies stand for the steps {steps}; write them in the order of their steps")
        if self.num_folds > self.num_prompts:
            raise ValueError(f"num_folds={self.num_folds} is above num_prompts={self.num_prompts}; write fewer folds")
        most = self.num_prompts - -(-self.num_prompts // self.num_folds)
        if self.paid_prompts and max(self.paid_prompts) > most:
            raise ValueError(
                f"paid_prompts={max(self.paid_prompts)} is more than the {most} prompts outside a fold; write at most "
                f"{most}, or more of num_prompts"
            )
        return self
