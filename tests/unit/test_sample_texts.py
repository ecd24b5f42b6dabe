"""Sample texts: which responses are looked at, when, and where they are written."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from loop_fakes import START, make_system, run_config

from gvm_ray.background import drain
from gvm_ray.exceptions import ObjectsLost
from gvm_ray.ledger import SampleTexts, sample_histograms
from gvm_ray.loop import train
from gvm_ray.reporting import REQUIRED_KEYS, Reporter, read_rows
from gvm_ray.reporting.sinks import as_markdown
from gvm_ray.types import GroupOutcome, GroupRef, RolloutGroup, SampleText
from tests import builders
from tests.builders import completion, prompt


def group(prompt_id: str, *rewards: float) -> RolloutGroup:
    """Its i-th text is `<prompt_id><i>`, of i + 1 tokens; one of more than 3 is cut."""
    completions = [
        completion(f"{prompt_id}{i}", num_tokens=i + 1, version=7, finish_reason="length" if i >= 3 else "stop")
        for i in range(len(rewards))
    ]
    return builders.group(prompt(prompt_id, text=f"{prompt_id}?", answer="42"), completions, rewards=rewards)


def outcomes_of(*groups: RolloutGroup) -> list[GroupOutcome]:
    return [GroupOutcome.of(each, ref=GroupRef(ref=groups, index=i)) for i, each in enumerate(groups)]


async def fetch(outcomes: Sequence[GroupOutcome]) -> list[RolloutGroup]:
    return [outcome.ref.ref[outcome.ref.index] for outcome in outcomes]


async def lost(outcomes: Sequence[GroupOutcome]) -> list[RolloutGroup]:
    raise ObjectsLost("their node is gone")


def texts_of(*groups: RolloutGroup, step: int = 0) -> tuple[SampleText, ...]:
    return asyncio.run(SampleTexts(every_steps=4, fetch=fetch).of(outcomes_of(*groups), step=step))


def test_the_best_and_the_worst_scored_sample_of_a_step_are_shown() -> None:
    best, worst = texts_of(group("a", 0.5, math.nan), group("b", 0.2, 0.1, 0.7, 0.9), group("c", 0.3))
    assert best == SampleText(
        rank="best",
        prompt_id="b",
        prompt="b?",
        completion="b3",
        answer="42",
        reward=0.9,
        num_tokens=4,
        truncated=True,
        policy_version=7,
    )
    assert (worst.rank, worst.completion, worst.reward, worst.truncated) == ("worst", "b1", 0.1, False)


def test_of_equal_rewards_the_first_and_the_last_are_shown() -> None:
    assert [(text.rank, text.completion) for text in texts_of(group("a", 1, 1), group("b", 1, math.nan))] == [
        ("best", "a0"),
        ("worst", "b0"),
    ]
    assert [text.rank for text in texts_of(group("a", 1))] == ["best"]
    assert texts_of(group("a", math.nan)) == ()
    assert texts_of() == ()


def test_texts_come_every_so_many_steps() -> None:
    assert [step for step in range(9) if texts_of(group("a", 1.0), step=step)] == [0, 4, 8]
    assert asyncio.run(SampleTexts().of(outcomes_of(group("a", 1.0)), step=0)) == ()


def test_lost_texts_are_none_and_told(caplog: pytest.LogCaptureFixture) -> None:
    texts = asyncio.run(SampleTexts(every_steps=1, fetch=lost).of(outcomes_of(group("a", 1.0)), step=3))
    assert texts == ()
    assert "step 3 has no sample texts: their node is gone" in caplog.text


def test_the_loop_logs_texts_and_deciles_and_trains_the_same_without() -> None:
    async def go(texts: SampleTexts) -> tuple[list[object], list[list[float]], list[int]]:
        config = run_config()
        system, _, learners, records = make_system(config)
        await drain(train(replace(system, texts=texts), config, start=START))
        lengths = [histograms["length_deciles"].tolist() for histograms in records.histograms]
        batches = [
            (batch.step, batch.metrics, [g.advantages.tolist() for g in batch.groups]) for batch in learners.batches
        ]
        return [*batches, records.steps], lengths, [len(texts) for texts in records.texts]

    async def found(outcomes: Sequence[GroupOutcome]) -> list[RolloutGroup]:
        await asyncio.sleep(0.001)
        return [group(outcome.prompt_id, *outcome.rewards) for outcome in outcomes]

    looked, lengths, counts = asyncio.run(go(SampleTexts(every_steps=2, fetch=found)))
    unlooked, _, none = asyncio.run(go(SampleTexts()))
    assert counts == [2, 0, 2, 0, 2, 0]
    assert none == [0] * 6
    assert looked == unlooked
    assert lengths == [[5.0] * 11] * 6


def test_deciles_are_of_all_lengths_and_of_the_known_rewards() -> None:
    histograms = sample_histograms(outcomes_of(group("a", 0.0, math.nan, 0.5), group("b", 1.0)))
    assert histograms["reward_deciles"][[0, 5, 10]].tolist() == [0, 0.5, 1]
    assert histograms["length_deciles"][[0, 10]].tolist() == [1, 3]
    assert sample_histograms(outcomes_of(group("a", math.nan))) == {}


# --- where they are written -------------------------------------------------------------------------------------------
METRICS = dict.fromkeys(sorted(REQUIRED_KEYS), 1.0)


def test_each_text_is_a_row_and_a_resume_drops_those_after_its_checkpoint(tmp_path: Path) -> None:
    config = run_config(reporting={"tensorboard": False})
    texts = texts_of(group("a", 0.0, 1.0))
    with Reporter(config, tmp_path) as reporter:
        for step in range(2):
            reporter.log_step(step, METRICS, texts=texts)
    rows = read_rows(tmp_path / "samples.jsonl")
    assert [(row["step"], row["rank"], row["completion"], row["reward"]) for row in rows] == [
        (0, "best", "a1", 1.0),
        (0, "worst", "a0", 0.0),
        (1, "best", "a1", 1.0),
        (1, "worst", "a0", 0.0),
    ]
    with Reporter(config, tmp_path, start_step=1):
        assert read_rows(tmp_path / "samples.jsonl") == rows[:2]


def test_tensorboard_shows_texts_with_rewards_and_the_settings_beside_the_results(tmp_path: Path) -> None:
    with Reporter(run_config(seed=11), tmp_path) as reporter:
        reporter.log_step(3, METRICS, texts=texts_of(group("a", 0.0, 0.25)))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (text,) = events.Tensors("samples/best/text_summary")
    assert b"**reward 0.25** for prompt `a`" in text.tensor_proto.string_val[0]
    assert [path for path in (tmp_path / "tensorboard").iterdir() if path.is_dir()] == []
    contents = events.PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(contents["_hparams_/session_start_info"])
    assert isinstance(start, plugin_data_pb2.SessionStartInfo)
    assert start.hparams["seed"].number_value == 11
    assert start.hparams["allocator.type"].string_value == "uniform"
    experiment = metadata.parse_experiment_plugin_data(contents["_hparams_/experiment"])
    assert "reward/mean" in [info.name.tag for info in experiment.metric_infos]


def test_a_text_in_markdown_is_all_code_and_always_utf8() -> None:
    (text,) = texts_of(group("a", 1.0))
    markdown = as_markdown(replace(text, completion="# big\n\n<b>\ud800", truncated=True))
    assert "    # big\n    \n    <b>?" in markdown
    assert ", cut, policy 7" in markdown
