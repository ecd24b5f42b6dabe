"""The decision of a step: times by pytest-benchmark, results by hand."""

from typing import Any

import pytest

from gvm_ray.bench.plan import SAMPLES_PER_PROMPT, strategies


@pytest.mark.parametrize("num_prompts", [10**3, 10**5])
@pytest.mark.parametrize("name", ["uniform", "gvm"])
def test_a_decision_spends_the_budget(benchmark: Any, name: str, num_prompts: int) -> None:
    decide, weigh = strategies(num_prompts)[name]
    counts = benchmark(decide)
    assert counts.sum() == SAMPLES_PER_PROMPT * num_prompts
    assert counts.min() >= 0
    shares = SAMPLES_PER_PROMPT * num_prompts * weigh() / weigh().sum()
    assert abs(counts - shares).max() < 1
