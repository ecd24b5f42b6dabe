"""VIP (arXiv 2602.01601): a Gaussian process predicts accept rates, and n minimises the gradient's variance."""

import base64
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gvm_ray.allocators.base import Allocator, Report, Rounds, Step
from gvm_ray.config.history_allocators import VIPAllocatorConfig
from gvm_ray.functional.accept_rate_prediction import predict_accept_rates
from gvm_ray.functional.history_allocation import allocate_by_gain, variance_gains
from gvm_ray.types import Float64Array, FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class _Observation:
    """One visit of a prompt."""

    state: FloatArray  # [F]
    successes: float
    trials: float


class VIPAllocator(Allocator):
    """The n_i of the smallest total variance, in one round, p_i predicted from the prompts' hidden states.

    Without states, or before the first observation, every prompt has the prior's accept rate.
    """

    def __init__(self, settings: VIPAllocatorConfig) -> None:
        self._settings = settings
        self._observed: deque[_Observation] = deque(maxlen=settings.window)

    def rounds(self, step: Step) -> Rounds:
        """The whole budget at once."""
        settings = self._settings
        rates = self._predict(step.states, num_prompts=len(step.ids))
        gains = variance_gains(
            rates, minimum=settings.min_samples, maximum=settings.max_samples, baseline=settings.baseline
        )
        yield step.counts(allocate_by_gain(gains, minimum=settings.min_samples, budget=step.budget))
        if step.states is not None:
            for state, successes, trials in zip(step.states, *step.samples.counts(step.ids), strict=True):
                if trials > 0:
                    self._observed.append(_Observation(state=state, successes=float(successes), trials=float(trials)))
        return Report(
            accept_rates=dict(zip(step.ids, rates.tolist(), strict=True)),
            metrics={"allocation/p_hat_mean": float(rates.mean()), "allocation/p_hat_std": float(rates.std())},
        )

    def state_dict(self) -> dict[str, Any]:
        """Window of observations; states as base64 of little-endian floats."""
        observed = [
            {
                "state": base64.b64encode(each.state.astype("<f4").tobytes()).decode(),
                "successes": each.successes,
                "trials": each.trials,
            }
            for each in self._observed
        ]
        return {"observed": observed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self._observed.clear()
        for each in state["observed"]:
            values = np.frombuffer(base64.b64decode(each["state"]), dtype="<f4")
            self._observed.append(_Observation(state=values, successes=each["successes"], trials=each["trials"]))

    def _predict(self, states: FloatArray | None, *, num_prompts: int) -> Float64Array:
        """p [P]."""
        settings = self._settings
        if states is None or not self._observed:
            return np.full(num_prompts, settings.prior_accept_rate)
        return predict_accept_rates(
            states,
            observed_features=np.stack([each.state for each in self._observed]),
            successes=[each.successes for each in self._observed],
            trials=[each.trials for each in self._observed],
            prior_accept_rate=settings.prior_accept_rate,
            prior_std=settings.prior_std,
            length_scale=settings.length_scale,
        )
