"""Samples are kept in pieces: what is finished is never sampled again, and nothing drawn otherwise is mixed in."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gvm_ray.benchmarks import evaluate
from gvm_ray.benchmarks.evaluate import Work, sample_missing
from gvm_ray.benchmarks.samples import Sample, SampleFile
from gvm_ray.exceptions import ConfigError, DataError, SystemFailure
from gvm_ray.types import Prompt, RolloutGroup
from tests.builders import completion, prompt

SETTINGS = {"model": "m", "temperature": 1.0, "template": {"type": "plain"}, "terms": ("math_verify",)}


def make_prompt(number: int, *, text: str = "", answer: str = "") -> Prompt:
    return prompt(f"p{number}", text=text, answer=answer)


def make_group(prompt: Prompt, *, indices: tuple[int, ...] = (0, 1)) -> RolloutGroup:
    """Sample i has i + 1 tokens and boxes i; the first one is right, the second unscored and cut."""
    completions = [
        completion(rf"é \boxed{{{index}}}", num_tokens=index + 1, finish_reason="length" if index else "stop")
        for index in indices
    ]
    rewards = np.array([np.nan if index else 1.0 for index in indices])
    return RolloutGroup.of(prompt, completions, sample_indices=indices, rewards=rewards)


def open_file(folder: Path, **changes: Any) -> SampleFile:
    return SampleFile(folder, settings={**SETTINGS, **changes}, num_samples=2)


class FakePool:
    """Samples any prompts; its call number `fails_at` dies."""

    def __init__(self, *, fails_at: int = -1) -> None:
        self.calls: list[list[str]] = []
        self.fails_at = fails_at

    async def sample(self, prompts: Sequence[Prompt]) -> list[RolloutGroup]:
        self.calls.append([prompt.prompt_id for prompt in prompts])
        if len(self.calls) - 1 == self.fails_at:
            raise SystemFailure("generator-0 died")
        await asyncio.sleep(0)
        return [group for prompt in prompts for group in (make_group(prompt, indices=(i,)) for i in (0, 1))]


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = open_file(tmp_path)
    written.append([make_group(make_prompt(1)), make_group(make_prompt(2))])
    assert written.finished["p1"] == (
        Sample(sample_index=0, reward=1.0, answer="0", num_tokens=1, finish_reason="stop"),
        Sample(sample_index=1, reward=None, answer="1", num_tokens=2, finish_reason="length"),
    )
    assert open_file(tmp_path).finished == written.finished
    rows = [json.loads(line) for line in written.path.read_text().splitlines()]
    assert [row["text"] for row in rows] == [r"é \boxed{0}", r"é \boxed{1}"] * 2


def test_what_a_killed_run_left_unfinished_is_dropped(tmp_path: Path) -> None:
    file = open_file(tmp_path)
    file.append([make_group(make_prompt(number)) for number in range(3)])
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-10])  # within the last row, so the last prompt lacks a sample
    again = open_file(tmp_path)
    assert list(again.finished) == ["p0", "p1"]
    again.append([make_group(make_prompt(2))])
    assert file.path.read_bytes() == whole


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    open_file(tmp_path).append([make_group(make_prompt(0))])
    with pytest.raises(ConfigError, match=r"temperature was 1\.0 and is 0\.7\. Write another --output"):
        open_file(tmp_path, temperature=0.7)
    with pytest.raises(ConfigError, match=r"top_p was None and is 0\.9"):
        open_file(tmp_path, top_p=0.9)
    assert list(open_file(tmp_path).finished) == ["p0"]


def test_samples_of_prompts_that_read_otherwise_are_refused(tmp_path: Path) -> None:
    file = open_file(tmp_path)
    file.append([make_group(make_prompt(0)), make_group(make_prompt(1))])
    for each in (file, open_file(tmp_path)):
        each.check_prompts([make_prompt(1), make_prompt(0), make_prompt(2, text="new")])
        with pytest.raises(ConfigError, match=r"samples of 1 prompts that read otherwise now, .*\(p1 \.\.\.\)"):
            each.check_prompts([make_prompt(0), make_prompt(1, text="other")])
        with pytest.raises(ConfigError, match=r"samples of 2 prompts .*\(p0, p1 \.\.\.\)\. Write another --output"):
            each.check_prompts([make_prompt(0, answer="1"), make_prompt(1, answer="2")])


@pytest.mark.parametrize("line", ["nonsense\n", "[]\n", '{"prompt_id": "p"}\n'])
def test_a_foreign_row_is_named(tmp_path: Path, line: str) -> None:
    file = open_file(tmp_path)
    file.path.write_text(line)
    with pytest.raises(DataError, match=r"samples\.jsonl, line 1 is not a sample .*remove the file"):
        open_file(tmp_path)


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemFailure, match=r"file/model' can't be written .*another --output"):
        open_file(tmp_path / "file" / "model")


def test_an_interrupted_evaluation_samples_only_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "PROMPTS_PER_PIECE", 2)
    prompts = [make_prompt(number) for number in range(7)]

    def work() -> list[Work]:
        files = {name: open_file(tmp_path / name) for name in ("a", "b")}
        return [
            Work(label="a", prompts=prompts, file=files["a"]),
            Work(label="b", prompts=prompts[:3], file=files["b"]),
        ]

    dying, pool, lines = FakePool(fails_at=3), FakePool(), []
    with pytest.raises(ExceptionGroup) as failure:
        asyncio.run(sample_missing(work(), dying.sample, on_piece=lambda part: lines.append(str(part))))
    assert failure.group_contains(SystemFailure, match="generator-0 died")
    kept = set(work()[0].file.finished)
    assert kept
    assert len(lines) * 2 == len(kept)
    asyncio.run(sample_missing(work(), pool.sample, on_piece=lambda part: lines.append(str(part))))
    sampled = [prompt_id for call in pool.calls for prompt_id in call]
    assert sorted(sampled) == sorted([f"p{n}" for n in range(7) if f"p{n}" not in kept] + ["p0", "p1", "p2"])
    assert lines[-1] == "b: 3 of 3 prompts"
    assert all(not part.missing for part in work())
    asyncio.run(sample_missing(work(), FakePool(fails_at=0).sample, on_piece=lines.append))  # nothing is asked for


def test_no_more_than_two_pieces_are_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "PROMPTS_PER_PIECE", 1)
    under_way: list[int] = [0]
    most: list[int] = []

    async def sample(prompts: Sequence[Prompt]) -> list[RolloutGroup]:
        under_way[0] += 1
        most.append(under_way[0])
        await asyncio.sleep(0)
        under_way[0] -= 1
        return [make_group(prompt) for prompt in prompts]

    prompts = [make_prompt(number) for number in range(6)]
    work = Work(label="a", prompts=prompts, file=open_file(tmp_path))
    asyncio.run(sample_missing([work], sample, on_piece=lambda part: None))
    assert max(most) == 2
    assert not work.missing
