"""What Prometheus would scrape from the node of a local cluster."""

import time
import urllib.request
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

Scraped = dict[str, list[Sample]]  # by name


def scraped() -> Scraped:
    """All samples of the node's endpoint."""
    import ray

    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=60).read().decode()
    found: Scraped = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def scraped_once(condition: Callable[[Scraped], bool], *, deadline_s: float = 120) -> Scraped:
    """The samples once the condition holds, for Ray reports every few seconds; or those at the deadline."""
    end = time.monotonic() + deadline_s
    while not condition(found := scraped()) and time.monotonic() < end:
        time.sleep(0.5)
    return found
