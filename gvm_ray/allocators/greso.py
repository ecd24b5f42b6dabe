"""GRESO (arXiv 2506.02177): prompts whose last visits all had zero variance are skipped, the likelier the more."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gvm_ray.allocators.history import PromptHistory
from gvm_ray.allocators.selection import even_counts, num_groups, report_selection, reward_ranges, unique_ids
from gvm_ray.config.selecting_allocators import GRESOAllocatorConfig
from gvm_ray.functional.filtering import adjusted_exploration, sampling_probability, zero_variance_run
from gvm_ray.protocols import Rounds
from gvm_ray.types import Allocation, FloatArray, GroupOutcome, Prompt


class GRESOAllocator:
    """The first candidates that aren't skipped; skipped ones fill up, in their order, where those are too few.

    The two exploration probabilities follow the shares of solved and of failed groups in the steps whose candidates
    were not all new.
    """

    def __init__(self, config: GRESOAllocatorConfig, *, accept_threshold: float, seed: int) -> None:
        self._config = config
        self._accept_threshold = accept_threshold
        self._seed = seed
        self._history = PromptHistory(accept_threshold=accept_threshold)
        self._runs: dict[str, int] = {}  # prompt_id -> its run of zero-variance visits
        self._easy = config.easy_probability
        self._hard = config.hard_probability

    def rounds(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        budget: int,
        upcoming: Sequence[Prompt] = (),
        states: FloatArray | None = None,
    ) -> Rounds:
        """One round with the whole budget."""
        config = self._config
        ids = unique_ids(prompts)
        adapts = any(prompt_id in self._runs for prompt_id in ids)
        probabilities = sampling_probability(
            [self._runs.get(prompt_id, 0) for prompt_id in ids],
            easy=self._easy,
            hard=self._hard,
            minimum=config.min_sampling_probability,
        )
        skipped = np.random.default_rng((self._seed, step)).random(len(ids)) >= probabilities
        order = np.argsort(skipped, kind="stable")
        chosen = order[: num_groups(budget, group_size=config.group_size, num_candidates=len(ids))]
        counts = even_counts([ids[index] for index in chosen], budget)
        estimates = {
            "allocation/skipped": float(skipped.sum()),
            "allocation/easy_probability": self._easy,
            "allocation/hard_probability": self._hard,
        }
        outcomes = yield Allocation(counts=counts)
        samples = self._history.start_step(ids)
        samples.fold(outcomes)
        zero_variance = self._remember(outcomes, adapts=adapts)
        kept = dict.fromkeys(zero_variance, ()) if config.drop_zero_variance else {}
        return report_selection(samples, ids, counts, kept=kept, estimates=estimates)

    def state_dict(self) -> dict[str, Any]:
        """The counts and the run of every prompt sampled, and the exploration probabilities."""
        return {
            **self._history.state_dict(),
            "zero_variance_runs": dict(self._runs),
            "easy_probability": self._easy,
            "hard_probability": self._hard,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self._history.load_state_dict(state)
        self._runs = dict(state["zero_variance_runs"])
        self._easy, self._hard = state["easy_probability"], state["hard_probability"]

    def _remember(self, outcomes: Sequence[GroupOutcome], *, adapts: bool) -> list[str]:
        """Count the visits, and return the prompts whose visit had zero variance."""
        visits = {
            prompt_id: zero_variance_run(
                self._runs.get(prompt_id, 0), lowest=low, highest=high, accept_threshold=self._accept_threshold
            )
            for prompt_id, (low, high) in reward_ranges(outcomes).items()
        }
        self._runs |= visits
        if adapts and visits:
            runs = np.fromiter(visits.values(), dtype=np.int64)
            config = self._config
            self._easy = self._adjusted(self._easy, float((runs > 0).mean()), config.target_easy_fraction)
            self._hard = self._adjusted(self._hard, float((runs < 0).mean()), config.target_hard_fraction)
        return [prompt_id for prompt_id, run in visits.items() if run]

    def _adjusted(self, probability: float, fraction: float, target: float) -> float:
        config = self._config
        return adjusted_exploration(
            probability,
            fraction=fraction,
            target=target,
            step=config.probability_step,
            minimum=config.min_probability,
            maximum=config.max_probability,
        )
