"""Rules of published allocators that decide from what a prompt's earlier samples said."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

GroupBaseline = Literal["grpo", "rloo"]


def allocate_by_gain(gains: ArrayLike, *, minimum: int, budget: int) -> NDArray[np.int64]:
    """Integers n [P] >= `minimum` that sum to `budget` and have the largest sum of gains.

    The largest gains of all are taken. That is exact for a concave value, whose gains fall with n, as the ones taken of
    a prompt are then its first. Ties go to the smaller n, then to the earlier prompt: equal prompts are sampled alike.

    Args:
        gains: [P, K]; column k is what the step from n = minimum + k to n + 1 samples adds.
        minimum: samples that every prompt gets.
        budget: the sum.

    Raises:
        ValueError: a gain is NaN, or rises along a row by more than rounding; or the budget isn't within
            P * minimum and P * (minimum + K).
    """
    table = np.asarray(gains, dtype=np.float64)
    if table.ndim != 2 or np.isnan(table).any():
        raise ValueError(f"gains of shape {table.shape} must be a table [prompts, samples] without NaN")
    if (np.diff(table, axis=1) > 1e-12 * np.abs(table).max(initial=0.0)).any():
        raise ValueError("gains rise along a row, so taking the largest is not exact; give those of a concave value")
    num_prompts, num_steps = table.shape
    if not num_prompts * minimum <= budget <= num_prompts * (minimum + num_steps):
        raise ValueError(
            f"a budget of {budget} can't be split over {num_prompts} prompts with {minimum} to {minimum + num_steps} "
            "samples each"
        )
    largest = np.argsort(-table.T, axis=None, kind="stable")[: budget - num_prompts * minimum]
    return minimum + np.bincount(largest % num_prompts, minlength=num_prompts)


def log_objective_weights(accept_rates: ArrayLike, *, epsilon: float) -> NDArray[np.float64]:
    """1 / sqrt(p + epsilon) [P], for E[ln p] with the advantages (r - p) / sqrt(p) (arXiv 2510.04996, Ada-Est).

    Args:
        accept_rates: p [P] in [0, 1].
        epsilon: > 0.
    """
    return 1 / np.sqrt(np.asarray(accept_rates, dtype=np.float64) + epsilon)


def variance_gains(
    accept_rates: ArrayLike, *, minimum: int, maximum: int, baseline: GroupBaseline
) -> NDArray[np.float64]:
    """[P, maximum - minimum] how much each further sample lowers the variance of a prompt's gradient.

    With the group mean as the baseline ("grpo", without its std) the variance is 4 p (1 - p) (n - 1) / n^2, with the
    mean of the others ("rloo") 4 p (1 - p) / (n - 1), both in units of the variance of a projected gradient, taken as
    the same for all prompts (arXiv 2602.01601). They are convex from n = 3 and n = 2 on.

    Args:
        accept_rates: p [P] in [0, 1].
        minimum: the smallest n, at least 3 for "grpo" and 2 for "rloo".
        maximum: the largest n.
        baseline: which one.

    Raises:
        ValueError: the minimum is below the n from which the variance is convex.
    """
    convex_from = 3 if baseline == "grpo" else 2
    if minimum < convex_from:
        raise ValueError(f"minimum = {minimum} is too small for {baseline!r}; write {convex_from} or more")
    p = np.asarray(accept_rates, dtype=np.float64)
    n = np.arange(minimum, maximum + 1, dtype=np.float64)
    per_unit = (n - 1) / n**2 if baseline == "grpo" else 1 / (n - 1)
    return (4 * p * (1 - p))[:, None] * -np.diff(per_unit)


def knapsack_gains(accept_rates: ArrayLike, *, minimum: int, maximum: int) -> NDArray[np.float64]:
    """[P, maximum - minimum] what each further sample adds to a prompt's value (arXiv 2509.25849).

    The value of n samples is (1 - p^n - (1 - p)^n) p (1 - p)^2: the probability of a gradient other than zero, times
    how much a step on it is expected to raise p. From n to n + 1 it grows by (p^n (1 - p) + (1 - p)^n p) p (1 - p)^2,
    which falls with n: it is concave.

    Args:
        accept_rates: p [P] in [0, 1].
        minimum: the smallest n, at least 1.
        maximum: the largest n.
    """
    p = np.asarray(accept_rates, dtype=np.float64)[:, None]
    n = np.arange(minimum, maximum, dtype=np.float64)
    return (p**n * (1 - p) + (1 - p) ** n * p) * p * (1 - p) ** 2


def draw_by_learning_potential(
    accept_rates: ArrayLike, *, num_drawn: int, temperature: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rising indices of prompts drawn with probability ~ exp(sqrt(p (1 - p)) / temperature), without replacement.

    CurES's choice of prompts (arXiv 2510.01037), by the Gumbel-top-k trick (arXiv 1903.06059), which needs no
    exponentials and so takes any temperature.

    Args:
        accept_rates: p [P] in [0, 1].
        num_drawn: 0 to P.
        temperature: > 0; high is uniform, low only the prompts nearest p = 1/2.
        rng: drawn from.
    """
    p = np.asarray(accept_rates, dtype=np.float64)
    keys = np.sqrt(p * (1 - p)) / temperature + rng.gumbel(size=p.size)
    return np.sort(np.argsort(-keys)[:num_drawn])


def policy_gradient_std(
    accept_rates: ArrayLike, norm_means: ArrayLike, norm_variances: ArrayLike
) -> NDArray[np.float64]:
    """sigma [P] of one sample's (r - p) grad ln pi, from the norms x of correct and y of wrong samples.

    sigma^2 = p (1-p)^2 E[x^2] + p^2 (1-p) E[y^2] - p^2 (1-p)^2 (E[x] - E[y])^2 (arXiv 2510.01037, which takes the norms
    for the gradients in the last term). That equals p (1-p) (((1-p) E[x] + p E[y])^2 + (1-p) Var[x] + p Var[y]), the
    form computed here, which rounding can't make negative. n ~ sigma minimises the sum of sigma_i^2 / n_i.

    Args:
        accept_rates: p [P] in [0, 1].
        norm_means: [P, 2] means, of correct samples and of wrong ones.
        norm_variances: [P, 2].
    """
    p = np.asarray(accept_rates, dtype=np.float64)
    shares = np.stack([1 - p, p], axis=1)
    mean = (shares * np.asarray(norm_means)).sum(axis=1)
    spread = (shares * np.asarray(norm_variances)).sum(axis=1)
    return np.sqrt(p * (1 - p) * (mean**2 + spread))


def half_of_each_class(accepted: ArrayLike, *, num_kept: int) -> NDArray[np.int64]:
    """Indices of `num_kept` samples (all, where there are fewer), half of them accepted, rising.

    The first ones of each class are taken, as its samples are exchangeable; the odd one is a rejected one. Where a
    class is too small the other fills up.

    Args:
        accepted: [n] True for an accepted sample.
        num_kept: >= 0.
    """
    mask = np.asarray(accepted, dtype=np.bool_)
    positives, negatives = np.flatnonzero(mask), np.flatnonzero(~mask)
    num_positives = min(len(positives), max(num_kept // 2, num_kept - len(negatives)))
    return np.sort(np.concatenate([positives[:num_positives], negatives[: num_kept - num_positives]]))


def max_variance_subset(rewards: ArrayLike, *, size: int) -> NDArray[np.int64]:
    """Indices [size], ascending, of the samples whose rewards have the largest variance.

    That subset is the lowest k and the highest size - k of the sorted rewards for some k (PODS, arXiv 2504.13818,
    max-variance down-sampling), so comparing every k is exact. Of equal variances the smallest k is taken, of equal
    rewards the earlier sample if low, the later one if high.

    Args:
        rewards: [n] finite.
        size: from 1 to n.

    Raises:
        ValueError: a reward isn't finite, or there are fewer than `size`.
    """
    r = np.asarray(rewards, dtype=np.float64)
    if not np.isfinite(r).all():
        raise ValueError(f"rewards = {r.tolist()} must be finite; leave unscored samples out")
    if not 1 <= size <= r.size:
        raise ValueError(f"size = {size} is not between 1 and the {r.size} samples there are")
    order = np.argsort(r, kind="stable")
    ascending = r[order] - r.mean()  # centred, so that a large offset costs no precision
    num_low = np.arange(size + 1)
    means, squares = (_ends(values, num_low, size) / size for values in (ascending, ascending**2))
    best = int(np.argmax(squares - means**2))
    return np.sort(np.concatenate([order[:best], order[r.size - (size - best) :]]))


def _ends(ascending: NDArray[np.float64], num_low: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Sum of the first k and the last size - k values, for every k of `num_low`."""
    sums = np.concatenate([[0.0], np.cumsum(ascending)])
    return sums[num_low] + sums[-1] - sums[ascending.size - size + num_low]


def zero_variance_run(run: int, *, lowest: float, highest: float, accept_threshold: float) -> int:
    """The run of a prompt's zero-variance visits after one more: z > 0 visits solved, -z failed, 0 after any other.

    Args:
        run: before the visit.
        lowest: smallest reward of the visit's samples.
        highest: largest one.
        accept_threshold: equal rewards of at least this are a solved visit.
    """
    if lowest < highest:
        return 0
    return max(run, 0) + 1 if lowest >= accept_threshold else min(run, 0) - 1


def sampling_probability(runs: ArrayLike, *, easy: float, hard: float, minimum: float) -> NDArray[np.float64]:
    """Probability [P] that a prompt is not skipped: p^z after z zero-variance visits in a row, and 1 after none.

    GRESO's probabilistic filter, which skips with probability 1 - p^z (arXiv 2506.02177), with a p for each kind.

    Args:
        runs: [P] as `zero_variance_run` counts them.
        easy: p of solved visits.
        hard: p of failed visits.
        minimum: floor on the probability.
    """
    z = np.asarray(runs, dtype=np.int64)
    return np.maximum(np.where(z > 0, easy, hard) ** np.abs(z), minimum)


def adjusted_exploration(
    probability: float, *, fraction: float, target: float, step: float, minimum: float, maximum: float
) -> float:
    """GRESO's base exploration probability after a step: lower where zero-variance groups reach their target share.

    Args:
        probability: before the step.
        fraction: of the step's groups that had zero variance.
        target: share of such groups that is aimed at.
        step: how far the probability moves.
        minimum: of the probability.
        maximum: of the probability.
    """
    return max(probability - step, minimum) if fraction >= target else min(probability + step, maximum)


def thompson_nearest(
    successes: ArrayLike,
    trials: ArrayLike,
    *,
    prior_successes: float,
    prior_failures: float,
    target: float,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Prompts [P] by how near a draw of their accept rate is to the target, the nearest first.

    The draw is from Beta(prior_successes + s, prior_failures + t - s) (MoPPS, arXiv 2507.04632).

    Args:
        successes: s [P].
        trials: t [P].
        prior_successes: > 0.
        prior_failures: > 0.
        target: the accept rate that is wanted.
        rng: of the draws.
    """
    s, t = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    draws = rng.beta(prior_successes + s, prior_failures + t - s)
    return np.argsort(np.abs(draws - target), kind="stable")
