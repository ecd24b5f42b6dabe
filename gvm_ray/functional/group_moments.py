"""Exact expected error of a gradient estimate that adds up independent groups, for given sample sizes.

For a group of n samples, k of them accepted, estimators with binary rewards take c+(n, k) times the mean gradient of
the accepted samples and c-(n, k) times that of the rejected ones. With k binomial, and the samples of each class
independent draws, mean and second moment of the group's term are sums over k; no sample has to be drawn.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from gvm_ray.functional.estimator_quality import ErrorSplit

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupCoefficients:
    """c+ and c- [N + 1, N + 1] for groups of n samples, of which k are accepted; 0 where k > n, and at n = 0."""

    accepted: Array
    rejected: Array

    @property
    def max_samples(self) -> int:
        """N."""
        return len(self.accepted) - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptGradients:
    """Moments of the gradients of P prompts' samples; 0 for a class that a prompt has no samples of."""

    accept_rates: Array  # [P]
    means: Array  # [2, P, D] of the accepted and of the rejected samples
    spreads: Array  # [2, P] trace of their covariances


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleSizes:
    """How the samples of a step are split over P prompts: one split, or S independent draws of a random one."""

    counts: Array  # [S, P]; a fraction is the chance to be rounded up, drawn for each prompt by itself
    factors: Array  # [S, P] on each group's term: 1 / number of prompts, times a prompt's weight


class GroupMoments:
    """Means and second moments of each prompt's group for every n up to N, and the errors that follow from them.

    The term of prompt i with n samples has the mean A+_i(n) mu+_i + A-_i(n) mu-_i.
    """

    def __init__(self, coefficients: GroupCoefficients, gradients: PromptGradients, *, target: Array) -> None:
        """Moments for a target [D], the gradient that is estimated."""
        self.max_samples = coefficients.max_samples
        self.num_prompts = len(gradients.accept_rates)
        vectors = gradients.means.reshape(2 * self.num_prompts, -1)
        self.products = vectors @ vectors.T  # [2P, 2P] of the classes' mean gradients
        self.with_target = vectors @ target  # [2P]
        self.target_square = float(target @ target)
        p = np.arange(self.num_prompts)
        own = self.products.reshape(2, self.num_prompts, 2, self.num_prompts)[:, p, :, p]  # [P, 2, 2]
        self._own = own
        self.means = np.zeros((2, self.max_samples + 1, self.num_prompts))  # A+ and A-
        self.seconds = np.zeros((self.max_samples + 1, self.num_prompts))  # E |term|^2
        for n in range(1, self.max_samples + 1):
            self._fill(n, coefficients, gradients)

    @cached_property
    def variances(self) -> Array:
        """[N + 1, P] E |term - E term|^2."""
        return self.seconds - self._square(self.means)

    def expected_error(self, sizes: SampleSizes) -> ErrorSplit:
        """Of the estimate sum_i factor_i term_i(n_i), over sampling and over splits; like that of `measured_error`, the
        squared bias is without the noise of a mean over S draws.

        Raises:
            ValueError: a count is above N.
        """
        if sizes.counts.max(initial=0) > self.max_samples:
            raise ValueError(f"a count of {sizes.counts.max():g} is above the {self.max_samples} that moments are of")
        variances, totals = [], []
        for counts, factors in zip(sizes.counts, sizes.factors, strict=True):
            means = self._at(self.means, counts)
            total = (factors * means).reshape(-1)
            variances.append(factors**2 @ (self._at(self.seconds, counts) - self._square(means)))
            totals.append(total)
        total, offsets = np.mean(totals, axis=0), np.mean([self.bias_square(each) for each in totals])
        error, bias_squared = float(np.mean(variances) + offsets), self.bias_square(total)
        if len(totals) > 1:
            bias_squared -= float(offsets - bias_squared) / (len(totals) - 1)
        square = float(total @ self.products @ total) * self.target_square
        return ErrorSplit(
            variance=error - bias_squared,
            bias_squared=bias_squared,
            mean_squared_error=error,
            cosine=float(total @ self.with_target) / square**0.5 if square > 0 else float("nan"),
        )

    def bias_square(self, total: Array) -> float:
        """|sum of mean gradients - target|^2 for weights [2P] of the classes' mean gradients."""
        return float(total @ self.products @ total - 2 * total @ self.with_target + self.target_square)

    def _fill(self, n: int, coefficients: GroupCoefficients, gradients: PromptGradients) -> None:
        k = np.arange(n + 1)
        chances = binom.pmf(k[:, None], n, gradients.accept_rates)  # [n + 1, P]
        accepted, rejected = coefficients.accepted[n, : n + 1], coefficients.rejected[n, : n + 1]
        self.means[:, n] = accepted @ chances, rejected @ chances
        cross = np.stack([[accepted**2, accepted * rejected], [accepted * rejected, rejected**2]])  # [2, 2, n + 1]
        within = np.stack([accepted**2 / np.maximum(k, 1), rejected**2 / np.maximum(n - k, 1)])  # [2, n + 1]
        self.seconds[n] = np.einsum("abk,kp,pab->p", cross, chances, self._own)
        self.seconds[n] += ((within @ chances) * gradients.spreads).sum(axis=0)

    def _square(self, means: Array) -> Array:
        """[..., P] |A+ mu+ + A- mu-|^2 for A [2, ..., P]."""
        return np.einsum("a...p,pab,b...p->...p", means, self._own, means)

    @staticmethod
    def _at(table: Array, counts: Array) -> Array:
        """Values [..., P] of a table [..., N + 1, P] at real-valued counts [P]: the mean over rounding up or down."""
        low = np.floor(counts).astype(np.int64)
        share, p = counts - low, np.arange(len(counts))
        high = np.minimum(low + 1, table.shape[-2] - 1)
        return (1 - share) * table[..., low, p] + share * table[..., high, p]
