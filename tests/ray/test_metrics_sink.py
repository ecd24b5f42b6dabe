"""The gauges reach the endpoint that Prometheus scrapes."""

import math

import pytest
from scraped_metrics import Scraped, scraped_once

from gvm_ray.actors.metrics import RayGaugeSink
from gvm_ray.metric_names import exported_name, gauge_name, meaning

pytestmark = pytest.mark.ray


def values(found: Scraped, *, run: str) -> dict[str, float]:
    """Our gauges of a run, name -> value."""
    samples = [s for name, group in found.items() if name.startswith("ray_gvm_ray_") for s in group]
    return {sample.name: sample.value for sample in samples if sample.labels["run"] == run}


@pytest.mark.usefixtures("ray_cluster")
def test_gauges_are_exported_with_the_run_as_tag() -> None:
    sink = RayGaugeSink(run="run-1")
    sink.write(0, {"reward/mean": 0.5}, histograms={}, texts=())
    sink.write(3, {"reward/mean": 0.25, "never/finite": math.nan}, histograms={}, texts=())
    expected = {"ray_gvm_ray_step": 3.0, "ray_gvm_ray_reward_mean": 0.25}
    found = scraped_once(lambda found: values(found, run="run-1") == expected)
    sink.close()
    assert values(found, run="run-1") == expected


def test_names_have_only_letters_that_prometheus_allows() -> None:
    assert gauge_name("logprob_difference/p99.9") == "gvm_ray_logprob_difference_p99_9"
    assert exported_name("reward/mean") == "ray_gvm_ray_reward_mean"


def test_a_metric_of_one_strategy_is_told_by_its_name() -> None:
    assert meaning("mine/number") == "mine/number of the last step"
    assert meaning("entropy") == "mean entropy of a token, nats"
    assert meaning("loss") == "loss of the step's updates"
