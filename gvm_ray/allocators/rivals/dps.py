"""DPS (arXiv 2603.10887): the prompts that a hidden Markov model of each expects to be partly solved."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from gvm_ray.allocators.base import Allocator, Needs, Report, Rounds, RunShape, Step
from gvm_ray.allocators.selection import CandidateAllocatorConfig, even_counts, num_groups
from gvm_ray.maths.hidden_markov import carried_forward, counted_transitions, next_beliefs
from gvm_ray.settings import Count, Positive, Probability
from gvm_ray.types import Float64Array

_CANDIDATES_PER_GROUP = 8
_NUM_STATES = 3  # all samples of a visit rejected, some accepted, all accepted
_MIXED = 1


class DPSAllocatorConfig(CandidateAllocatorConfig):
    """DPS (arXiv 2603.10887): the candidates that are likeliest to have both accepted and rejected samples.

    Each prompt has a hidden Markov model with three states: all its samples rejected, some accepted, all accepted. A
    visit shows its state. Every transition has a Dirichlet parameter, `prior_transitions` before any visit. At each
    training step the parameters lose 1 - `decay` of their distance to that prior, and a visit adds 1, divided over the
    transitions that may have led to its state. The beliefs of candidates that aren't visited move on by the expected
    transitions. As in the released code, parameters fade at every step, visited or not; the paper's text refines them
    at visits only. Equal probabilities keep the stream's order.

    Of every 8 candidates one is chosen, as in the authors' runs on Countdown. Left out: the alternatives to the
    largest probability, and priors that favour progress.
    """

    type: Literal["dps"] = "dps"
    candidates_per_step: Count | None = None  # none = 8 for each group of the budget
    decay: Probability = 0.5  # 1 forgets nothing
    prior_transitions: Positive = 1.0  # larger: slower to believe what visits show

    def needs(self, run: RunShape) -> Needs:
        """Candidates to select from."""
        return Needs(candidates=self.candidates_per_step or _CANDIDATES_PER_GROUP * max(self.num_groups(run), 1))

    def build(self, *, accept_threshold: float, seed: int) -> "DPSAllocator":
        """Create the strategy."""
        return DPSAllocator(self)


class DPSAllocator(Allocator):
    """Equal groups for the candidates with the largest predicted probability of a mixed group."""

    def __init__(self, settings: DPSAllocatorConfig) -> None:
        self._settings = settings
        # prompt_id -> step of the last visit, state that it showed, Dirichlet parameters [9] after it
        self._visits: dict[str, tuple[int, int, list[float]]] = {}

    def rounds(self, step: Step) -> Rounds:
        """Spend the whole budget in one round."""
        mixed = next_beliefs(*self._before(step.ids, step=step.number))[:, _MIXED]
        wanted = num_groups(step.budget, group_size=self._settings.group_size, num_candidates=len(step.ids))
        chosen = np.argsort(-mixed, kind="stable")[:wanted]
        counts = even_counts([step.ids[row] for row in chosen], step.budget)
        yield counts
        self._observe(step, list(counts))
        return Report(
            metrics={"allocation/mixed_probability": float(mixed[chosen].mean())},
            histograms={"mixed_probability": mixed},
        )

    def state_dict(self) -> dict[str, Any]:
        """The last visit of every sampled prompt, and its Dirichlet parameters."""
        return {"visits": {id_: [at, state, list(c)] for id_, (at, state, c) in self._visits.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the memory that `state_dict` returned."""
        self._visits = {id_: (at, observed, list(c)) for id_, (at, observed, c) in state["visits"].items()}

    def _before(self, ids: Sequence[str], *, step: int) -> tuple[Float64Array, Float64Array]:
        """Beliefs [P, 3] and Dirichlet parameters [P, 3, 3] at the end of the step before this one."""
        prior = self._settings.prior_transitions
        beliefs = np.full((len(ids), _NUM_STATES), 1 / _NUM_STATES)
        concentrations = np.full((len(ids), _NUM_STATES, _NUM_STATES), prior)
        since = np.zeros(len(ids), dtype=np.int64)
        for row, prompt_id in enumerate(ids):
            if prompt_id in self._visits:
                at, state, parameters = self._visits[prompt_id]
                beliefs[row] = np.eye(_NUM_STATES)[state]
                concentrations[row] = np.reshape(parameters, (_NUM_STATES, _NUM_STATES))
                since[row] = max(step - 1 - at, 0)  # an overlapping later step may have been observed before this one
        return carried_forward(beliefs, concentrations, num_steps=since, decay=self._settings.decay, prior=prior)

    def _observe(self, step: Step, ids: Sequence[str]) -> None:
        """Learn the states that the step's samples show.

        A prompt without a scored sample wasn't visited; if an overlapping later step has shown its state, it is known.
        """
        news = [id_ for id_ in ids if id_ not in self._visits or self._visits[id_][0] < step.number]
        successes, trials = step.samples.counts(news)
        scored = np.flatnonzero(trials > 0)
        visited = [news[row] for row in scored]
        states = np.where(successes == 0, 0, np.where(successes == trials, 2, _MIXED))[scored]
        beliefs, concentrations = self._before(visited, step=step.number)
        learned = counted_transitions(
            concentrations,
            before=beliefs,
            after=np.eye(_NUM_STATES)[states],
            decay=self._settings.decay,
            prior=self._settings.prior_transitions,
        )
        rows = zip(visited, states.tolist(), learned.reshape(-1, _NUM_STATES**2).tolist(), strict=True)
        self._visits |= {id_: (step.number, state, parameters) for id_, state, parameters in rows}
