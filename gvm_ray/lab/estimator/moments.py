"""Moments of gradient estimates from groups of given sizes: exact, measured, and for sizes with the least error."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from gvm_ray.types import Float64Array

NUM_RESAMPLES = 2000
_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class ErrorSplit:
    """An error split into variance and squared bias, whose sum it is; in units of the squared target."""

    variance: float  # E |x - E x|^2
    bias_squared: float  # |E x - target|^2; an unbiased measurement, so it may be below 0
    mean_squared_error: float  # E |x - target|^2
    cosine: float  # of E x with the target; NaN if E x is 0 or lost in noise


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredError(ErrorSplit):
    """An error split estimated from repeats, and from bootstrap resamples of the repeats.

    The mean of a resample is off the target by the noise of resampling too, so the squared bias of resamples lies above
    the estimate. Their standard deviation is the estimate's error, but their percentiles are not its interval.
    """

    resampled: Float64Array  # [NUM_RESAMPLES, 3] variance, bias_squared, mean_squared_error

    @property
    def deviations(self) -> tuple[float, float, float]:
        """Standard errors of variance, bias_squared and mean_squared_error."""
        variance, bias_squared, error = self.resampled.std(axis=0)
        return float(variance), float(bias_squared), float(error)


def measured_error(estimates: Float64Array, target: Float64Array, *, seed: int = 0) -> MeasuredError:
    """Measure variance, squared bias and mean squared error of R independent estimates.

    The squared bias is |mean - target|^2 minus variance / R, the chance error of a mean of R estimates. So both the
    squared bias and the variance are unbiased, and their sum is the mean of the squared errors.

    Args:
        estimates: [R, D], R >= 2.
        target: [D].
        seed: seed of the bootstrap over repeats.

    Raises:
        ValueError: fewer than two estimates.
    """
    num_repeats = len(estimates)
    if num_repeats < 2:
        raise ValueError(f"a variance needs at least 2 repeats, got {num_repeats}; write num_repeats=2 or more")
    errors = (estimates - target).astype(np.float64)
    products = errors @ errors.T
    point = _split(np.ones((1, num_repeats)), products)[0]
    draws = np.random.default_rng(seed).multinomial(num_repeats, np.full(num_repeats, 1 / num_repeats), NUM_RESAMPLES)
    mean = estimates.mean(axis=0, dtype=np.float64)
    square = float(mean @ mean) - point[0] / num_repeats
    return MeasuredError(
        variance=float(point[0]),
        bias_squared=float(point[1]),
        mean_squared_error=float(point[2]),
        cosine=float(mean @ target / np.sqrt(square * (target @ target))) if square > 0 else float("nan"),
        resampled=_split(draws.astype(np.float64), products),
    )


def ratio_interval(error: MeasuredError, baseline: MeasuredError) -> tuple[float, float]:
    """Compute a 95 % percentile interval of the ratio of two mean squared errors from independent repeats."""
    ratios = error.resampled[:, 2] / baseline.resampled[::-1, 2]  # reversed, so that equal seeds don't make pairs
    low, high = np.quantile(ratios, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)


def _split(counts: Float64Array, products: Float64Array) -> Float64Array:
    """Compute the split [B, 3] of B resamples from counts of the repeats [B, R] and errors' inner products [R, R]."""
    num_repeats = counts.shape[1]
    error = counts @ np.diag(products) / num_repeats
    of_mean = np.einsum("br,br->b", counts @ products, counts) / num_repeats**2
    variance = (error - of_mean) * num_repeats / (num_repeats - 1)
    return np.stack([variance, of_mean - variance / num_repeats, error], axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupCoefficients:
    """Coefficients c+ and c- [N + 1, N + 1] of groups with n samples and k accepted; 0 for k > n and for n = 0."""

    accepted: Float64Array
    rejected: Float64Array

    @property
    def max_samples(self) -> int:
        """The largest group size N."""
        return len(self.accepted) - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptGradients:
    """Moments of the gradients of P prompts' samples; 0 for a class without samples."""

    accept_rates: Float64Array  # [P]
    means: Float64Array  # [2, P, D] of the accepted and of the rejected samples
    spreads: Float64Array  # [2, P] trace of their covariances


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleSizes:
    """The split of a step's samples over P prompts: one split, or S independent draws of a random split."""

    counts: Float64Array  # [S, P]; a fraction is the probability of rounding up, independent for each prompt
    factors: Float64Array  # [S, P] on each group's term: 1 / number of prompts, times the prompt's weight


class GroupMoments:
    """Means and second moments of each prompt's group for every n up to N, and the errors computed from them.

    The term of prompt i with n samples has the mean A+_i(n) mu+_i + A-_i(n) mu-_i.
    """

    def __init__(self, coefficients: GroupCoefficients, gradients: PromptGradients, *, target: Float64Array) -> None:
        """Compute the moments for a target [D], the gradient to estimate."""
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
    def variances(self) -> Float64Array:
        """Variances E |term - E term|^2 [N + 1, P]."""
        return self.seconds - self._square(self.means)

    def expected_error(self, sizes: SampleSizes) -> ErrorSplit:
        """Compute the error of the estimate sum_i factor_i term_i(n_i), over sampling and over splits. As in
        `measured_error`, the squared bias excludes the noise of a mean over S draws.

        Raises:
            ValueError: a count is above N.
        """
        if sizes.counts.max(initial=0) > self.max_samples:
            raise ValueError(f"a count of {sizes.counts.max():g} is above the moments' max_samples={self.max_samples}")
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

    def error_of_random_prompts(self, size: int, *, budget: int) -> ErrorSplit:
        """Compute the error of the mean term of budget / size prompts drawn with replacement, of `size` samples each.

        With single samples' variance Sigma_w within and Sigma_b between prompts, terms that are means over samples have
        the variance (Sigma_w + size Sigma_b) / budget (POISE, arXiv 2605.07579, Proposition 1): least at one a prompt.
        """
        mean = (self.means[:, size] / self.num_prompts).reshape(-1)
        square = float(mean @ self.products @ mean)
        variance = (float(self.seconds[size].mean()) - square) * size / budget
        bias_squared = self.bias_square(mean)
        norms = square * self.target_square
        return ErrorSplit(
            variance=variance,
            bias_squared=bias_squared,
            mean_squared_error=variance + bias_squared,
            cosine=float(mean @ self.with_target) / norms**0.5 if norms > 0 else float("nan"),
        )

    def bias_square(self, total: Float64Array) -> float:
        """Compute |sum of mean gradients - target|^2 for weights [2P] of the classes' mean gradients."""
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

    def _square(self, means: Float64Array) -> Float64Array:
        """Compute |A+ mu+ + A- mu-|^2 [..., P] for A [2, ..., P]."""
        return np.einsum("a...p,pab,b...p->...p", means, self._own, means)

    @staticmethod
    def _at(table: Float64Array, counts: Float64Array) -> Float64Array:
        """Look up values [..., P] of a table [..., N + 1, P] at real-valued counts [P], by linear interpolation: the
        mean over rounding up or down."""
        low = np.floor(counts).astype(np.int64)
        share, p = counts - low, np.arange(len(counts))
        high = np.minimum(low + 1, table.shape[-2] - 1)
        return (1 - share) * table[..., low, p] + share * table[..., high, p]


_JUMPS = range(1, 17)  # for a rarely solved prompt, one sample only adds noise, but many reduce the bias
_MAX_EXCHANGES = 2000


def oracle_counts(moments: GroupMoments, *, budget: int) -> NDArray[np.int64]:
    """Find integers n [P] <= N that sum to `budget`, at a local minimum of the expected squared error of the mean of
    the P prompts' terms.

    There are two starts: a greedy one, which adds the samples with the largest error reduction per sample, and an even
    one. From each, samples are moved between two prompts while that lowers the exact error. The better end is taken.

    Raises:
        ValueError: the budget is above N samples for each prompt.
    """
    if budget > moments.max_samples * moments.num_prompts:
        raise ValueError(
            f"a budget of {budget} samples is above {moments.max_samples} for each of {moments.num_prompts} prompts"
        )
    even = np.full(moments.num_prompts, budget // moments.num_prompts)
    even[: budget % moments.num_prompts] += 1
    ends = [_Search(moments, start).exchange() for start in (_greedy(moments, budget), even)]
    return min(ends, key=lambda end: end.error).counts


def _greedy(moments: GroupMoments, budget: int) -> NDArray[np.int64]:
    search = _Search(moments, np.zeros(moments.num_prompts, dtype=np.int64))
    left = budget
    while left:
        jumps = [jump for jump in _JUMPS if jump <= left]
        changes = np.stack([search.changes(jump) / jump for jump in jumps])
        row, prompt = np.unravel_index(np.argmin(changes), changes.shape)
        search.add(int(prompt), jumps[row])
        left -= jumps[row]
    return search.counts


class _Search:
    """A search state: sample sizes, and the changes of the error when some of them change."""

    def __init__(self, moments: GroupMoments, counts: NDArray[np.int64]) -> None:
        self._moments = moments
        self._prompts = np.arange(moments.num_prompts)
        self.counts = counts.copy()
        products = moments.products.reshape(2, moments.num_prompts, 2, moments.num_prompts)
        self._products = products / moments.num_prompts**2  # of the terms' shares in the mean
        self._own = self._products[:, self._prompts, :, self._prompts]  # [P, 2, 2]
        self._variances = moments.variances / moments.num_prompts**2

    @property
    def error(self) -> float:
        """The expected squared error."""
        total = self._means(self.counts).reshape(-1) / self._moments.num_prompts
        return float(self._variances[self.counts, self._prompts].sum()) + self._moments.bias_square(total)

    def add(self, prompt: int, num_samples: int) -> None:
        """Give a prompt `num_samples` more samples."""
        self.counts[prompt] += num_samples

    def changes(self, jump: int) -> Float64Array:
        """Compute the change of the error [P] by `jump` more (or fewer) samples of one prompt; inf if out of bounds."""
        return self._changes(jump)[0]

    def exchange(self) -> "_Search":
        """Move samples between two prompts while that lowers the error; return self."""
        for _ in range(_MAX_EXCHANGES):
            best, move = -1e-12 * self._moments.target_square, None
            for jump in _JUMPS:
                (less, off), (more, on) = self._changes(-jump), self._changes(jump)
                together = 2 * np.einsum("ai,aibj,bj->ij", off, self._products, on)
                change = less[:, None] + more[None, :] + together
                np.fill_diagonal(change, np.inf)
                giver, taker = np.unravel_index(np.argmin(change), change.shape)
                if change[giver, taker] < best:
                    best, move = change[giver, taker], (int(giver), int(taker), jump)
            if move is None:
                break
            giver, taker, jump = move
            self.add(giver, -jump)
            self.add(taker, jump)
        return self

    def _means(self, counts: NDArray[np.int64]) -> Float64Array:
        return self._moments.means[:, counts, self._prompts]

    def _changes(self, jump: int) -> tuple[Float64Array, Float64Array]:
        """Compute the changes of the error [P] and of the means' weights [2, P] by `jump` more samples of a prompt."""
        new = self.counts + jump
        inside = (new >= 0) & (new <= self._moments.max_samples)
        new = np.where(inside, new, self.counts)
        difference = self._means(new) - self._means(self.counts)
        now = np.einsum("aibj,bj->ai", self._products, self._means(self.counts))
        pull = now - self._moments.with_target.reshape(2, -1) / self._moments.num_prompts
        change = (
            (self._variances[new, self._prompts] - self._variances[self.counts, self._prompts])
            + 2 * (difference * pull).sum(axis=0)
            + np.einsum("ai,iab,bi->i", difference, self._own, difference)
        )
        return np.where(inside, change, np.inf), difference
