"""One whole run with vLLM and two FSDP2 learners, looked at from several sides."""

import pytest
from tiny_runs import largest_change, tiny_config

from gvm_ray.reporting import RunFolder, read_rows
from gvm_ray.run import train

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.ray]


@pytest.fixture(scope="module")
def folder(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    runs_dir = tmp_path_factory.mktemp("runs")
    train(tiny_config(runs_dir, name="vllm", engine__type="vllm", learner__num_workers=2))
    return RunFolder(runs_dir / "vllm")


def test_engine_and_learners_agree_at_every_step(folder: RunFolder) -> None:
    rows = read_rows(folder.metrics)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(row["logprob_difference/mean"] < 1e-4 for row in rows)


def test_every_step_trains_on_the_newest_version(folder: RunFolder) -> None:
    rows = read_rows(folder.metrics)
    assert [row["staleness/max"] for row in rows] == [0] * 4
    assert [row["num_updates"] for row in rows] == [2] * 4
    assert largest_change(folder.warm_start, folder.model) > 1e-4


def test_prompts_get_different_budgets_that_sum_to_the_steps(folder: RunFolder) -> None:
    counts = [row["samples_per_prompt"] for row in read_rows(folder.histograms)]
    assert [sum(step) for step in counts] == [48] * 4
    assert any(max(step) > min(step) for step in counts)


def test_held_out_accuracy_is_reported(folder: RunFolder) -> None:
    accuracies = {row["step"]: row["eval/accuracy"] for row in read_rows(folder.metrics) if "eval/accuracy" in row}
    assert accuracies.keys() == {1, 3}
    assert all(0 <= accuracy <= 1 for accuracy in accuracies.values())
