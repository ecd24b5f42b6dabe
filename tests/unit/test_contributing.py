"""The allocator of CONTRIBUTING.md is one: its text runs, keeps the contract, and GRPO's check knows it."""

import json
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

from gvm_ray.allocators import AllocationDriver
from tests.builders import outcome, prompts

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


def recipe() -> dict[str, Any]:
    """The names that the snippet defines."""
    (text,) = re.findall(r"<!-- executed by .*? -->\n *```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(dedent(text), names)
    return names


def step_of(driver: AllocationDriver, *, step: int, lengths: dict[str, int]) -> dict[str, int]:
    """Counts of a step whose responses have these lengths."""
    counts = dict(driver.plan(prompts(2), step=step, budget=12).counts)
    drawn = [outcome(id_, [1.0] * count, num_tokens=[lengths[id_]] * count) for id_, count in counts.items() if count]
    assert driver.observe(drawn, step=step).total == 0
    assert driver.report(step=step).metrics["allocation/longest"] > 0
    return counts


def test_it_samples_prompts_with_long_responses_less_and_remembers_that() -> None:
    settings = recipe()["LengthAllocatorConfig"]()
    assert settings.smallest_group(None).value < 2
    driver = AllocationDriver.of(settings, accept_threshold=0.5)
    first, second = (prompt.prompt_id for prompt in prompts(2))
    lengths = {first: 10, second: 40}
    assert step_of(driver, step=0, lengths=lengths) == {first: 6, second: 6}
    resumed = AllocationDriver.of(settings, accept_threshold=0.5)
    resumed.load_state_dict(json.loads(json.dumps(driver.state_dict())))
    for each in (driver, resumed):
        assert step_of(each, step=1, lengths=lengths) == {first: 8, second: 4}  # 1 / sqrt(10) : 1 / sqrt(40) = 2 : 1
