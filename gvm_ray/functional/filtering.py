"""Which prompts are worth sampling, and which samples worth training on: formulas of methods that choose."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
