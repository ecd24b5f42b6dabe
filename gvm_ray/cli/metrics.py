"""`gvm-ray metrics`: the numbers of a step with their units and meanings, as Markdown."""

import argparse
import difflib

from gvm_ray.cli.options import Commands
from gvm_ray.exceptions import ConfigError
from gvm_ray.metric_names import METRICS, Metric

_HEAD = """\
# Metrics

The numbers of a step, one row of `metrics.jsonl` each, which TensorBoard, Weights & Biases, Ray's gauges and sinks of
your own get by the same names; Prometheus has `reward/mean` as `ray_gvm_ray_reward_mean`. `gvm-ray metrics` prints this
page. A fraction lies in [0, 1]. "So far" counts from the run's first step, across `--resume`. A number that couldn't be
measured is null. Metrics that name a strategy come with it alone, `rewards/*`, `faults/*` and `reporting/*` after the
first failure, `eval/*` in the steps that evaluate, and `queue/samples_in_flight` as a gauge alone.

"""


def reference(only: str | None = None) -> str:
    """The metrics as Markdown, or only those of a group, as in "allocation", or a single one.

    Raises:
        ConfigError: there is no metric of this name, and no group.
    """
    chosen = {name: metric for name, metric in METRICS.items() if only in (None, name, _group(name))}
    if not chosen:
        near = difflib.get_close_matches(str(only), [*METRICS, *map(_group, METRICS)], n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"the groups are {', '.join(dict.fromkeys(map(_group, METRICS)))}"
        )
        raise ConfigError(f"there is no metric {only!r}; {hint}")
    groups: dict[str, dict[str, Metric]] = {}
    for name, metric in chosen.items():
        groups.setdefault(_group(name), {})[name] = metric
    return ("" if only else _HEAD) + "\n".join(_table(group, metrics) for group, metrics in groups.items())


def _group(name: str) -> str:
    """The part before the slash; "step" for names without one."""
    return name.partition("/")[0] if "/" in name else "step"


def _table(group: str, metrics: dict[str, Metric]) -> str:
    rows = [f"| `{name}` | {metric.unit} | {metric.meaning} |" for name, metric in metrics.items()]
    return "\n".join([f"## {group}", "", "| metric | unit | meaning |", "|---|---|---|", *rows, ""])


def add_to(commands: Commands) -> None:
    """Add the command."""
    metrics = commands.add_parser(
        "metrics",
        help="explain the numbers of a step",
        description="Every metric of a run with its unit and meaning, as Markdown.",
    )
    metrics.add_argument("name", nargs="?", default=None, metavar="NAME", help="only this metric or group, e.g. groups")
    metrics.set_defaults(run=_metrics)


def _metrics(options: argparse.Namespace) -> int:
    print(reference(options.name), end="")
    return 0
