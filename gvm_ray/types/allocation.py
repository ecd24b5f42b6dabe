"""An allocator's decisions, and its report of a finished step."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gvm_ray.types.arrays import Histograms, Metrics


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The decision as data: how many samples each prompt gets in this round (0 skips it), and what they are for."""

    counts: Mapping[str, int]  # prompt_id -> number of samples, >= 0
    needs_gradient_norms: bool = False  # measure the gradient norms of this round's accepted samples
    trained_on: bool = True  # false: the samples only inform the allocator (published GVM's pilots)

    @property
    def is_pilot(self) -> bool:
        """Whether the round is to learn about the prompts before the budget is divided."""
        return self.needs_gradient_norms or not self.trained_on

    @property
    def total(self) -> int:
        """Samples in this round; 0 says that the allocator is done."""
        return sum(self.counts.values())

    @classmethod
    def empty(cls) -> "Allocation":
        return cls(counts={})


@dataclass(frozen=True, kw_only=True)
class EstimatorTerms:
    """Changes that a finished step's allocation makes in the gradient estimator; a prompt without an entry keeps the
    algorithm's own."""

    num_prompts: int  # that the estimator averages over
    # prompt_id -> p in (0, 1], known without the samples that are averaged over: from before they were drawn, or from
    # the prompt's `pilots`. Empty where the allocator has none.
    accept_rates: Mapping[str, float] = field(default_factory=dict)
    pilots: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # prompt_id -> samples that its p was told by
    # prompt_id -> p in [0, 1] to compare with what came: `accept_rates`, or else the rate of the run's earlier samples.
    # Only for metrics.
    expected_rates: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)  # prompt_id -> b of the advantage r - b
    scales: Mapping[str, float] = field(default_factory=dict)  # prompt_id -> s > 0: the advantage is divided by it
    prompt_weights: Mapping[str, float] = field(default_factory=dict)  # prompt_id -> factor on its samples' weights
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # prompt_id -> sample indices to train on


@dataclass(frozen=True, kw_only=True, eq=False)
class AllocationReport:
    """An allocator's report of one finished step."""

    estimator: EstimatorTerms
    metrics: Metrics = field(default_factory=dict)  # allocation/min|max|zero|total, and the estimates behind them
    histograms: Histograms = field(default_factory=dict)  # samples_per_prompt, accept_rate: [P]
