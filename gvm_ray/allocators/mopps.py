"""MoPPS (arXiv 2507.04632): prompts whose accept rate, drawn from a posterior that forgets, is nearest the target."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gvm_ray.allocators.history import PromptHistory
from gvm_ray.allocators.selection import even_counts, num_groups, report_selection, unique_ids
from gvm_ray.config.selecting_allocators import MoPPSAllocatorConfig
from gvm_ray.functional.filtering import thompson_nearest
from gvm_ray.functional.statistics import beta_posterior_mean
from gvm_ray.protocols import Rounds
from gvm_ray.types import Allocation, FloatArray, Prompt


class MoPPSAllocator:
    """Thompson sampling: one draw for each candidate, and equal groups for those nearest the target accept rate."""

    def __init__(self, config: MoPPSAllocatorConfig, *, accept_threshold: float, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._history = PromptHistory(accept_threshold=accept_threshold, decay=config.decay)

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
        seen = self._history.all.look_up(ids)
        order = thompson_nearest(
            seen["successes"],
            seen["trials"],
            prior_successes=config.prior_successes,
            prior_failures=config.prior_failures,
            target=config.target_accept_rate,
            rng=np.random.default_rng((self._seed, step)),
        )
        chosen = order[: num_groups(budget, group_size=config.group_size, num_candidates=len(ids))]
        counts = even_counts([ids[index] for index in chosen], budget)
        outcomes = yield Allocation(counts=counts)
        samples = self._history.start_step(ids)
        samples.fold(outcomes)
        rates = beta_posterior_mean(
            seen["successes"],
            seen["trials"],
            prior_successes=config.prior_successes,
            prior_failures=config.prior_failures,
        )
        accept_rates = {ids[row]: float(rates[row]) for row in chosen.tolist()}
        return report_selection(samples, ids, counts, accept_rates=accept_rates)

    def state_dict(self) -> dict[str, Any]:
        """The decayed counts of every prompt sampled."""
        return self._history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self._history.load_state_dict(state)
