"""GRESO (arXiv 2506.02177): prompts are skipped with a probability that grows with recent zero-variance visits."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from gvm_ray.allocators.base import Allocator, Report, Rounds, Step
from gvm_ray.allocators.selection import (
    CandidateAllocatorConfig,
    ZeroVarianceSettings,
    draw_groups,
    num_groups,
    reward_ranges,
)
from gvm_ray.maths.rival_rules import adjusted_exploration, sampling_probability, zero_variance_run
from gvm_ray.settings import Positive, Probability
from gvm_ray.types import GroupOutcome


class GRESOAllocatorConfig(CandidateAllocatorConfig, ZeroVarianceSettings):
    """GRESO (arXiv 2506.02177): a prompt is skipped with probability 1 - p^z after z zero-variance visits in a row.

    p is `easy_probability` if all samples of these visits were accepted, `hard_probability` if all were rejected. After
    each step both move by `probability_step`: down if the share of such groups reached its target, else up.
    Defaults are those of the released code: a zero-variance target of 25 %, one third of it easy, two thirds hard.

    A step costs its budget; with `refill`, which the paper has, further candidates replace groups of equal rewards, up
    to max_batches budgets. Left out: the batch size that adapts to it. If too few candidates are left, skipped
    candidates fill the step.
    """

    type: Literal["greso"] = "greso"
    easy_probability: Positive = 0.5  # initial value
    hard_probability: Positive = 0.5  # initial value
    target_easy_fraction: Probability = 0.25 / 3  # of a step's groups
    target_hard_fraction: Probability = 0.5 / 3  # of a step's groups
    probability_step: Probability = 0.01  # by which both probabilities move after a step
    min_probability: Positive = 0.05  # bound of both probabilities
    max_probability: Probability = 0.95  # bound of both probabilities
    min_sampling_probability: Probability = 0.01  # of any prompt, whatever its number of zero-variance visits
    drop_zero_variance: bool = True  # groups of equal rewards leave the batch, as published; false = trained on too
    refill: bool = False  # true: other candidates replace them, as published; false: the batch shrinks

    @model_validator(mode="after")
    def _refills_what_is_dropped(self) -> "GRESOAllocatorConfig":
        if self.refill and not self.drop_zero_variance:
            raise ValueError(
                "refill=true replaces dropped groups, but drop_zero_variance=false drops none; write "
                "drop_zero_variance=true or refill=false"
            )
        return self

    @model_validator(mode="after")
    def _begins_within_bounds(self) -> "GRESOAllocatorConfig":
        for name in ("easy_probability", "hard_probability"):
            value = getattr(self, name)
            if not self.min_probability <= value <= self.max_probability:
                raise ValueError(
                    f"{name}={value} is outside min_probability={self.min_probability} to "
                    f"max_probability={self.max_probability}; write a number between them"
                )
        return self

    def build(self, *, accept_threshold: float, seed: int) -> "GRESOAllocator":
        """Create the strategy."""
        return GRESOAllocator(self, accept_threshold=accept_threshold)


class GRESOAllocator(Allocator):
    """Sample the first candidates that aren't skipped; if they are too few, skipped candidates follow in their order.

    The two exploration probabilities adapt to the shares of solved and failed groups. Steps whose candidates are all
    new don't count.
    """

    def __init__(self, settings: GRESOAllocatorConfig, *, accept_threshold: float) -> None:
        self._settings = settings
        self._accept_threshold = accept_threshold
        self._runs: dict[str, int] = {}  # prompt_id -> zero-variance visits in a row: > 0 if solved, < 0 if failed
        self._easy = settings.easy_probability
        self._hard = settings.hard_probability

    def rounds(self, step: Step) -> Rounds:
        """Spend the whole budget in one round, and up to max_batches budgets with refills."""
        ids, settings = step.ids, self._settings
        adapts = any(prompt_id in self._runs for prompt_id in ids)
        probabilities = sampling_probability(
            [self._runs.get(prompt_id, 0) for prompt_id in ids],
            easy=self._easy,
            hard=self._hard,
            minimum=settings.min_sampling_probability,
        )
        skipped = step.rng.random(len(ids)) >= probabilities
        metrics = {
            "allocation/skipped": float(skipped.sum()),
            "allocation/easy_probability": self._easy,
            "allocation/hard_probability": self._hard,
        }
        order = np.argsort(skipped, kind="stable")
        wanted = num_groups(step.budget, group_size=settings.group_size, num_candidates=len(ids))
        candidates = [ids[row] for row in order[: wanted * settings.max_budget_factor]]
        drawn = yield from draw_groups(candidates, wanted=wanted, budget=step.budget, tolerance=settings.tolerance)
        zero_variance = self._remember(drawn.outcomes, adapts=adapts)
        return Report(kept=dict.fromkeys(zero_variance, ()) if settings.drop_zero_variance else {}, metrics=metrics)

    def state_dict(self) -> dict[str, Any]:
        """The zero-variance run of every sampled prompt, and the exploration probabilities."""
        return {
            "zero_variance_runs": dict(self._runs),
            "easy_probability": self._easy,
            "hard_probability": self._hard,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the memory that `state_dict` returned."""
        self._runs = dict(state["zero_variance_runs"])
        self._easy, self._hard = state["easy_probability"], state["hard_probability"]

    def _remember(self, outcomes: Sequence[GroupOutcome], *, adapts: bool) -> list[str]:
        """Count the visits, and return the prompts whose visit had zero variance."""
        visits = {
            prompt_id: zero_variance_run(
                self._runs.get(prompt_id, 0),
                lowest=low,
                highest=high,
                accept_threshold=self._accept_threshold,
                tolerance=self._settings.tolerance,
            )
            for prompt_id, (low, high) in reward_ranges(outcomes).items()
        }
        self._runs |= visits
        if adapts and visits:
            runs = np.fromiter(visits.values(), dtype=np.int64)
            settings = self._settings
            self._easy = self._adjusted(self._easy, float((runs > 0).mean()), settings.target_easy_fraction)
            self._hard = self._adjusted(self._hard, float((runs < 0).mean()), settings.target_hard_fraction)
        return [prompt_id for prompt_id, run in visits.items() if run]

    def _adjusted(self, probability: float, fraction: float, target: float) -> float:
        settings = self._settings
        return adjusted_exploration(
            probability,
            fraction=fraction,
            target=target,
            step=settings.probability_step,
            minimum=settings.min_probability,
            maximum=settings.max_probability,
        )
