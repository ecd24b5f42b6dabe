"""Evaluation that doesn't stop training: under which weights it samples, what waits for it, where its numbers go."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import START, make_system, run_config
from tiny_runs import tiny_config

import gvm_ray.system
from gvm_ray.background import drain
from gvm_ray.evaluation.evaluator import EvaluationBeside, HeldOutEvaluator
from gvm_ray.exceptions import SystemFailure
from gvm_ray.learner.scratch_model import build_character_tokenizer
from gvm_ray.loop import train
from gvm_ray.prepare import BaseModel, Prepared
from gvm_ray.reporting import REQUIRED_KEYS, Reporter, RunFolder, read_steps
from gvm_ray.reporting.progress import ProgressLines
from gvm_ray.types import Metrics, SamplingParameters, WeightsRef
from tests.builders import prompts


@dataclass
class OwnPools:
    """Generators that hold what was published, or with `lost` something newer."""

    version: int = -1
    lost: bool = False
    published: list[int] = field(default_factory=list)

    async def publish(self, weights: WeightsRef) -> None:
        self.version = weights.policy_version + self.lost
        self.published.append(weights.policy_version)

    async def sample_and_score(self, requests: object, sampling: object) -> list[object]:
        raise AssertionError

    async def wait_for_version(self, policy_version: int) -> None:
        raise AssertionError


@dataclass
class SlowEvaluator:
    """Answers after another update: where training waited for it, both would wait forever."""

    pools: OwnPools
    events: list[str]
    fail: bool = False

    def count(self) -> int:
        return sum(event.startswith("update") for event in self.events)

    async def evaluate(self, policy_version: int) -> Metrics:
        before = self.count()
        while self.count() == before:
            await asyncio.sleep(0.001)
        if self.fail:
            raise SystemFailure("the generators are gone")
        return {"eval/accuracy": self.pools.version / 10, "eval/policy_version": float(self.pools.version)}


def trained(*, lost: bool = False, fail: bool = False) -> tuple[OwnPools, dict[int, Metrics], list[int]]:
    """A run of 8 steps that is evaluated every 2: its own pools, what they measured, the steps with inline ones."""

    async def go() -> tuple[OwnPools, dict[int, Metrics], list[int]]:
        config = run_config(num_steps=8, max_staleness=2, evaluation={"every_steps": 2})
        system, pools, _, records = make_system(config)
        own, logged = OwnPools(lost=lost), dict[int, Metrics]()
        evaluator = SlowEvaluator(own, pools.events, fail=fail)
        beside = EvaluationBeside(evaluator, own, log=lambda step, metrics: logged.update({step: metrics}))
        await drain(train(replace(system, beside=beside), config, start=START))
        return own, logged, [step for step, m in records.steps if "eval/accuracy" in m]

    return asyncio.run(go())


def test_training_goes_on_while_the_policy_of_a_step_is_evaluated_but_after_the_last() -> None:
    own, logged, inline = trained()
    assert own.published == [2, 4, 6]
    assert {step: metrics["eval/accuracy"] for step, metrics in logged.items()} == {1: 0.2, 3: 0.4, 5: 0.6}
    assert inline == [7]


def test_an_evaluation_of_other_weights_is_not_reported() -> None:
    own, logged, _ = trained(lost=True)
    assert own.published == [2, 4, 6]
    assert logged == {}


def test_its_failure_ends_the_run() -> None:
    with pytest.raises(SystemFailure, match="the generators are gone"):
        trained(fail=True)


def test_its_numbers_join_the_row_of_their_step(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    config = tiny_config(tmp_path, name="beside", num_steps=3)
    with Reporter(config, tmp_path) as reporter:
        for step in range(3):
            reporter.log_step(step, {**dict.fromkeys(REQUIRED_KEYS, 1.0), "loss": float(step)})
        reporter.log_evaluation(1, {"eval/accuracy": 0.25})
    rows = read_steps(folder.metrics)
    assert [(row["step"], row["loss"], row.get("eval/accuracy")) for row in rows] == [
        (0, 0, None),
        (1, 1, 0.25),
        (2, 2, None),
    ]
    assert rows[1]["time_s"] <= rows[2]["time_s"]
    with Reporter(config, tmp_path, start_step=2) as resumed:  # the time goes on though the last row left has none
        resumed.log_step(2, dict.fromkeys(REQUIRED_KEYS, 1.0))
    steps = [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()]
    assert steps == [0, 1, 1, 2]
    assert read_steps(folder.metrics)[2]["time_s"] >= rows[1]["time_s"]


@dataclass
class ScoringPools(OwnPools):
    """Every sample is right; each prompt's are scored together."""

    async def sample_and_score(self, requests: Any, sampling: object, **told: Callable[[int], None]) -> list[Any]:
        for request in requests:
            for on_scored in told.values():
                on_scored(len(request.seeds))
        return []


@pytest.mark.parametrize("fresh_seeds", [False, True])
def test_evaluations_draw_the_same_samples_or_other_ones_of_each_version(fresh_seeds: bool) -> None:
    drawn: list[list[Any]] = []

    class Pools:
        async def sample_and_score(self, requests: Any, sampling: object) -> list[Any]:
            drawn.append([seed for request in requests for seed in request.seeds])
            return []

    evaluator = HeldOutEvaluator(
        prompts=prompts(2),
        pools=Pools(),  # type: ignore[arg-type]
        sampling=SamplingParameters(temperature=1.0, max_tokens=4),
        num_samples=3,
        accept_threshold=0.5,
        seed=0,
        fresh_seeds=fresh_seeds,
    )
    for version in (0, 4, 8, 8):
        asyncio.run(evaluator.sample(version))
    start, fourth, eighth, again = drawn
    assert eighth == again  # a resumed run measures what it would have measured
    assert (start == fourth) is not fresh_seeds
    assert bool(set(fourth) & set(eighth)) is not fresh_seeds


def test_an_evaluation_tells_how_many_of_its_samples_are_scored() -> None:
    told: list[int] = []

    def progress(total: int) -> Callable[[int], None]:
        told.append(total)
        return told.append

    evaluator = HeldOutEvaluator(
        prompts=prompts(2),
        pools=ScoringPools(),  # type: ignore[arg-type]
        sampling=SamplingParameters(temperature=1.0, max_tokens=4),
        num_samples=3,
        accept_threshold=0.5,
        seed=0,
    )
    asyncio.run(evaluator.sample())
    assert told == []
    asyncio.run(replace(evaluator, progress=progress).sample())
    assert told == [6, 3, 3]


@pytest.mark.parametrize(
    ("by_time", "expected"), [(True, ["warm start 2/4  loss 0.500  about 20 s left"]), (False, [])]
)
def test_a_warm_start_is_told_by_time_where_progress_is_wanted(
    by_time: bool,
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class WarmLearners:
        """Tells of two of the updates, and has no policy to export."""

        async def warm_start(self, demonstrations: Any, *, on_progress: Callable[[int, Metrics], None]) -> None:
            on_progress(2, {"loss": 0.5})
            on_progress(4, {"loss": 0.25})

        async def export(self, folder: str) -> None: ...

    now = iter([0.0, 20.0, 40.0])
    said: list[str] = []
    monkeypatch.setattr(
        gvm_ray.system, "ProgressLines", partial(ProgressLines, say=said.append, clock=lambda: next(now))
    )
    config = tiny_config(tmp_path, warm_start__num_updates=4, reporting__progress=by_time)
    prepared = Prepared(
        base=BaseModel(path="base", warm_start_folder=tmp_path / "warm"),
        prompts=Any,
        tokenizer=build_character_tokenizer(),
        engine_kind="transformers",
        max_model_len=9,
    )
    asyncio.run(gvm_ray.system.warm_start(config, prepared, WarmLearners()))  # type: ignore[arg-type]
    assert said == expected
    assert capsys.readouterr().out == "warm start 4/4  loss 0.250\n"  # what came of it
