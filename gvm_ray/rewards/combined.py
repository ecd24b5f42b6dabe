"""The weighted sum of a run's reward terms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gvm_ray.protocols import RewardFunction
from gvm_ray.types import Completion, Prompt


@dataclass(frozen=True, kw_only=True)
class WeightedTerm:
    """One summand."""

    name: str  # unique within a CombinedReward
    weight: float
    reward: RewardFunction


class CombinedReward:
    """Sum over the terms of weight * reward(prompt, completion).

    A reward may have terms of its own, which are reported as `<name>_<term>` and weigh nothing.
    """

    def __init__(self, terms: Sequence[WeightedTerm]) -> None:
        assert len({term.name for term in terms}) == len(terms), "names of reward terms must differ"
        self._terms = tuple(terms)
        # The reward and its terms are asked for one after the other; each response is scored once.
        self._last: tuple[Prompt, Completion, dict[str, float]] | None = None

    def __call__(self, prompt: Prompt, completion: Completion) -> float:
        values = self.terms(prompt, completion)
        return math.fsum(term.weight * values[term.name] for term in self._terms)

    def terms(self, prompt: Prompt, completion: Completion) -> dict[str, float]:
        """Term name -> value before weighting."""
        if self._last is None or self._last[0] is not prompt or self._last[1] is not completion:
            values = {term.name: term.reward(prompt, completion) for term in self._terms}
            for term in self._terms:
                if find_terms := getattr(term.reward, "terms", None):
                    parts = find_terms(prompt, completion)
                    values |= {f"{term.name}_{name}": value for name, value in parts.items()}
            self._last = (prompt, completion, values)
        return dict(self._last[2])
