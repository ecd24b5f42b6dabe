"""An allocator's decisions, and its report of a finished step."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from gvm_ray.types.arrays import Histograms, IndexArray, Metrics


class Counts(Mapping[str, int]):
    """Samples of each prompt: a read-only mapping prompt_id -> n, kept as ids and an array.

    It is made and summed without a step for each prompt; only the first look-up of an id makes a dictionary.

    Args:
        ids: P prompt ids, distinct.
        sizes: n [P], integers >= 0.

    Raises:
        ValueError: not as many sizes as ids, or a size that isn't an integer >= 0.
    """

    def __init__(self, ids: Sequence[str], sizes: ArrayLike) -> None:
        given = np.asarray(sizes)
        if given.shape != (len(ids),):
            raise ValueError(f"sizes have shape {given.shape} for {len(ids)} prompts; give one integer for each")
        if given.size and (given.dtype.kind not in "iu" or given.min() < 0):
            wrong = next((each, n) for each, n in zip(ids, given.tolist(), strict=True) if type(n) is not int or n < 0)
            raise ValueError(f"prompt {wrong[0]!r} gets {wrong[1]!r} samples; give it an integer >= 0")
        self.ids = ids
        self.sizes: IndexArray = given.astype(np.int64)

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> "Counts":
        """The same counts as arrays; from a dictionary too."""
        return counts if isinstance(counts, Counts) else cls(list(counts), list(counts.values()))

    @property
    def total(self) -> int:
        """The sum of all n."""
        return int(self.sizes.sum())

    def sampled(self) -> Iterator[tuple[str, int]]:
        """(prompt_id, n) of the prompts that get samples, in order."""
        rows = np.flatnonzero(self.sizes)
        places: list[int] = rows.tolist()
        sizes: list[int] = self.sizes[rows].tolist()
        return ((self.ids[place], n) for place, n in zip(places, sizes, strict=True))

    def at(self, ids: Sequence[str]) -> IndexArray:
        """n of these prompts, 0 for one that isn't here."""
        if ids is self.ids:
            return self.sizes
        return np.fromiter((self._by_id.get(each, 0) for each in ids), dtype=np.int64, count=len(ids))

    def __getitem__(self, prompt_id: str) -> int:
        return self._by_id[prompt_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return repr(self._by_id)

    @cached_property
    def _by_id(self) -> dict[str, int]:
        return dict(zip(self.ids, self.sizes.tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The decision as data: how many samples each prompt gets in this round (0 skips it), and what they are for."""

    counts: Mapping[str, int]  # prompt_id -> number of samples, >= 0; arrays as `Counts`, or a dictionary
    needs_gradient_norms: bool = False  # measure the gradient norms of this round's accepted samples
    needs_response_states: bool = False  # compute the hidden states of this round's samples
    trained_on: bool = True  # false: the samples only inform the allocator (published GVM's pilots)

    @property
    def is_pilot(self) -> bool:
        """Whether the round is to learn about the prompts before the budget is divided."""
        return self.needs_gradient_norms or not self.trained_on

    @property
    def total(self) -> int:
        """Samples in this round; 0 says that the allocator is done."""
        return Counts.of(self.counts).total

    def sampled(self) -> Iterator[tuple[str, int]]:
        """(prompt_id, n) of the prompts that get samples in this round, in order."""
        return Counts.of(self.counts).sampled()

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
    # prompt_id -> sample index -> b of that sample alone, before its prompt's
    sample_baselines: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)  # prompt_id -> s > 0: the advantage is divided by it
    # prompt_id -> s > 0 that belongs to its baseline: divides by it where the algorithm divides by a deviation (GRPO)
    deviations: Mapping[str, float] = field(default_factory=dict)
    prompt_weights: Mapping[str, float] = field(default_factory=dict)  # prompt_id -> factor on its samples' weights
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # prompt_id -> sample indices to train on


@dataclass(frozen=True, kw_only=True, eq=False)
class AllocationReport:
    """An allocator's report of one finished step."""

    estimator: EstimatorTerms
    metrics: Metrics = field(default_factory=dict)  # allocation/min|max|zero|total, and the estimates behind them
    histograms: Histograms = field(default_factory=dict)  # samples_per_prompt, accept_rate: [P]
