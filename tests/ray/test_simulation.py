"""The simulation over a local cluster: what is asked for is sampled, scored and trained on, and the figures add up."""

import dataclasses

import pytest

from gvm_ray.exceptions import ConfigError
from gvm_ray.lab.speed.simulated_engine import LatencyModel
from gvm_ray.lab.speed.simulated_system import SimulationSettings
from gvm_ray.lab.speed.simulation import bench_rows, simulate, table_header, table_line

pytestmark = pytest.mark.ray

SMALL = SimulationSettings(
    num_generators=2,
    num_steps=3,
    warm_up_steps=1,
    prompts_per_step=16,
    samples_per_prompt=4,
    num_prompts=64,
    max_num_seqs=16,
    max_tokens=200,
    num_reward_actors=1,
    samples_per_s=100.0,
    weights_mb=1,
    model=LatencyModel(median_tokens=60.0),
)


@pytest.mark.parametrize(("allocator", "max_staleness"), [("gvm", 2), ("uniform", 0)])
def test_samples_staleness_and_usage_add_up(ray_cluster: None, allocator: str, max_staleness: int) -> None:
    settings = dataclasses.replace(SMALL, allocator=allocator, max_staleness=max_staleness)
    result = simulate(settings)
    num_steps = 4 + max_staleness
    assert result.trained_steps == len(result.driver_mb) == num_steps
    assert result.num_samples == num_steps * 16 * 4  # the budget of each step, pilots included
    assert result.staleness_max == max_staleness
    assert 0 <= result.staleness_mean <= max_staleness
    assert len(result.busy) == 2
    assert all(0 < share <= 1 for share in result.busy)
    assert 0 < result.occupancy <= result.busy_mean
    assert 0 < result.samples_per_s <= 1.1 * result.ideal_samples_per_s
    assert result.cpu["generators"] > 0
    assert result.cpu["driver"] > 0
    assert result.object_store_peak_mb >= 1  # the weights
    assert table_line(result).count("|") == table_header().splitlines()[0].count("|")
    busy, samples, _ = bench_rows(result, synchronous=result)
    assert busy.ratio == 1
    assert samples.ratio == pytest.approx(result.samples_per_s / result.ideal_samples_per_s)


def test_slow_generators_are_the_given_share_and_the_bound_knows_them() -> None:
    half = dataclasses.replace(SMALL, num_generators=4, slow_share=0.5, slow_factor=2.0)
    fast = dataclasses.replace(SMALL, num_generators=4)
    assert half.num_slow == 2
    assert half.modelled_samples_per_s == pytest.approx(0.75 * fast.modelled_samples_per_s)


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_steps=0"):
        dataclasses.replace(SMALL, num_steps=0)
