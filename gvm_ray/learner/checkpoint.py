"""Sharded checkpoints of the learners: weights, optimizer moments, update counts, and the frozen reference.

Written with torch.distributed.checkpoint: every rank writes its shards, and they load into
another number of ranks. PyTorch keeps the list of shards as a pickle, which can run code when it is read: resume only
from a run folder whose writer you trust.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from gvm_ray.exceptions import CheckpointError, StorageFailure
from gvm_ray.learner.optimizer import PolicyOptimizer


def save_shards(
    folder: str | Path,
    *,
    policy: nn.Module,
    optimizer: PolicyOptimizer,
    reference: nn.Module | None,
) -> None:
    """Write the state under `folder`; every rank must call.

    Raises:
        StorageFailure: the disk is full, or can't be written.
    """
    state = _state(policy=policy, optimizer=optimizer, reference=reference)
    try:
        save(state, checkpoint_id=str(folder))
    except (CheckpointException, OSError) as error:  # of all ranks, and of this one before they gather
        raise StorageFailure.at(folder, error) from error


def load_shards(
    folder: str | Path, *, policy: nn.Module, optimizer: PolicyOptimizer, reference: nn.Module | None
) -> None:
    """Restore the state in place; every rank must call.

    Raises:
        CheckpointError: the checkpoint is missing or belongs to another model.
    """
    if not (Path(folder) / ".metadata").is_file():
        raise CheckpointError(f"learner checkpoint {str(folder)!r} is missing or unfinished; resume from another")
    state = _state(policy=policy, optimizer=optimizer, reference=reference)
    try:
        load(state, checkpoint_id=str(folder))
    except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"learner checkpoint {str(folder)!r} doesn't fit this run ({reason}); "
            "resume with the model and algorithm settings that it was written with"
        ) from error
    optimizer.num_updates = int(state["num_updates"])
    optimizer.num_skipped = int(state["num_skipped"])


def _state(*, policy: nn.Module, optimizer: PolicyOptimizer, reference: nn.Module | None) -> dict[str, Any]:
    """Tensors that share memory with the live state, so that loading into them restores it."""
    state: dict[str, Any] = {
        "policy": _weights(policy),
        "optimizer": {name: _moments(optimizer.adamw, p) for name, p in policy.named_parameters() if p.requires_grad},
        "num_updates": torch.tensor(optimizer.num_updates),
        "num_skipped": torch.tensor(optimizer.num_skipped),
    }
    if reference is not None:
        state["reference"] = _weights(reference)
    return state


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def _moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The optimizer's state of a parameter, made as AdamW would make it where no update has been yet."""
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state
