"""Infinite and NaN numbers in training: skipped, borne for a while, and then the run stops as one whole."""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gvm_ray.config import parse_config
from gvm_ray.config.model import OptimizerConfig
from gvm_ray.exceptions import TrainingDiverged
from gvm_ray.learner.learner import Learner
from gvm_ray.learner.optimizer import PolicyOptimizer
from gvm_ray.types import TrainBatch
from tests.learner_cases import (
    OPTIMIZER,
    SurrogateLoss,
    batch_of,
    build_tiny_model,
    copy_demonstrations,
    learner_config,
    ragged_groups,
)

pytestmark = pytest.mark.faults

GROUPS = ragged_groups()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("base"))


def make_learner(base: str, *, max_skipped_updates: int | None = 3, **tables: Any) -> Learner:
    settings = {"optimizer": OPTIMIZER, "max_skipped_updates": max_skipped_updates}
    return Learner(learner_config(learner=settings, **tables), base_path=base, token_loss=SurrogateLoss())


def poisoned(*, step: int, value: float = np.nan) -> TrainBatch:
    """A batch one of whose advantages is not a number."""
    batch = batch_of(GROUPS, step=step)
    batch.groups[0].advantages[0] = value
    return batch


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.named_full_tensors()}


def unchanged(learner: Learner, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in weights(learner).items())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_so_many_in_a_row_stop_the_run_and_leave_the_weights(base: str, value: float) -> None:
    learner = make_learner(base)
    learner.update(batch_of(GROUPS), GROUPS)
    before = weights(learner)
    for step in (1, 2):
        metrics = learner.update(poisoned(step=step, value=value), GROUPS).metrics
        assert (metrics["num_updates"], metrics["num_skipped_updates"]) == (0, 1)
    with pytest.raises(TrainingDiverged) as error:
        learner.update(poisoned(step=3, value=value), GROUPS)
    message = str(error.value)
    assert message.startswith("3 optimizer updates in a row")
    assert "up to step 4, after 1 completed" in message
    assert "learning_rate (now 0.01)" in message
    assert "learner.max_skipped_updates" in message
    assert unchanged(learner, before)


def test_one_good_update_begins_the_count_anew(base: str) -> None:
    learner = make_learner(base)
    for bad in (True, True, False, True, True):
        batch = poisoned(step=0) if bad else batch_of(GROUPS)
        assert learner.update(batch, GROUPS).metrics["num_skipped_updates"] == bad


def test_a_batch_without_samples_neither_counts_nor_ends_the_row(base: str) -> None:
    learner = make_learner(base, max_skipped_updates=2)
    empty = TrainBatch(step=0, groups=())
    for batch in (empty, empty, poisoned(step=0), empty, empty):
        learner.update(batch, [] if batch is empty else GROUPS)
    with pytest.raises(TrainingDiverged):
        learner.update(poisoned(step=1), GROUPS)


def test_a_loss_that_overflows_is_skipped_too(base: str) -> None:
    class Overflowing(SurrogateLoss):
        def __call__(self, **arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
            losses, diagnostics = super().__call__(**arguments)
            return losses * 1e38 * 1e38, diagnostics

    config = learner_config(learner={"max_skipped_updates": 1, "optimizer": OPTIMIZER})
    learner = Learner(config, base_path=base, token_loss=Overflowing())
    before = weights(learner)
    with pytest.raises(TrainingDiverged, match=r"^1 optimizer updates"):
        learner.update(batch_of(GROUPS), GROUPS)
    assert unchanged(learner, before)


def test_without_a_number_three_batches_are_borne(base: str) -> None:
    grpo = {"type": "grpo", "updates_per_batch": 2}
    learner = make_learner(base, max_skipped_updates=None, algorithm=grpo)
    batches = []
    for step in range(3):
        batches.append(batch_of(GROUPS, step=step))
        for group in batches[-1].groups:
            group.advantages[:] = np.nan
    for batch in batches[:2]:
        assert learner.update(batch, GROUPS).metrics["num_skipped_updates"] == 2
    with pytest.raises(TrainingDiverged, match=r"^6 optimizer updates"):
        learner.update(batches[2], GROUPS)


def test_the_count_survives_a_checkpoint(base: str, tmp_path: Path) -> None:
    learner = make_learner(base)
    for step in range(2):
        learner.update(poisoned(step=step), GROUPS)
    learner.save(str(tmp_path / "shards"))
    resumed = make_learner(base)
    resumed.load(str(tmp_path / "shards"))
    with pytest.raises(TrainingDiverged, match=r"^3 optimizer updates"):
        resumed.update(poisoned(step=2), GROUPS)


def test_the_warm_start_stops_too(base: str) -> None:
    learner = make_learner(base, max_skipped_updates=2)
    with torch.no_grad():
        next(learner.policy.parameters()).fill_(float("nan"))
    learner.supervised_update(copy_demonstrations())
    with pytest.raises(TrainingDiverged, match="up to an update of the warm start"):
        learner.supervised_update(copy_demonstrations())


def test_a_rank_goes_by_what_all_ranks_met(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Linear(2, 2)
    optimizer = PolicyOptimizer(module, OptimizerConfig(), total_updates=9, max_skipped_updates=2)
    before = module.weight.detach().clone()
    monkeypatch.setattr(dist, "all_reduce", lambda square_norm: square_norm.add_(math.nan))  # another rank's share

    def apply(step: int) -> float:
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        return optimizer.apply(where=f"step {step}")

    assert math.isnan(apply(1))
    with pytest.raises(TrainingDiverged, match=r"^2 optimizer updates .* up to step 2"):
        apply(2)
    assert torch.equal(module.weight, before)


def test_the_error_reaches_the_driver_whole() -> None:
    error = pickle.loads(pickle.dumps(TrainingDiverged("3 in a row")))
    assert (type(error), str(error)) == (TrainingDiverged, "3 in a row")


def test_the_setting_is_a_count() -> None:
    values = {"name": "t", "model": {"type": "scratch"}, "prompts": {"train": {"type": "arithmetic"}}}
    with pytest.raises(ValueError, match="max_skipped_updates"):
        parse_config({**values, "learner": {"max_skipped_updates": 0}})
    algorithm = {"type": "grpo", "updates_per_batch": 4}
    assert parse_config({**values, "algorithm": algorithm}).max_skipped_updates == 12
