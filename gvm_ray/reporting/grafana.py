"""The Grafana dashboard of a run: `python -m gvm_ray.reporting.grafana > docs/grafana.json`.

Panels are listed in rows; their positions and numbers follow from their order.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gvm_ray.metric_names import FAILURE_METRICS, exported_name
from gvm_ray.phase_clock import PHASES

_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 3  # size of a panel, and panels in a row, of Grafana's 24-column grid
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A panel with curves of metrics, or of any expressions with their legends."""

    title: str
    unit: str = "short"
    metrics: Sequence[str] = ()
    expressions: tuple[tuple[str, str], ...] = ()  # legend, PromQL
    stacked: bool = False

    @property
    def curves(self) -> list[tuple[str, str]]:
        """Legend and PromQL of each curve."""
        return [(metric, curve(metric)) for metric in self.metrics] + list(self.expressions)


def curve(metric: str) -> str:
    """Build the PromQL of a metric by run. Failure counts are 0 before the first failure. For a resumed run, only the
    process under way counts.
    """
    chosen = f'{exported_name(metric)}{{run=~"$run"}}'
    if metric in FAILURE_METRICS:
        chosen = f'{chosen} or 0 * {exported_name("step")}{{run=~"$run"}}'
    return f"max by (run) ({chosen})"


def _per_second(metric: str) -> str:
    """Build the PromQL of the growth per second of a gauge that never falls."""
    return f'max by (run) (deriv({exported_name(metric)}{{run=~"$run"}}[$__rate_interval]))'


ROWS: dict[str, list[Panel]] = {
    "Learning": [
        Panel(title="Reward", metrics=["reward/mean", "reward/accept_rate"]),
        Panel(title="Held-out accuracy", unit="percentunit", metrics=["eval/accuracy"]),
        Panel(title="Step", metrics=["step"]),
        Panel(title="Entropy", metrics=["entropy"]),
        Panel(title="Gradient norm", metrics=["grad_norm"]),
        Panel(title="Tokens of a response", metrics=["length/mean"]),
    ],
    "Budget": [
        Panel(title="Samples of a prompt", metrics=["allocation/min", "allocation/max"]),
        Panel(title="Prompts", metrics=["allocation/zero", "groups/with_signal", "groups/no_signal"]),
        Panel(
            title="Prompts by what came",
            unit="percentunit",
            metrics=["groups/solved_fraction", "groups/mixed_fraction", "groups/failed_fraction"],
            stacked=True,
        ),
        Panel(
            title="Prompts that train nothing",
            metrics=[f"groups/dropped_{reason}" for reason in ("solved", "failed", "mixed", "unscored")],
        ),
        Panel(title="Useful tokens", unit="percentunit", metrics=["tokens/useful_fraction"]),
        Panel(
            title="Accept rate of the hardest prompts",
            unit="percentunit",
            metrics=[f"reward/accept_rate_hardest_{percent}" for percent in (10, 25, 50)],
        ),
        Panel(title="Calibration of accept rates", metrics=["allocation/brier", "allocation/calibration_error"]),
        Panel(
            title="Accept rates",
            unit="percentunit",
            metrics=["reward/accept_rate", "allocation/p_hat_mean", "samples/truncated_fraction"],
        ),
        Panel(title="Samples", metrics=["allocation/total", "cost/generated_samples"]),
        Panel(title="Tokens", metrics=["cost/charged_tokens", "cost/generated_tokens", "cost/pilot_tokens"]),
        Panel(
            title="Tokens a second",
            expressions=(("generated", _per_second("cost/generated_tokens")),),
        ),
    ],
    "Phases": [
        Panel(
            title="Seconds of a step",
            unit="s",
            metrics=[f"time/{phase}_s" for phase in (*PHASES, "idle")],
            stacked=True,
        ),
    ],
    "Staleness and queue": [
        Panel(title="Staleness in updates", metrics=["staleness/mean", "staleness/max"]),
        Panel(title="Samples in flight and batches waiting", metrics=["queue/samples_in_flight", "queue/batches"]),
        Panel(
            title="Effective sample size of the importance weights",
            unit="percentunit",
            metrics=["importance/effective_sample_size"],
        ),
        Panel(
            title="Log-prob difference of learner and engine, nats",
            metrics=["logprob_difference/mean", "logprob_difference/max"],
        ),
    ],
    "Failures": [
        Panel(title="Actors and nodes replaced", metrics=["faults/total"]),
        Panel(
            title="Samples without a reward",
            metrics=["samples/unscored", "cost/refilled_samples", *(m for m in FAILURE_METRICS if m.startswith("rew"))],
        ),
        Panel(title="Updates left out", metrics=["num_skipped_updates"]),
        Panel(title="Writes that a sink didn't take", metrics=["reporting/failed_writes"]),
    ],
    "Hardware of the cluster": [
        Panel(title="CPU", unit="percent", expressions=(("{{ip}}", "ray_node_cpu_utilization"),)),
        Panel(
            title="Memory",
            unit="percentunit",
            expressions=(("{{ip}}", "ray_node_mem_used / ray_node_mem_total"),),
        ),
        Panel(
            title="Object store",
            unit="bytes",
            expressions=(("{{Location}}", "sum by (Location) (ray_object_store_memory)"),),
        ),
        Panel(title="GPU", unit="percent", expressions=(("{{ip}} {{GpuIndex}}", "ray_node_gpus_utilization"),)),
        Panel(
            title="GPU memory",
            unit="mbytes",
            expressions=(("{{ip}} {{GpuIndex}}", "ray_node_gram_used"),),
        ),
        Panel(
            title="Actors",
            expressions=(("{{Name}}", 'sum by (Name) (ray_actors{Source="executor", State!="DEAD"})'),),
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """Build the dashboard for import into Grafana; the Prometheus data source and the runs are variables."""
    return {
        "uid": "gvm-ray",
        "title": "gvm_ray",
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": _panels(),
    }


def _variables() -> list[dict[str, Any]]:
    runs = f"label_values({exported_name('step')}, run)"
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "run",
            "label": "Run",
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": runs, "refId": "runs"},
            "refresh": 2,  # whenever the time range changes
            "includeAll": True,
            "multi": True,
            "current": {"text": ["All"], "value": ["$__all"]},
        },
    ]


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    top = 0
    for row, members in ROWS.items():
        place = {"x": 0, "y": top, "w": _WIDTH * _COLUMNS, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": row, "gridPos": place, "panels": []})
        for index, panel in enumerate(members):
            down, right = divmod(index, _COLUMNS)
            width = _WIDTH * (_COLUMNS if len(members) == 1 else 1)
            place = {"x": right * _WIDTH, "y": top + 1 + down * _HEIGHT, "w": width, "h": _HEIGHT}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_time_series(panel)})
        top += 1 + -(-len(members) // _COLUMNS) * _HEIGHT
    return panels


def _time_series(panel: Panel) -> dict[str, Any]:
    style = {"lineWidth": 1, "fillOpacity": 20 if panel.stacked else 0, "spanNulls": True}
    stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
    of_run = "" if any("{{" in legend for legend, _ in panel.curves) else "{{run}}: "
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": {**style, "stacking": stacking}},
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": of_run + legend}
            for index, (legend, query) in enumerate(panel.curves)
        ],
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
