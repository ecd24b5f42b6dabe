"""HIVE (arXiv 2603.25184): history shortlists candidates, whose entropy under the present weights then decides."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from gvm_ray.allocators.base import Allocator, Needs, PromptStatesConfig, Report, Rounds, RunShape, Step
from gvm_ray.allocators.selection import CandidateAllocatorConfig, even_counts, num_groups
from gvm_ray.maths.rival_rules import draw_at_learning_edge
from gvm_ray.settings import Count, Probability
from gvm_ray.types import GroupOutcome, IndexArray

_CANDIDATES_PER_GROUP = 4
_SHORTLISTED_PER_GROUP = 2  # the upper half of which gets samples
_PRIOR = {"prior_successes": 1.0, "prior_failures": 1.0}


class HIVEAllocatorConfig(CandidateAllocatorConfig):
    """HIVE (arXiv 2603.25184): candidates shortlisted by their history, and of these the upper half by prompt entropy.

    The shortlist has twice as many candidates as the budget makes groups. It is drawn without replacement, with
    probability ~ p (1 - p) h: p is the mean of the prompt's Beta posterior, whose counts `decay` at each visit, and h
    the mean entropy of its last visit's responses. A new prompt has p = 1/2 and the mean h of the others. The prompt's
    entropy is the mean of the next token's over its own tokens. It takes one forward pass over each shortlisted prompt
    at every step, which is charged.

    Two things are not the paper's. Its formula for the first stage is replaced by the product above, of the two
    quantities that it names. And h is estimated by the mean of -ln pi over the tokens that the engine sampled, for
    exact entropies would take another pass over the responses.
    """

    type: Literal["hive"] = "hive"
    candidates_per_step: Count | None = None  # none = 4 for each group of the budget
    decay: Probability = 0.5  # 1 forgets nothing

    @property
    def knows_accept_rates(self) -> bool:
        """True: they are posterior means from earlier visits."""
        return True

    def needs(self, run: RunShape) -> Needs:
        """Candidates, and the entropies of those on the shortlist under the present weights."""
        groups = max(self.num_groups(run), 1)
        return Needs(
            candidates=self.candidates_per_step or _CANDIDATES_PER_GROUP * groups,
            states=PromptStatesConfig(pooling="entropy", refresh_steps=1),
            shortlist=_SHORTLISTED_PER_GROUP * groups,
        )

    def check_fits(self, run: RunShape) -> None:
        """Check that the budget makes at least one group, and that there are more candidates than the shortlist has."""
        super().check_fits(run)
        needs = self.needs(run)
        if needs.shortlist is not None and needs.candidates <= needs.shortlist:
            raise ValueError(
                f"{needs.candidates} candidates leave history nothing to select: the shortlist has {needs.shortlist}, "
                f"two for each group of the budget; write candidates_per_step={2 * needs.shortlist}"
            )

    def build(self, *, accept_threshold: float, seed: int) -> "HIVEAllocator":
        """Create the strategy."""
        return HIVEAllocator(self)


class HIVEAllocator(Allocator):
    """Equal groups for the shortlisted prompts with the largest entropy. Equal ones keep the stream's order."""

    def __init__(self, settings: HIVEAllocatorConfig) -> None:
        self._settings = settings
        self.memory_decay = settings.decay
        self._entropies: dict[str, float] = {}  # prompt_id -> mean entropy of the last visit's responses

    def shortlist(self, step: Step) -> IndexArray:
        """Draw candidates at the learning edge, by their history."""
        wanted = num_groups(step.budget, group_size=self._settings.group_size, num_candidates=len(step.ids))
        return draw_at_learning_edge(
            step.memory.accept_rates(step.ids, **_PRIOR),
            [self._entropies.get(prompt_id, np.nan) for prompt_id in step.ids],
            num_drawn=_SHORTLISTED_PER_GROUP * wanted,
            rng=step.rng,
        )

    def rounds(self, step: Step) -> Rounds:
        """Spend the whole budget in one round. Without states all entropies are the same."""
        entropies = np.zeros(len(step.ids)) if step.states is None else step.states[:, 0].astype(np.float64)
        wanted = num_groups(step.budget, group_size=self._settings.group_size, num_candidates=len(step.ids))
        chosen = np.argsort(-entropies, kind="stable")[:wanted]
        counts = even_counts([step.ids[row] for row in chosen], step.budget)
        rates = dict(zip(step.ids, step.memory.accept_rates(step.ids, **_PRIOR).tolist(), strict=True))
        outcomes = yield counts
        self._entropies |= _mean_entropies(outcomes)
        return Report(
            accept_rates={prompt_id: rates[prompt_id] for prompt_id in counts},
            metrics={"allocation/prompt_entropy": float(entropies[chosen].mean())},
            histograms={"prompt_entropy": entropies},
        )

    def state_dict(self) -> dict[str, Any]:
        """The response entropy of every sampled prompt's last visit."""
        return {"entropies": dict(self._entropies)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the memory that `state_dict` returned."""
        self._entropies = dict(state["entropies"])


def _mean_entropies(outcomes: Sequence[GroupOutcome]) -> dict[str, float]:
    """prompt_id -> mean of its samples' known entropies, for prompts that have any."""
    known: dict[str, list[float]] = {}
    for outcome in outcomes:
        if outcome.entropies is not None:
            values = outcome.entropies[np.isfinite(outcome.entropies)].tolist()
            known.setdefault(outcome.prompt_id, []).extend(values)
    return {prompt_id: float(np.mean(values)) for prompt_id, values in known.items() if values}
