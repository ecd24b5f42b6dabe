"""The sample sizes with the least expected squared error, for someone who knows every prompt's gradients."""

import numpy as np
from numpy.typing import NDArray

from gvm_ray.functional.group_moments import GroupMoments

_JUMPS = range(1, 17)  # one sample of a rarely solved prompt adds noise before many of them take bias away
_MAX_EXCHANGES = 2000


def oracle_counts(moments: GroupMoments, *, budget: int) -> NDArray[np.int64]:
    """Integers n [P] that sum to `budget`, none above the moments' N: a local minimum of the expected squared error of
    the mean of the P prompts' terms.

    From a greedy start, which adds the samples that lower the error most for each, and from an even one, samples are
    moved from one prompt to another while that lowers the exact error; the better end is taken.

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
    """Sample sizes, and what the error becomes when some of them change."""

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
        """Give a prompt so many samples more."""
        self.counts[prompt] += num_samples

    def changes(self, jump: int) -> NDArray[np.float64]:
        """[P] change of the error by `jump` samples more (or less) for one prompt; infinite where out of bounds."""
        return self._changes(jump)[0]

    def exchange(self) -> "_Search":
        """Move samples between two prompts while that lowers the error; returns itself."""
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

    def _means(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._moments.means[:, counts, self._prompts]

    def _changes(self, jump: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Changes of the error [P], and of the means' weights [2, P], by `jump` samples more for one prompt."""
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
