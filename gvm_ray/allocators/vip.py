"""VIP (arXiv 2602.01601): a Gaussian process predicts accept rates, and n minimises the gradient's variance."""

import base64
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gvm_ray.allocators.counts import report_counts, sum_by_prompt
from gvm_ray.allocators.history import PromptHistory, StepHistory
from gvm_ray.config.history_allocators import VIPAllocatorConfig
from gvm_ray.functional.accept_rate_prediction import predict_accept_rates
from gvm_ray.functional.history_allocation import allocate_by_gain, variance_gains
from gvm_ray.protocols import Rounds
from gvm_ray.types import EstimatorTerms, Float64Array, FloatArray, Prompt


@dataclass(frozen=True, kw_only=True, eq=False)
class _Observation:
    """One visit of a prompt."""

    state: FloatArray  # [F]
    successes: float
    trials: float


class VIPAllocator:
    """The n_i of the smallest total variance, in one round, p_i predicted from the prompts' hidden states.

    Without states, or before the first observation, every prompt has the prior's accept rate.
    """

    def __init__(self, config: VIPAllocatorConfig, *, accept_threshold: float) -> None:
        self._config = config
        self._history = PromptHistory(accept_threshold=accept_threshold)
        self._observed: deque[_Observation] = deque(maxlen=config.window)

    def rounds(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        budget: int,
        upcoming: Sequence[Prompt] = (),
        states: FloatArray | None = None,
    ) -> Rounds:
        """The whole budget at once."""
        config = self._config
        ids = [prompt.prompt_id for prompt in prompts]
        rates = self._predict(states, num_prompts=len(ids))
        gains = variance_gains(rates, minimum=config.min_samples, maximum=config.max_samples, baseline=config.baseline)
        counts = sum_by_prompt(ids, allocate_by_gain(gains, minimum=config.min_samples, budget=budget))
        samples = yield from self._history.sample_once(counts)
        if states is not None:
            self._observe(dict(zip(ids, states, strict=True)), samples)
        terms = EstimatorTerms(num_prompts=len(counts), accept_rates=dict(zip(ids, rates.tolist(), strict=True)))
        return report_counts(
            counts,
            accept_rates=samples.accept_rates(),
            estimator=terms,
            estimates={"allocation/p_hat_mean": float(rates.mean()), "allocation/p_hat_std": float(rates.std())},
        )

    def state_dict(self) -> dict[str, Any]:
        """The counts of every prompt seen, and the window of observations; states as base64 of little-endian floats."""
        observed = [
            {
                "state": base64.b64encode(each.state.astype("<f4").tobytes()).decode(),
                "successes": each.successes,
                "trials": each.trials,
            }
            for each in self._observed
        ]
        return {**self._history.state_dict(), "observed": observed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self._history.load_state_dict(state)
        self._observed.clear()
        for each in state["observed"]:
            values = np.frombuffer(base64.b64decode(each["state"]), dtype="<f4")
            self._observed.append(_Observation(state=values, successes=each["successes"], trials=each["trials"]))

    def _predict(self, states: FloatArray | None, *, num_prompts: int) -> Float64Array:
        """p [P]."""
        config = self._config
        if states is None or not self._observed:
            return np.full(num_prompts, config.prior_accept_rate)
        return predict_accept_rates(
            states,
            observed_features=np.stack([each.state for each in self._observed]),
            successes=[each.successes for each in self._observed],
            trials=[each.trials for each in self._observed],
            prior_accept_rate=config.prior_accept_rate,
            prior_std=config.prior_std,
            length_scale=config.length_scale,
        )

    def _observe(self, states: Mapping[str, FloatArray], samples: StepHistory) -> None:
        """Into the window, prompts with scored samples; `states` are those of the step's prompts, in its order."""
        for state, successes, trials in zip(states.values(), *samples.counts(), strict=True):
            if trials > 0:
                self._observed.append(_Observation(state=state, successes=float(successes), trials=float(trials)))
