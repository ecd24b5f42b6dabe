"""What every allocator must do, whatever the prompts turn out to be."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest

from gvm_ray.algorithms.base import scored_samples
from gvm_ray.allocators import AllocationDriver, AllocatorSettings
from gvm_ray.allocators.base import RunShape
from gvm_ray.allocators.custom import CustomAllocatorConfig
from gvm_ray.allocators.gvm import GVMAllocatorConfig
from gvm_ray.allocators.gvm_online import GVMOnlineAllocatorConfig, NeymanAllocatorConfig
from gvm_ray.allocators.gvm_pool import GVMPoolAllocatorConfig
from gvm_ray.allocators.predictive import PredictorConfig
from gvm_ray.allocators.rivals.dapo import DAPOAllocatorConfig
from gvm_ray.allocators.rivals.dps import DPSAllocatorConfig
from gvm_ray.allocators.rivals.greso import GRESOAllocatorConfig
from gvm_ray.allocators.rivals.hive import HIVEAllocatorConfig
from gvm_ray.allocators.rivals.mopps import MoPPSAllocatorConfig
from gvm_ray.allocators.rivals.offline_filter import OfflineFilterAllocatorConfig
from gvm_ray.allocators.rivals.pods import PODSAllocatorConfig
from gvm_ray.allocators.rivals.poise import POISEAllocatorConfig
from gvm_ray.allocators.rivals.reinforce_ada_seq import ReinforceAdaSeqAllocatorConfig
from gvm_ray.allocators.rivals.speed import SPEEDAllocatorConfig
from gvm_ray.allocators.rivals.spo import SPOAllocatorConfig
from gvm_ray.allocators.rivals.vip import VIPAllocatorConfig
from gvm_ray.types import Allocation, AllocationReport, GroupOutcome, Prompt
from tests.allocator_cases import run_script
from tests.builders import outcome, prompts
from tests.contract.union_cases import every_variant

OWN_CASES: dict[str, Any] = {
    "gvm": GVMAllocatorConfig(),
    "gvm as published": GVMAllocatorConfig(reuse_pilots=False, prior_successes=0, prior_failures=0),
    "gvm filtered": GVMAllocatorConfig(filter_threshold=0.7, min_expected_accepted=1.5, max_samples=12),
    "gvm in blocks": GVMAllocatorConfig(block_steps=3, min_samples=2),
    "gvm_pool": GVMPoolAllocatorConfig(candidates_per_step=8, states=None, predictor=PredictorConfig(token_features=4)),
    "gvm_pool with draws": GVMPoolAllocatorConfig(
        candidates_per_step=8, score="norm_neyman", uniform_share=0.1, exploration="thompson", undo_selection=True
    ),
    "gvm_pool, drawn groups": GVMPoolAllocatorConfig(
        candidates_per_step=8, score="norm_neyman", uniform_share=0.1, group_size=4, predicted_baseline=True
    ),
    "gvm_pool, features worth 3": GVMPoolAllocatorConfig(
        candidates_per_step=8, states=None, predictor=PredictorConfig(token_features=4, history_trials=3)
    ),
    "gvm_pool, groups nearest 1/2": GVMPoolAllocatorConfig(candidates_per_step=8, group_size=4, states=None),
    "gvm_pool, unscaled, from both": GVMPoolAllocatorConfig(
        candidates_per_step=8, predicted_scale=False, baseline_source="both"
    ),
    "gvm_online": GVMOnlineAllocatorConfig(),
    "gvm_online, no singles": GVMOnlineAllocatorConfig(min_samples=2),
    "neyman": NeymanAllocatorConfig(score="log_neyman"),
    "reinforce-ada-seq": ReinforceAdaSeqAllocatorConfig(),
    "reinforce-ada-seq, positive": ReinforceAdaSeqAllocatorConfig(round_samples=3, enough_negatives=0),
    "vip": VIPAllocatorConfig(),
    "vip, rloo": VIPAllocatorConfig(baseline="rloo", min_samples=2),
    "spo": SPOAllocatorConfig(),
    "spo offline": SPOAllocatorConfig(offline_samples=4),
    "dapo": DAPOAllocatorConfig(max_batches=2),
    "dapo without refill": DAPOAllocatorConfig(refill=False),
    "greso with refill": GRESOAllocatorConfig(refill=True, max_batches=2, candidates_per_step=64),
    "speed": SPEEDAllocatorConfig(),
    "speed trained on all": SPEEDAllocatorConfig(screening_samples=2, train_on_screened_out=True),
    "greso": GRESOAllocatorConfig(group_size=16),
    "mopps": MoPPSAllocatorConfig(group_size=16),
    "mopps with refill": MoPPSAllocatorConfig(group_size=16, refill=True, max_batches=2),
    "dps": DPSAllocatorConfig(group_size=16),
    "hive": HIVEAllocatorConfig(group_size=16),
    "poise": POISEAllocatorConfig(),
    "pods": PODSAllocatorConfig(),
    "pods, pairs": PODSAllocatorConfig(kept_samples=2),
    "offline filter": OfflineFilterAllocatorConfig(group_size=16, measurement_samples=4),
    "offline filter apart": OfflineFilterAllocatorConfig(measurement_samples=4, train_on_measurements=False),
    "the example": CustomAllocatorConfig(path="examples.custom_allocator:FewerForSolved"),
}
CONFIGS = every_variant(AllocatorSettings, OWN_CASES)
Rate = Callable[[int], float]
RATES: dict[str, Rate] = {
    "p = 0": lambda _: 0.0,
    "p = 1": lambda _: 1.0,
    "mixed": lambda index: index / 7,
    "unscored": lambda _: float("nan"),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> AllocatorSettings:
    return CONFIGS[request.param]


def sample(
    allocation: Allocation, rate: Rate, rng: np.random.Generator, *, drawn: Counter[str] | None = None
) -> list[GroupOutcome]:
    """What generators, rewards and learners would answer, read-only as from an object store; indices go on from those
    `drawn` in the step's earlier rounds."""
    outcomes = []
    drawn = Counter() if drawn is None else drawn
    for prompt_id, count in allocation.counts.items():
        p = rate(int(prompt_id) % 8)
        rewards = np.where(rng.random(count) < p, 1.0, 0.0) if np.isfinite(p) else np.full(count, np.nan)
        norms = np.where(rewards > 0, rng.lognormal(size=count), np.nan)
        rewards.setflags(write=False)
        norms.setflags(write=False)
        outcomes.append(
            replace(
                outcome(prompt_id, rewards, first_index=drawn[prompt_id]),
                rewards=rewards,  # itself, which is read-only
                num_tokens=rng.integers(1, 50, size=count).astype(np.int32),
                gradient_norms=norms if allocation.needs_gradient_norms else None,
                response_states=_states(rewards, rng) if allocation.needs_response_states else None,
            )
        )
        drawn[prompt_id] += count
    return outcomes


def _states(rewards: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[n, 2] states that tell something of the rewards."""
    return np.nan_to_num(np.stack([rewards, rewards], axis=1)) + rng.normal(size=(len(rewards), 2))


def run_step(
    allocator: AllocationDriver,
    now: list[Prompt],
    *,
    upcoming: list[Prompt],
    budget: int,
    rate: Rate,
    seed: int = 0,
) -> tuple[dict[str, int], AllocationReport]:
    """Samples drawn for each prompt over the step's rounds, and what the allocator says of them."""
    rng = np.random.default_rng(seed)
    known = {prompt.prompt_id for prompt in [*now, *upcoming]}
    drawn: dict[str, int] = {}
    allocation = allocator.plan(now, step=0, budget=budget, upcoming=upcoming)
    while allocation.total:
        assert set(allocation.counts) <= known
        for prompt_id, count in allocation.counts.items():
            assert type(count) is int
            assert count >= 0
            drawn[prompt_id] = drawn.get(prompt_id, 0) + count
        allocation = allocator.observe(sample(allocation, rate, rng), step=0)
    return drawn, allocator.report(step=0)


def run_block(
    allocator: AllocationDriver, config: AllocatorSettings, *, rate: Rate, size: int, budget: int, first: int = 0
):
    """Samples drawn for each prompt over a block of steps."""
    steps = config.block_steps if isinstance(config, GVMAllocatorConfig) else 1
    block = prompts(size * steps, first=first)
    drawn: dict[str, int] = {}
    for step in range(steps):
        now = block[step * size : (step + 1) * size]
        upcoming = block[size:] if step == 0 else []
        drawn_now, _ = run_step(allocator, now, upcoming=upcoming, budget=budget, rate=rate, seed=step)
        for prompt_id, count in drawn_now.items():
            drawn[prompt_id] = drawn.get(prompt_id, 0) + count
    return steps, drawn


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
@pytest.mark.parametrize("size", [1, 8])
def test_it_spends_exactly_the_budget(config, rate: Rate, size: int) -> None:
    allocator = AllocationDriver.of(config, accept_threshold=0.5)
    for block in range(2):
        steps, drawn = run_block(allocator, config, rate=rate, size=size, budget=8 * size, first=100 * block)
        assert_spent(drawn, budget=steps * 8 * size, config=config)


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
def test_it_spends_exactly_the_budget_on_prompts_it_knows(config, rate: Rate) -> None:
    allocator = AllocationDriver.of(config, accept_threshold=0.5)
    for _ in range(3):
        steps, drawn = run_block(allocator, config, rate=rate, size=8, budget=64)
        assert_spent(drawn, budget=steps * 64, config=config)


def assert_spent(drawn: dict[str, int], *, budget: int, config: AllocatorSettings) -> None:
    """Exactly the budget, unless the settings say that a step may cost more."""
    assert budget <= sum(drawn.values()) <= budget * config.max_budget_factor


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
def test_every_sampled_prompt_has_an_accept_rate_or_none_has(config, rate: Rate) -> None:
    allocator = AllocationDriver.of(config, accept_threshold=0.5)
    now = prompts(8)
    for _ in range(3):
        _, report = run_step(allocator, now, upcoming=[], budget=64, rate=rate)
        rates, counts = report.estimator.accept_rates, report.histograms["samples_per_prompt"]
        assert all(0 < p <= 1 for p in rates.values())
        if config.knows_accept_rates:
            assert {prompt.prompt_id for prompt, n in zip(now, counts, strict=True) if n} <= set(rates)
        else:
            assert rates == {}


def test_samples_that_are_averaged_over_have_no_part_in_their_accept_rates(config) -> None:
    """Other rewards of all samples but the pilots change no accept rate of the step."""
    ids, reports = "abcdefgh", []
    script = {id_: [float((row + i) % 3 == 0) for i in range(64)] for row, id_ in enumerate(ids)}
    for flipped in (False, True):
        allocator = AllocationDriver.of(config, accept_threshold=0.5)
        run_script(allocator, ids, budget=64, rewards=script)  # a first visit, for those that learn from it
        pilots = reports[0].estimator.pilots if flipped else {}
        rewards = {
            id_: [1 - r if flipped and i not in pilots.get(id_, ()) else r for i, r in enumerate(values)]
            for id_, values in script.items()
        }
        reports.append(run_script(allocator, ids, budget=64, rewards=rewards, step=1)[1])
    assert reports[0].estimator.accept_rates == reports[1].estimator.accept_rates
    assert reports[0].estimator.pilots == reports[1].estimator.pilots


@pytest.mark.parametrize("rate", [RATES["p = 0"], RATES["p = 1"], RATES["mixed"]])
def test_no_trained_group_is_smaller_than_the_settings_say(config, rate: Rate) -> None:
    shape = RunShape(prompts_per_step=8, samples_per_prompt=8, max_staleness=0, checkpoint_every_steps=6)
    smallest = config.smallest_group(shape)
    floor = 1 if smallest is None else max(smallest.value, 1)
    allocator = AllocationDriver.of(config, accept_threshold=0.5)
    rng = np.random.default_rng(0)
    for step in range(4):
        steps, trained = allocator, []
        allocation = steps.plan(prompts(8), step=step, budget=64)
        drawn: Counter[str] = Counter()
        while allocation.total:
            outcomes = sample(allocation, rate, rng, drawn=drawn)
            trained += outcomes if allocation.trained_on else []
            allocation = steps.observe(outcomes, step=step)
        samples = scored_samples(trained, accept_threshold=0.5, terms=steps.report(step=step).estimator)
        assert all(size == 0 or size >= floor for size in samples.group_sizes)


def test_the_decision_is_a_function_of_what_was_observed(config) -> None:
    runs = [
        run_block(AllocationDriver.of(config, accept_threshold=0.5), config, rate=RATES["mixed"], size=8, budget=64)
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_its_memory_survives_json_and_it_goes_on_alike(config) -> None:
    allocator = AllocationDriver.of(config, accept_threshold=0.5)
    run_block(allocator, config, rate=RATES["mixed"], size=8, budget=64)
    state = json.loads(json.dumps(allocator.state_dict(), allow_nan=False))
    resumed = AllocationDriver.of(config, accept_threshold=0.5)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == allocator.state_dict() == state
    for first in (0, 100):  # prompts that are known, and new ones
        again = [
            run_block(each, config, rate=RATES["mixed"], size=8, budget=64, first=first)
            for each in (allocator, resumed)
        ]
        assert again[0] == again[1]
    assert resumed.state_dict() == allocator.state_dict()


def test_memory_counts_every_scored_sample(config) -> None:
    allocator = AllocationDriver.of(config, accept_threshold=0.5)
    _, drawn = run_block(allocator, config, rate=RATES["p = 1"], size=8, budget=64)
    memory = allocator.state_dict()["prompts"]
    assert {prompt_id: trials for prompt_id, (trials, _, _) in memory.items()} == drawn
    assert {prompt_id: successes for prompt_id, (_, successes, _) in memory.items()} == drawn


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
def test_metrics_and_histograms_describe_the_step(config, rate: Rate) -> None:
    allocator = AllocationDriver.of(config, accept_threshold=0.5)
    _, report = run_step(allocator, prompts(8), upcoming=[], budget=64, rate=rate)
    metrics, histograms = report.metrics, report.histograms
    counts = histograms["samples_per_prompt"]
    assert counts.shape == histograms["accept_rate"].shape == (8,)
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["allocation/total"] == counts.sum()
    assert metrics["allocation/min"] == counts.min()
    assert metrics["allocation/max"] == counts.max()
    assert metrics["allocation/zero"] == (counts == 0).sum()
    accept_rates = histograms["accept_rate"]
    known = ~np.isnan(accept_rates)
    assert known[counts > 0].all()
    assert ((accept_rates[known] >= 0) & (accept_rates[known] <= 1)).all()


def test_overlapping_steps_give_what_each_gives_alone(config) -> None:
    def observed(steps: AllocationDriver, step: int):
        """One line for each round of the step, then its report and accept rates."""
        rng = np.random.default_rng(step)
        now, upcoming = prompts(8, first=100 * step), prompts(16, first=100 * step + 8)
        allocation = steps.plan(now, step=step, budget=64, upcoming=upcoming)
        while allocation.total:
            yield dict(allocation.counts)
            allocation = steps.observe(sample(allocation, RATES["mixed"], rng), step=step)
        report = steps.report(step=step)
        histograms = {name: np.nan_to_num(values, nan=-1).tolist() for name, values in report.histograms.items()}
        yield report.metrics, histograms, report.estimator

    alone = []
    for step in (0, 1):
        alone.append(list(observed(AllocationDriver.of(config, accept_threshold=0.5), step)))
    steps = AllocationDriver.of(config, accept_threshold=0.5)
    lines = zip_longest(observed(steps, 0), observed(steps, 1))
    together = zip(*lines, strict=True)
    assert [[line for line in lines_of_step if line is not None] for lines_of_step in together] == alone
