"""The decision of a step: times by pytest-benchmark, results by hand."""

from typing import Any

import pytest

from gvm_ray.lab.speed.plan import SAMPLES_PER_PROMPT, make_prompts, plans


@pytest.mark.parametrize("num_prompts", [10**3, 10**5])
@pytest.mark.parametrize("name", ["uniform plan", "gvm decision", "gvm decision, n of at least 4"])
def test_a_decision_spends_the_budget(benchmark: Any, name: str, num_prompts: int) -> None:
    allocation = benchmark(plans(make_prompts(num_prompts))[name])
    assert allocation.total == SAMPLES_PER_PROMPT * num_prompts
    assert len(allocation.counts) == num_prompts
    assert min(allocation.counts.values()) >= 0
