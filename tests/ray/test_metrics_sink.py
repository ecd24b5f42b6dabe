"""The gauges reach the endpoint that Prometheus scrapes."""

import math
import time
import urllib.request

import pytest

from gvm_ray.actors.metrics import RayGaugeSink, gauge_name

pytestmark = pytest.mark.ray


def exported(deadline_s: float) -> dict[str, str]:
    """Exported samples of our gauges, name -> line, once there are any."""
    import ray

    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        lines = [line for line in text.splitlines() if line.startswith("ray_gvm_ray_")]
        if lines:
            return {line.split("{")[0]: line for line in lines}
        time.sleep(0.5)
    raise AssertionError(f"no gauge was exported within {deadline_s} s")


@pytest.mark.usefixtures("ray_cluster")
def test_gauges_are_exported_with_the_run_as_tag() -> None:
    sink = RayGaugeSink(run="run-1")
    sink.write(0, {"reward/mean": 0.5})
    sink.write(3, {"reward/mean": 0.25, "never/finite": math.nan})
    lines = exported(deadline_s=120)
    sink.close()
    assert lines.keys() == {"ray_gvm_ray_step", "ray_gvm_ray_reward_mean"}
    assert 'run="run-1"' in lines["ray_gvm_ray_reward_mean"]
    assert lines["ray_gvm_ray_reward_mean"].endswith(" 0.25")
    assert lines["ray_gvm_ray_step"].endswith(" 3.0")


def test_gauge_name_has_only_letters_that_prometheus_allows() -> None:
    assert gauge_name("logprob_difference/p99.9") == "gvm_ray_logprob_difference_p99_9"
