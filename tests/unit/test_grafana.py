"""The Grafana dashboard: the page that is shipped, and only metrics that a run exports."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gvm_ray.metric_names import FAILURE_METRICS, LIVE_METRICS, OPTIONAL_METRICS, STEP_METRICS, exported_name
from gvm_ray.reporting.grafana import curve, dashboard

PAGE = Path(__file__).parents[2] / "docs" / "grafana.json"
EXPORTED = {exported_name(name) for name in (*STEP_METRICS, *OPTIONAL_METRICS, *LIVE_METRICS, *FAILURE_METRICS)}


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    return json.loads(PAGE.read_text(encoding="utf-8"))


def test_the_page_is_what_the_module_prints(page: dict[str, Any]) -> None:
    assert page == dashboard(), "python -m gvm_ray.reporting.grafana > docs/grafana.json"


def test_every_expression_names_metrics_of_a_run(page: dict[str, Any]) -> None:
    expressions = [target["expr"] for panel in page["panels"] for target in panel.get("targets", ())]
    expressions += [v["query"]["query"] for v in page["templating"]["list"] if v["type"] == "query"]
    named = {name for expression in expressions for name in re.findall(r"\bray_gvm_ray_\w+", expression)}
    assert named <= EXPORTED
    assert {exported_name(name) for name in ("eval/accuracy", *LIVE_METRICS, *FAILURE_METRICS)} <= named


def test_panels_are_numbered_and_placed_apart(page: dict[str, Any]) -> None:
    numbers = [panel["id"] for panel in page["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in page["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_a_curve_without_a_failure_is_at_zero() -> None:
    assert curve("step") == 'max by (run) (ray_gvm_ray_step{run=~"$run"})'
    assert curve("faults/total") == (
        'max by (run) (ray_gvm_ray_faults_total{run=~"$run"} or 0 * ray_gvm_ray_step{run=~"$run"})'
    )
