"""The bare loop is a fair floor: it does what the learner does."""

from pathlib import Path

import pytest
import torch

from gvm_ray.lab.speed import learner as bench
from gvm_ray.lab.speed.suite import BenchOptions

TINY = bench.LearnerCase(
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    vocab_size=100,
    num_prompts=3,
    samples_per_prompt=3,
    response_tokens=(1, 20),
    micro_batch_tokens=100,
)


def test_the_learner_and_the_bare_loop_end_with_the_same_weights(tmp_path: Path) -> None:
    bench.write_model(TINY, tmp_path)
    learner, loop = bench.make_learner(TINY, tmp_path), bench.BareLoop(TINY, tmp_path)
    start = {name: tensor.clone() for name, tensor in learner.named_full_tensors()}
    groups = bench.make_groups(TINY)
    for _ in range(3):
        assert learner.update(bench.make_batch(groups), groups).metrics["num_updates"] == 1
        loop.update(bench.make_batch(groups), groups)
    expected = loop.model.state_dict()
    trained = dict(learner.named_full_tensors())
    assert max(float((trained[name] - start[name]).abs().max()) for name in trained) > 2e-4
    assert max(float((trained[name] - expected[name]).abs().max()) for name in trained) < 1e-5


def test_rows_have_a_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LearnerCase", lambda **_: TINY)
    monkeypatch.setattr(bench, "SHARED_CASES", (TINY,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = bench.measure(BenchOptions(quick=True))
    assert ["shared prompts" in row.name for row in rows] == [False, True, True]
    for row in rows:
        assert row.value > 0
        assert row.floor is not None
        assert row.ratio == row.value / row.floor


def test_packed_micro_batches_beside_padded_ones_and_a_matrix_product(tmp_path: Path) -> None:
    rows = bench.gpu_rows(TINY, device=torch.device("cpu"), repeats=1)
    assert [row.unit for row in rows] == ["tokens/s", "TFLOP/s"]
    assert all(row.ratio is not None and row.ratio > 0 for row in rows)
    bench.write_model(TINY, tmp_path)
    num_parameters = sum(p.numel() for p in bench.BareLoop(TINY, tmp_path).model.parameters())
    assert f"{num_parameters:,} parameters" in rows[0].name
    assert rows[1].value == pytest.approx(6 * num_parameters * rows[0].value / 1e12)


def test_the_default_case_has_nine_hundred_thousand_parameters(tmp_path: Path) -> None:
    bench.write_model(bench.LearnerCase(), tmp_path)
    model = bench.BareLoop(bench.LearnerCase(), tmp_path).model
    assert sum(parameter.numel() for parameter in model.parameters()) == 903_296
