"""VIP (arXiv 2602.01601): a Gaussian process predicts accept rates, and n minimises the gradient variance."""

import base64
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator
from scipy.special import expit, logit

from gvm_ray.allocators.base import (
    Allocator,
    BoundedAllocatorConfig,
    Needs,
    PromptStatesConfig,
    Report,
    RequiredPromptStates,
    Rounds,
    RunShape,
    Step,
)
from gvm_ray.maths.rival_rules import allocate_by_gain, variance_gains
from gvm_ray.settings import Count, Positive
from gvm_ray.types import Float64Array, FloatArray


class VIPAllocatorConfig(BoundedAllocatorConfig):
    """VIP (arXiv 2602.01601): the n that minimise the gradient variance, with p predicted by a Gaussian process.

    The variance of a prompt is 4 p (1 - p) (n - 1) / n^2 with the group's mean as baseline ("grpo"), or
    4 p (1 - p) / (n - 1) with the mean of the others ("rloo"). The paper finds the real-valued optimum by bisection and
    rounds greedily. Both variances are convex in n, so taking the largest marginal gains finds the optimal integers.

    Features are the policy's hidden states of the prompts; the paper uses embeddings of a sentence encoder. Targets are
    empirical logits with noise; the paper uses clipped logits without noise. The process is refitted to a window of
    observations at each step, and its covariance isn't carried over from step to step.
    """

    type: Literal["vip"] = "vip"
    baseline: Literal["grpo", "rloo"] = "grpo"  # of the variance that is minimised; the algorithm's should be the same
    min_samples: Annotated[int, Field(ge=2)] = 4  # of every prompt
    max_samples: Count = 32  # of a prompt; at least samples_per_prompt
    states: RequiredPromptStates = PromptStatesConfig()
    window: Count = 512  # number of latest observations, one per visit of a prompt; fitting time grows with its cube
    prior_accept_rate: Annotated[float, Field(gt=0, lt=1)] = 0.5  # prediction far from all observations
    prior_std: Positive = 2.0  # of the logit of the accept rate; 2 = most rates lie between 2 % and 98 %
    length_scale: Positive = 0.5  # of the kernel, in units of the median distance between observations

    @model_validator(mode="after")
    def _convex(self) -> "VIPAllocatorConfig":
        if self.baseline == "grpo" and self.min_samples < 3:
            raise ValueError(
                f"min_samples={self.min_samples} is too small for baseline='grpo', whose variance is convex from 3 "
                "samples on; write min_samples=3 or more, or baseline='rloo'"
            )
        return self

    def needs(self, run: RunShape) -> Needs:
        """The step's prompts, and hidden states to predict from."""
        return Needs(candidates=run.prompts_per_step, states=self.states)

    def build(self, *, accept_threshold: float, seed: int) -> "VIPAllocator":
        """Create the strategy."""
        return VIPAllocator(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Observation:
    """One visit of a prompt."""

    state: FloatArray  # [F]
    successes: float
    trials: float


class VIPAllocator(Allocator):
    """Choose the n_i with the smallest total variance, in one round; hidden states of the prompts predict p_i.

    Without states, or before the first observation, every prompt has the prior accept rate.
    """

    def __init__(self, settings: VIPAllocatorConfig) -> None:
        self._settings = settings
        self._observed: deque[_Observation] = deque(maxlen=settings.window)

    def rounds(self, step: Step) -> Rounds:
        """Spend the whole budget in one round."""
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
        """The window of observations; states as base64 of little-endian floats."""
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
        """Restore the memory that `state_dict` returned."""
        self._observed.clear()
        for each in state["observed"]:
            values = np.frombuffer(base64.b64decode(each["state"]), dtype="<f4")
            self._observed.append(_Observation(state=values, successes=each["successes"], trials=each["trials"]))

    def _predict(self, states: FloatArray | None, *, num_prompts: int) -> Float64Array:
        """Predict p [P]."""
        settings = self._settings
        if states is None or not self._observed:
            return np.full(num_prompts, settings.prior_accept_rate)
        from gvm_ray.allocators.rivals.vip import predict_accept_rates  # late: scipy and scikit-learn

        return predict_accept_rates(
            states,
            observed_features=np.stack([each.state for each in self._observed]),
            successes=[each.successes for each in self._observed],
            trials=[each.trials for each in self._observed],
            prior_accept_rate=settings.prior_accept_rate,
            prior_std=settings.prior_std,
            length_scale=settings.length_scale,
        )


_ROUNDING = 1e-6  # of features in single precision


def predict_accept_rates(
    features: ArrayLike,
    *,
    observed_features: ArrayLike,
    successes: ArrayLike,
    trials: ArrayLike,
    prior_accept_rate: float,
    prior_std: float,
    length_scale: float,
) -> NDArray[np.float64]:
    """sigmoid of the posterior mean [P] of a Gaussian process on the logit of the accept rate (after arXiv 2602.01601).

    Its covariance is an RBF kernel on the features, scaled to mean 0 and standard deviation 1 over the observations.
    What is observed is the empirical logit ln((s + 1/2) / (t - s + 1/2)), with its own noise variance
    1 / (s + 1/2) + 1 / (t - s + 1/2) (Gart & Zweifel 1967), so that 8 samples of 8 say more than 1 of 1.

    Args:
        features: [P, F] of the prompts asked for.
        observed_features: [W, F] of the observations, W >= 1; a prompt may occur several times.
        successes: s [W].
        trials: t [W], >= 1.
        prior_accept_rate: where no observation is near, in (0, 1).
        prior_std: standard deviation of the logit before any observation.
        length_scale: of the kernel, in units of the median distance between different observed prompts.
    """
    from sklearn.gaussian_process import GaussianProcessRegressor  # a second to import: only who predicts waits for it
    from sklearn.gaussian_process.kernels import ConstantKernel, PairwiseKernel
    from sklearn.metrics import euclidean_distances

    observed = np.asarray(observed_features, dtype=np.float64)
    mean, std = observed.mean(axis=0), observed.std(axis=0)
    std = np.where(std > _ROUNDING * np.abs(mean), std, 1.0)  # a constant feature says nothing
    observed = (observed - mean) / std
    distances = euclidean_distances(observed)[np.triu_indices(len(observed), k=1)]
    apart = distances[distances > _ROUNDING]
    scale = length_scale * (float(np.median(apart)) if apart.size else 1.0)
    accepted = np.asarray(successes, dtype=np.float64) + 0.5
    rejected = np.asarray(trials, dtype=np.float64) - accepted + 1
    untyped: Any = GaussianProcessRegressor  # type checkers guess its parameters' types from their defaults
    process = untyped(
        # `RBF` in all but speed: that takes distances without BLAS
        kernel=ConstantKernel(prior_std**2) * PairwiseKernel(metric="rbf", gamma=0.5 / scale**2),
        alpha=1 / accepted + 1 / rejected,
        optimizer=None,
    )
    prior = logit(prior_accept_rate)
    process.fit(observed, np.log(accepted / rejected) - prior)
    return expit(prior + process.predict((np.asarray(features, dtype=np.float64) - mean) / std))
