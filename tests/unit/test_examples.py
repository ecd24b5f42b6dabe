"""The examples run, do what they say, and the commands that they show are right."""

import importlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import pytest
import torch

from gvm_ray.allocators import AllocationDriver
from gvm_ray.cli import main
from gvm_ray.config import RunConfig, load_config
from gvm_ray.reporting import RunFolder
from gvm_ray.trainer import StepResult
from tests.builders import completion, outcome, prompt, prompts

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture(autouse=True)
def _in_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(EXAMPLES)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_that_an_example_shows_is_accepted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = (importlib.import_module(name).__doc__ or "").replace("\\\n", " ")
    for line in shown.splitlines():
        _, found, arguments = line.partition("gvm-ray ")
        if found and arguments.startswith("train "):
            assert main([*shlex.split(arguments), "--dry-run"]) == 0, line
    assert "gvm-ray train" in shown or f"python examples/{name}.py" in shown
    assert capsys.readouterr().err == ""


# --- GVM in one file --------------------------------------------------------------------------------------------------
@pytest.fixture
def one_file() -> ModuleType:
    return importlib.import_module("gvm_in_one_file")


def test_one_file_trains(
    one_file: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(one_file, "STEPS", 12)
    one_file.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("accuracy")[0].strip() for line in lines] == ["step  0", "step  5", "step 10", "step 11"]
    assert all("samples 352" in line for line in lines)
    first, *_, last = [float(line.split("accuracy ")[1][:4]) for line in lines]
    assert first < 0.2 < last


def test_one_file_allocates_by_hand(one_file: ModuleType) -> None:
    counts = one_file.allocate(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 3.0]), budget=17)
    assert counts.tolist() == [4 + 2, 4 + 7]  # 9 beyond the pilots as 1 : 3, that is 2.25 and 6.75


def test_one_file_spends_any_budget(one_file: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        rates, norms = (torch.rand(7, generator=generator) + 0.01 for _ in range(2))
        budget = int(torch.randint(28, 200, (), generator=generator))
        counts = one_file.allocate(rates, norms, budget=budget)
        assert int(counts.sum()) == budget
        assert int(counts.min()) >= 4


# --- parts of one's own -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("num_tokens", "expected"), [(0, 1.0), (6, 0.75), (24, 0.0), (48, 0.0)])
def test_brevity(num_tokens: int, expected: float) -> None:
    response = completion("x" * num_tokens, num_tokens=num_tokens)
    assert importlib.import_module("custom_reward").brevity(prompt("a"), response) == expected


def test_fewer_samples_for_solved_prompts() -> None:
    steps = AllocationDriver(importlib.import_module("custom_allocator").FewerForSolved(), accept_threshold=0.5)
    assert dict(steps.plan(prompts("abc"), step=0, budget=15).counts) == {"a": 5, "b": 5, "c": 5}
    assert steps.observe([outcome("a", [1.0, 1.0]), outcome("b", [1.0, 0.0])], step=0).total == 0
    assert dict(steps.plan(prompts("abc"), step=1, budget=15).counts) == {"a": 3, "b": 6, "c": 6}


def test_cispo_keeps_the_gradient_that_a_clip_takes() -> None:
    cispo = importlib.import_module("custom_loss").cispo
    logprobs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    old = torch.tensor([[-1.0, -3.0]])
    cispo(logprobs, old_logprobs=old, advantages=torch.ones(1, 1), mask=None, high=1.5).sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-1.0, -1.5]]))


def test_sums_are_rows_of_problems() -> None:
    rows = list(importlib.import_module("custom_source").sums(size=20))
    assert rows == list(importlib.import_module("custom_source").sums(size=20))
    for row in rows:
        a, b = (int(digit) for digit in row["problem"].rstrip("=").split("+"))
        assert (row["answer"], row["level"]) == ((a + b) % 7, "easy" if a + b < 7 else "hard")


def test_a_table_has_a_row_for_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(EXAMPLES.parent / "configs" / "quickstart.toml", ["runs_dir=."])
    (tmp_path / config.name).mkdir()
    sink = importlib.import_module("custom_sink").Table(config, metrics=["reward/mean", "eval/accuracy"])
    sink.write(0, {"reward/mean": 0.5}, histograms={}, texts=())
    sink.write(1, {"reward/mean": 0.75, "eval/accuracy": 0.25}, histograms={}, texts=())
    sink.close()
    assert (tmp_path / config.name / "table.csv").read_text().split() == ["0,0.5,", "1,0.75,0.25"]


# --- a walkthrough ----------------------------------------------------------------------------------------------------
class MadeSteps:
    """In place of `Trainer`: two steps, in which a larger alpha gives the hard prompt fewer samples."""

    def __init__(self, config: RunConfig, *, overwrite: bool) -> None:
        assert overwrite
        hard = 2 if config.model_dump()["allocator"]["alpha"] > 0.1 else 12
        self._rows = [{"accept_rate": [0.1, 0.9], "samples_per_prompt": [hard, 16 - hard]}] * 2
        self._histograms = RunFolder(Path(config.runs_dir) / config.name).histograms

    def __enter__(self) -> Iterator[StepResult]:
        self._histograms.parent.mkdir(parents=True)
        self._histograms.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
        metrics = {"reward/mean": 0.5, "groups/with_signal": 2.0, "allocation/min": 2.0, "allocation/max": 14.0}
        return iter([StepResult(step=step, metrics=metrics) for step in range(len(self._rows))])

    def __exit__(self, *error: object) -> None: ...


def test_the_walkthrough_shows_how_alpha_moves_the_samples(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    walkthrough = importlib.import_module("walkthrough")
    monkeypatch.setattr(walkthrough, "Trainer", MadeSteps)
    monkeypatch.chdir(tmp_path)
    walkthrough.main()
    *steps, small, large = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in steps] == ["step 0", "step 1"] * 2
    assert small.endswith(": 12.0 nan nan 4.0")
    assert large.endswith(": 2.0 nan nan 14.0")
    assert plt.imread(tmp_path / "walkthrough.png").std() > 0


def test_stepping_the_environment_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("prompt_env").main()
    right, wrong, unfinished, _ = capsys.readouterr().out.splitlines()
    assert "reward=1.0 terminated=True truncated=False" in right
    assert "reward=0.0 terminated=True truncated=False" in wrong
    assert "reward=0.0 terminated=False truncated=True" in unfinished


# --- several turns ----------------------------------------------------------------------------------------------------
def test_a_second_chance_is_for_who_needs_one() -> None:
    respond = importlib.import_module("multi_turn").second_chance
    assert respond(prompt("a"), ["\\boxed{2}"]) == "?"
    assert respond(prompt("a"), ["\\boxed{2}", "so \\boxed{1}"]) is None
