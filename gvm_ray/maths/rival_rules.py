"""Allocation and selection rules of published allocators, as functions of a prompt's earlier samples."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gvm_ray.maths.advantages import has_signal

GroupBaseline = Literal["grpo", "rloo"]


def allocate_by_gain(gains: ArrayLike, *, minimum: int, budget: int) -> NDArray[np.int64]:
    """Choose integers n [P] >= `minimum` that sum to `budget` and have the largest sum of gains.

    The largest gains overall are taken. This is exact for a concave value: a prompt's gains fall with n, so the gains
    taken are its first ones. Ties go to the smaller n, then to the earlier prompt, so equal prompts are sampled alike.

    Args:
        gains: [P, K]; column k is the gain from n = minimum + k to n + 1 samples.
        minimum: number of samples that every prompt gets.
        budget: sum of n.

    Raises:
        ValueError: a gain is NaN, or rises along a row by more than rounding; or the budget isn't between
            P * minimum and P * (minimum + K).
    """
    table = np.asarray(gains, dtype=np.float64)
    if table.ndim != 2 or np.isnan(table).any():
        raise ValueError(f"gains of shape {table.shape} must be a table [prompts, samples] without NaN")
    if (np.diff(table, axis=1) > 1e-12 * np.abs(table).max(initial=0.0)).any():
        raise ValueError("gains rise along a row, so taking the largest is not exact; give gains of a concave value")
    num_prompts, num_steps = table.shape
    if not num_prompts * minimum <= budget <= num_prompts * (minimum + num_steps):
        raise ValueError(
            f"a budget of {budget} can't be split over {num_prompts} prompts with {minimum} to {minimum + num_steps} "
            "samples each"
        )
    largest = np.argsort(-table.T, axis=None, kind="stable")[: budget - num_prompts * minimum]
    return minimum + np.bincount(largest % num_prompts, minlength=num_prompts)


def log_objective_weights(accept_rates: ArrayLike, *, epsilon: float) -> NDArray[np.float64]:
    """Compute 1 / sqrt(p + epsilon) [P], for E[ln p] with advantages (r - p) / sqrt(p) (arXiv 2510.04996, Ada-Est).

    Args:
        accept_rates: p [P] in [0, 1].
        epsilon: > 0.
    """
    return 1 / np.sqrt(np.asarray(accept_rates, dtype=np.float64) + epsilon)


def variance_gains(
    accept_rates: ArrayLike, *, minimum: int, maximum: int, baseline: GroupBaseline
) -> NDArray[np.float64]:
    """Compute the reduction of the variance of each prompt's gradient by each further sample, [P, maximum - minimum].

    With the group mean as baseline ("grpo", without its std) the variance is 4 p (1 - p) (n - 1) / n^2. With the mean
    of the others ("rloo") it is 4 p (1 - p) / (n - 1). Both are in units of the variance of a projected gradient,
    assumed equal for all prompts (arXiv 2602.01601), and convex from n = 3 and n = 2 on.

    Args:
        accept_rates: p [P] in [0, 1].
        minimum: the smallest n, at least 3 for "grpo" and 2 for "rloo".
        maximum: the largest n.
        baseline: "grpo" or "rloo".

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
    """Compute the gain of each further sample in a prompt's value (arXiv 2509.25849), [P, maximum - minimum].

    The value of n samples is (1 - p^n - (1 - p)^n) p (1 - p)^2: the probability of a nonzero gradient, times the
    expected rise of p by a step on it. From n to n + 1 it grows by (p^n (1 - p) + (1 - p)^n p) p (1 - p)^2. This gain
    falls with n, so the value is concave.

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
    """Draw prompts without replacement, with probability ~ exp(sqrt(p (1 - p)) / temperature); ascending indices.

    This is CurES's choice of prompts (arXiv 2510.01037), by the Gumbel-top-k trick (arXiv 1903.06059), which needs no
    exponentials and so works at any temperature.

    Args:
        accept_rates: p [P] in [0, 1].
        num_drawn: number of prompts to draw, 0 to P.
        temperature: > 0; a high one draws uniformly, a low one only prompts nearest p = 1/2.
        rng: generator of the draws.
    """
    p = np.asarray(accept_rates, dtype=np.float64)
    return _draw_by_log_weights(np.sqrt(p * (1 - p)) / temperature, num_drawn=num_drawn, rng=rng)


def draw_at_learning_edge(
    accept_rates: ArrayLike, entropies: ArrayLike, *, num_drawn: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw prompts without replacement, with probability ~ p (1 - p) h; ascending indices.

    HIVE's learning edge (arXiv 2603.25184) is where difficulty is intermediate and response entropy high; the product
    is this package's choice.

    Args:
        accept_rates: p [P] in [0, 1].
        entropies: h [P] >= 0 of earlier responses; NaN for unknown, which counts as the mean of the known ones.
        num_drawn: number of prompts to draw, 0 to P.
        rng: generator of the draws.
    """
    p, h = np.asarray(accept_rates, dtype=np.float64), np.asarray(entropies, dtype=np.float64)
    known = np.isfinite(h)
    filled = np.where(known, h, h[known].mean() if known.any() else 1.0)
    with np.errstate(divide="ignore"):  # a weight of 0 is drawn after all others
        log_weights = np.log(p * (1 - p)) + np.log(filled)
    return _draw_by_log_weights(log_weights, num_drawn=num_drawn, rng=rng)


def _draw_by_log_weights(
    log_weights: NDArray[np.float64], *, num_drawn: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    keys = log_weights + rng.gumbel(size=log_weights.size)
    return np.sort(np.argsort(-keys)[:num_drawn])


def draw_by_uncertainty(values: ArrayLike, *, floor: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw an order of the prompts, without replacement and with probability ~ sqrt(v (1 - v)) + floor.

    The first of the order are SPO's choice (arXiv 2509.13232), by the Gumbel-top-k trick (arXiv 1903.06059).

    Args:
        values: v [P]; one outside [0, 1] counts as the nearest inside.
        floor: >= 0; with 0, prompts at v = 0 and 1 come last.
        rng: generator of the draws.
    """
    v = np.asarray(values, dtype=np.float64).clip(0.0, 1.0)
    with np.errstate(divide="ignore"):  # a weight of 0 is drawn last
        return np.argsort(-(np.log(np.sqrt(v * (1 - v)) + floor) + rng.gumbel(size=v.size)), kind="stable")


def policy_gradient_std(
    accept_rates: ArrayLike, norm_means: ArrayLike, norm_variances: ArrayLike
) -> NDArray[np.float64]:
    """Compute sigma [P] of one sample's (r - p) grad ln pi, from the norms x of correct and y of wrong samples.

    sigma^2 = p (1-p)^2 E[x^2] + p^2 (1-p) E[y^2] - p^2 (1-p)^2 (E[x] - E[y])^2 (arXiv 2510.01037, which replaces
    gradients by their norms in the last term). The equal form p (1-p) (((1-p) E[x] + p E[y])^2 + (1-p) Var[x] +
    p Var[y]) is computed here, because rounding can't make it negative. n ~ sigma minimises the sum of sigma_i^2 / n_i.

    Args:
        accept_rates: p [P] in [0, 1].
        norm_means: [P, 2] means of the norms of correct and of wrong samples.
        norm_variances: [P, 2] variances of the same.
    """
    p = np.asarray(accept_rates, dtype=np.float64)
    shares = np.stack([1 - p, p], axis=1)
    mean = (shares * np.asarray(norm_means)).sum(axis=1)
    spread = (shares * np.asarray(norm_variances)).sum(axis=1)
    return np.sqrt(p * (1 - p) * (mean**2 + spread))


def half_of_each_class(accepted: ArrayLike, *, num_kept: int) -> NDArray[np.int64]:
    """Choose `num_kept` samples (all, if there are fewer), half of them accepted; ascending indices.

    The first samples of each class are taken, since the samples of a class are exchangeable. An odd number takes one
    more rejected sample. If a class is too small, the other fills up.

    Args:
        accepted: [n] True for an accepted sample.
        num_kept: number of samples to choose, >= 0.
    """
    mask = np.asarray(accepted, dtype=np.bool_)
    positives, negatives = np.flatnonzero(mask), np.flatnonzero(~mask)
    num_positives = min(len(positives), max(num_kept // 2, num_kept - len(negatives)))
    return np.sort(np.concatenate([positives[:num_positives], negatives[: num_kept - num_positives]]))


def max_variance_subset(rewards: ArrayLike, *, size: int) -> NDArray[np.int64]:
    """Choose the subset of `size` samples whose rewards have the largest variance; ascending indices [size].

    For some k, that subset is the lowest k and the highest size - k of the sorted rewards (PODS, arXiv 2504.13818,
    max-variance down-sampling), so comparing every k is exact. Among equal variances the smallest k is taken; among
    equal rewards, the earlier sample if low and the later one if high.

    Args:
        rewards: [n] finite.
        size: number of samples to choose, from 1 to n.

    Raises:
        ValueError: a reward isn't finite, or there are fewer than `size`.
    """
    r = np.asarray(rewards, dtype=np.float64)
    if not np.isfinite(r).all():
        raise ValueError(f"rewards = {r.tolist()} must be finite; leave unscored samples out")
    if not 1 <= size <= r.size:
        raise ValueError(f"size = {size} is not between 1 and the number of samples, {r.size}")
    order = np.argsort(r, kind="stable")
    ascending = r[order] - r.mean()  # centred, so that a large offset costs no precision
    num_low = np.arange(size + 1)
    means, squares = (_ends(values, num_low, size) / size for values in (ascending, ascending**2))
    best = int(np.argmax(squares - means**2))
    return np.sort(np.concatenate([order[:best], order[r.size - (size - best) :]]))


def _ends(ascending: NDArray[np.float64], num_low: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Compute the sum of the first k and the last size - k values, for every k of `num_low`."""
    sums = np.concatenate([[0.0], np.cumsum(ascending)])
    return sums[num_low] + sums[-1] - sums[ascending.size - size + num_low]


def zero_variance_run(
    run: int, *, lowest: float, highest: float, accept_threshold: float, tolerance: float = 0.0
) -> int:
    """Update a prompt's count of zero-variance visits in a row: z solved visits, -z failed visits, 0 after any other.

    Args:
        run: the count before the visit.
        lowest: smallest reward of the visit's samples.
        highest: largest reward of the visit's samples.
        accept_threshold: a visit with equal rewards is solved if they are at least this.
        tolerance: largest difference of equal rewards.
    """
    if has_signal(lowest, highest, tolerance=tolerance):
        return 0
    return max(run, 0) + 1 if lowest >= accept_threshold else min(run, 0) - 1


def sampling_probability(runs: ArrayLike, *, easy: float, hard: float, minimum: float) -> NDArray[np.float64]:
    """Compute the probability [P] that a prompt is not skipped: p^z after z zero-variance visits in a row, else 1.

    This is GRESO's probabilistic filter, which skips with probability 1 - p^z (arXiv 2506.02177), with a separate p for
    solved and failed visits.

    Args:
        runs: [P] counts as returned by `zero_variance_run`.
        easy: p for solved visits.
        hard: p for failed visits.
        minimum: floor on the probability.
    """
    z = np.asarray(runs, dtype=np.int64)
    return np.maximum(np.where(z > 0, easy, hard) ** np.abs(z), minimum)


def adjusted_exploration(
    probability: float, *, fraction: float, target: float, step: float, minimum: float, maximum: float
) -> float:
    """Adjust GRESO's base exploration probability after a step: down if zero-variance groups reach their target share.

    Args:
        probability: the value before the step.
        fraction: share of the step's groups that had zero variance.
        target: target share of such groups.
        step: size of the change.
        minimum: lower bound on the probability.
        maximum: upper bound on the probability.
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
    """Sort prompts [P] by the distance of a random draw of their accept rate from the target, nearest first.

    Draws come from Beta(prior_successes + s, prior_failures + t - s) (MoPPS, arXiv 2507.04632).

    Args:
        successes: s [P].
        trials: t [P].
        prior_successes: > 0.
        prior_failures: > 0.
        target: the target accept rate.
        rng: generator of the draws.
    """
    s, t = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    draws = rng.beta(prior_successes + s, prior_failures + t - s)
    return np.argsort(np.abs(draws - target), kind="stable")
