"""The order in which a warm start sees its demonstrations."""

import numpy as np


def demonstration_batches(num_demonstrations: int, *, batch_size: int, num_updates: int, seed: int) -> list[np.ndarray]:
    """Indices of each warm-start update: consecutive slices of one random order after another.

    Every demonstration is seen once before any is seen twice; a batch may reach over the end of an order.
    """
    if num_demonstrations < 1:
        raise ValueError("a warm start needs at least one demonstration")
    total = num_updates * batch_size
    orders = [
        np.random.default_rng((seed, epoch)).permutation(num_demonstrations)
        for epoch in range(-(-total // num_demonstrations))
    ]
    return list(np.concatenate(orders)[:total].reshape(num_updates, batch_size))
