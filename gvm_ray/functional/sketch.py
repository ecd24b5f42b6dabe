"""Random projections of vectors with millions of entries, at the cost of one pass over them."""

import torch
from torch import Tensor


class CountSketch:
    """A fixed linear map from P to D dimensions: each entry, with a random sign, is added to a random one of D sums.

    Inner products are kept in expectation over the map, with a variance of at most (|x|^2 |y|^2 + (x . y)^2) / D
    (Charikar, Chen, Farach-Colton 2002; Weinberger et al. 2009, arXiv 0902.2206, Lemma 2). Unlike a Gaussian matrix,
    it needs P and not P x D numbers.
    """

    def __init__(self, num_entries: int, *, size: int, seed: int, device: torch.device | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.size = size
        self._sums = torch.randint(size, (num_entries,), generator=generator, dtype=torch.int32).to(device)
        self._signs = (torch.randint(2, (num_entries,), generator=generator, dtype=torch.int8) * 2 - 1).to(device)

    def __call__(self, vector: Tensor) -> Tensor:
        """[P] to [D], in the dtype of `vector`."""
        return vector.new_zeros(self.size).index_add_(0, self._sums, vector * self._signs)
