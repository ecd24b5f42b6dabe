"""A random projection: linear, the same for the same seed, and right on average over seeds."""

import numpy as np
import torch

from gvm_ray.lab.estimator.pool import CountSketch


def test_inner_products_are_kept_in_expectation() -> None:
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=50) + 1) for _ in range(2))
    sketches = [CountSketch(50, size=8, seed=seed) for seed in range(3000)]
    products = np.array([float(sketch(x) @ sketch(y)) for sketch in sketches])
    error = products.std() / np.sqrt(len(products))
    assert abs(products.mean() - float(x @ y)) < 4 * error
    bound = (float(x @ x) * float(y @ y) + float(x @ y) ** 2) / 8
    assert products.var() < 1.1 * bound


def test_it_is_linear_and_fixed_by_its_seed() -> None:
    sketch, same, other = (CountSketch(1000, size=64, seed=seed) for seed in (1, 1, 2))
    x, y = torch.randn(1000, dtype=torch.float64), torch.randn(1000, dtype=torch.float64)
    torch.testing.assert_close(sketch(2 * x - y), 2 * sketch(x) - sketch(y))
    assert torch.equal(sketch(x), same(x))
    assert not torch.equal(sketch(x), other(x))
    assert sketch(x).shape == (64,)
