"""The metrics' reference: every number that the code reports, with a unit and a meaning, and as the page has it."""

import ast
import re
from pathlib import Path

import pytest

from gvm_ray.cli import main
from gvm_ray.cli.metrics import reference
from gvm_ray.exceptions import ConfigError
from gvm_ray.metric_names import METRICS, meaning

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "metrics.md"
UNITS = {"", "s", "nats", "fraction", "tokens", "samples", "prompts", "updates", "batches", "turns", "rounds"}
ELSEWHERE = ("cli", "lab", "reporting")  # they show metrics, or report numbers of their own


def names_in_the_source() -> set[str]:
    """Texts of the package that look like metrics of a known group, "allocation/min", or like the beginning of one."""
    groups = {name.partition("/")[0] for name in METRICS if "/" in name}
    found = set()
    for path in (ROOT / "gvm_ray").rglob("*.py"):
        if path.relative_to(ROOT / "gvm_ray").parts[0] in ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if re.fullmatch(r"[a-z_]+/[a-z_0-9]+", text) and text.partition("/")[0] in groups:
                found.add(text)
    return found


def test_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics"]) == 0
    assert PAGE.read_text(encoding="utf-8") == capsys.readouterr().out, "gvm-ray metrics > docs/metrics.md"


def test_every_metric_that_the_code_names_is_explained() -> None:
    names = names_in_the_source()
    assert {"allocation/min", "eval/accuracy", "importance/max", "turns/mean"} <= names
    assert {name for name in names if not any(known.startswith(name) for known in METRICS)} == set()
    assert {name for name in names if not name.endswith("_")} <= METRICS.keys()


def test_units_are_few_and_meanings_short() -> None:
    assert {metric.unit for metric in METRICS.values()} <= UNITS | {"failures", "writes"}
    assert all(3 < len(metric.meaning) <= 100 and metric.meaning[-1] != "." for metric in METRICS.values())


def test_a_group_and_a_metric_alone() -> None:
    assert reference("staleness").count("| `") == 2
    assert "| `eval/accuracy` | fraction |" in reference("eval/accuracy")
    assert "| `grad_norm` |" in reference("step")
    with pytest.raises(ConfigError, match=r"no metric 'reward/man'; did you mean 'reward/mean'\?"):
        reference("reward/man")
    with pytest.raises(ConfigError, match="no metric 'x'; the groups are step, reward, "):
        reference("x")


def test_a_help_text_names_the_unit_where_the_meaning_does_not() -> None:
    assert meaning("time/step_s") == "time of the step, s"
    assert meaning("cost/generated_tokens") == "tokens generated so far, pilots included"
