"""Ray metrics: a run's scalars as gauges, which Ray exports to its dashboard and to Prometheus."""

import math
from collections.abc import Sequence

from ray.util.metrics import Gauge

from gvm_ray.metric_names import gauge_name, meaning
from gvm_ray.types import Histograms, Metrics, SampleText


class RayGaugeSink:
    """One gauge for each metric, named ``gvm_ray_<metric>`` (exported as ``ray_gvm_ray_<metric>``), tagged by run.

    Needs a connection to a Ray cluster; without one Ray exports nothing.
    """

    def __init__(self, *, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def write(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> None:
        """Set the gauges of a completed step; a gauge has room for neither histograms nor texts."""
        self.set({"step": float(step), **metrics})

    def set(self, metrics: Metrics) -> None:
        """Set the gauges. A value that isn't finite leaves its gauge unchanged."""
        for name, value in metrics.items():
            if math.isfinite(value):
                self._gauge(name).set(value)

    def close(self) -> None:
        """Do nothing: Ray drops the gauges with the process."""

    def _gauge(self, name: str) -> Gauge:
        if name not in self._gauges:
            gauge = Gauge(gauge_name(name), description=meaning(name), tag_keys=("run",))
            gauge.set_default_tags({"run": self._run})
            self._gauges[name] = gauge
        return self._gauges[name]
