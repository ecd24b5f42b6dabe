"""Sinks: every step reaches them, none of them ends a run, and a sink of one's own is named by its path."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gvm_ray.config import RunConfig, parse_config
from gvm_ray.exceptions import ConfigError
from gvm_ray.reporting import REQUIRED_KEYS, GuardedSinks, Reporter, RunFolder, Sink, check_sinks, create_sinks
from gvm_ray.reporting.run_folder import read_rows
from gvm_ray.types import Histograms, Metrics, SampleText


def config_with(*sinks: dict[str, Any]) -> RunConfig:
    return parse_config(
        {
            "name": "t",
            "model": {"type": "scratch"},
            "prompts": {"train": {"type": "arithmetic"}},
            "reporting": {"tensorboard": False, "sinks": sinks},
        }
    )


def metrics(**extra: float) -> Metrics:
    return {**dict.fromkeys(sorted(REQUIRED_KEYS), 1.0), **extra}


class Recording:
    """Keeps what it is given, and fails at one step."""

    def __init__(self, config: RunConfig | None = None, *, fails_at: int = -1) -> None:
        self.name = None if config is None else config.name
        self.fails_at = fails_at
        self.steps: list[tuple[int, float]] = []
        self.arrays: list[str] = []
        self.num_closed = 0

    def write(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> None:
        if step == self.fails_at:
            raise ConnectionError("the server hung up")
        self.steps.append((step, metrics.get("loss", metrics.get("eval/accuracy", 0.0))))
        self.arrays += histograms

    def close(self) -> None:
        self.num_closed += 1
        if self.fails_at >= 0:
            raise ConnectionError("the server hung up")


class WithoutClose:
    """Half a sink."""

    def write(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> None: ...


def test_every_sink_gets_every_step_and_outlives_a_return_to_a_checkpoint(tmp_path: Path) -> None:
    sink, called = Recording(), []
    sinks = GuardedSinks([sink])
    for start in (0, 1):
        with Reporter(
            config_with(),
            tmp_path,
            start_step=start,
            sinks=sinks,
            callbacks=[lambda step, metrics: called.append((step, metrics["loss"]))],
        ) as reporter:
            for step in range(start, 2):
                reporter.log_step(step, metrics(loss=start + step), histograms={"rates": np.ones(2)})
            reporter.log_evaluation(start, {"eval/accuracy": 0.5})
    assert sink.steps == [(0, 0), (1, 1), (0, 0.5), (1, 2), (1, 0.5)]
    assert called == [(0, 0), (1, 1), (1, 2)]  # an evaluation beside training isn't a step
    assert sink.arrays == ["rates"] * 3
    assert sink.num_closed == 0
    sinks.close()
    assert sink.num_closed == 1


def test_a_sink_that_raises_is_named_once_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Recording(fails_at=1), Recording()
    sinks = GuardedSinks([bad, good])
    with caplog.at_level(logging.WARNING), Reporter(config_with(), tmp_path, sinks=sinks) as reporter:
        logged = [reporter.log_step(step, metrics(loss=step)) for step in (0, 1, 1, 2)]
        sinks.close()
    assert [row.get("reporting/failed_writes") for row in logged] == [None, None, 1, 2]
    assert [step for step, _ in bad.steps] == [0, 2]
    assert [step for step, _ in good.steps] == [0, 1, 1, 2]
    assert (sinks.num_failures, good.num_closed) == (3, 1)
    (message,) = caplog.messages
    assert message.startswith("Recording failed (ConnectionError: the server hung up); the run goes on")
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 4


def test_the_error_of_a_callback_is_the_callers(tmp_path: Path) -> None:
    def stop(step: int, metrics: Metrics) -> None:
        raise LookupError("enough")

    with Reporter(config_with(), tmp_path, callbacks=[stop]) as reporter, pytest.raises(LookupError, match="enough"):
        reporter.log_step(0, metrics())


# --- named by settings ------------------------------------------------------------------------------------------------
def test_a_sink_of_ones_own_gets_the_settings_and_its_parameters(tmp_path: Path) -> None:
    config = config_with({"path": f"{__name__}:Recording", "parameters": {"fails_at": 3}})
    check_sinks(config)
    (sink,) = create_sinks(config, RunFolder(tmp_path))
    assert isinstance(sink, Sink)
    assert isinstance(sink, Recording)
    assert (sink.name, sink.fails_at) == ("t", 3)


@pytest.mark.parametrize(
    ("sink", "message"),
    [
        ({"path": "nowhere_at_all:Sink"}, "reporting.sinks: path 'nowhere_at_all:Sink' can't be imported"),
        ({"path": f"{__name__}:Missing"}, "Missing' can't be imported"),
        ({"path": f"{__name__}:WithoutClose"}, r"WithoutClose' has no write\(step, metrics, .* or no close\(\)"),
    ],
)
def test_a_sink_that_cannot_be_is_refused_before_the_start(sink: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_sinks(config_with(sink))


def test_a_sink_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    config = config_with({"path": f"{__name__}:Recording", "parameters": {"wrong": 3}})
    with pytest.raises(ConfigError, match=r"reporting\.sinks: .*Recording' can't be made: .*wrong"):
        create_sinks(config, RunFolder(tmp_path))
