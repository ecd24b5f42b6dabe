"""Sharded checkpoints of the learners: trained weights, optimizer moments, update counts, and the frozen reference.

With adapters, a checkpoint holds the frozen base's checksums, and its weights only if a warm start has changed them.

Written with torch.distributed.checkpoint: every rank writes its shards, and any number of ranks can load them. PyTorch
stores the list of shards as a pickle, which can run code when it is read: resume only from a run folder whose writer
you trust.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from gvm_ray.exceptions import CheckpointError, StorageFailure
from gvm_ray.learner.frozen_base import FrozenBase
from gvm_ray.learner.optimizer import PolicyOptimizer


def save_shards(
    folder: str | Path,
    *,
    policy: nn.Module,
    optimizer: PolicyOptimizer,
    reference: nn.Module | None,
    base: FrozenBase | None,
) -> None:
    """Write the state under `folder`; every rank must call.

    Raises:
        StorageFailure: the disk is full or can't be written.
    """
    state = _state(policy=policy, optimizer=optimizer, reference=reference)
    if base is not None:
        state["base_checksums"] = base.checksums()
        if base.changed:
            state["base"] = base.weights
    try:
        save(state, checkpoint_id=str(folder))
    except (CheckpointException, OSError) as error:  # errors gathered from all ranks; this rank's own before that
        raise StorageFailure.at(folder, error) from error


def load_shards(
    folder: str | Path,
    *,
    policy: nn.Module,
    optimizer: PolicyOptimizer,
    reference: nn.Module | None,
    base: FrozenBase | None,
) -> None:
    """Restore the state in place; every rank must call.

    Raises:
        CheckpointError: the checkpoint is missing, belongs to another model, or holds adapters for another base.
    """
    if not (Path(folder) / ".metadata").is_file():
        raise CheckpointError(f"learner checkpoint {str(folder)!r} is missing or unfinished; resume from another")
    state = _state(policy=policy, optimizer=optimizer, reference=reference)
    if base is not None:
        state["base_checksums"] = torch.zeros_like(base.checksums())
    _load(state, folder)
    if base is not None and not torch.equal(state["base_checksums"], base.checksums()):
        if not any(name.startswith("base.") for name in FileSystemReader(folder).read_metadata().state_dict_metadata):
            raise CheckpointError(
                f"learner checkpoint {str(folder)!r} holds adapters for a base model with other weights than this "
                "run's; resume with the model.path and model.revision that it was written with"
            )
        _load({"base": base.weights}, folder)
    optimizer.num_updates = int(state["num_updates"])
    optimizer.num_skipped = int(state["num_skipped"])


def _load(state: dict[str, Any], folder: str | Path) -> None:
    try:
        load(state, checkpoint_id=str(folder))
    except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"learner checkpoint {str(folder)!r} doesn't fit this run ({reason}); "
            "resume with the model and algorithm settings that it was written with"
        ) from error


def _state(*, policy: nn.Module, optimizer: PolicyOptimizer, reference: nn.Module | None) -> dict[str, Any]:
    """Tensors that share memory with the live state, so that loading into them restores it."""
    state: dict[str, Any] = {
        "policy": {name: parameter.detach() for name, parameter in _trained(policy).items()},
        "optimizer": {name: _moments(optimizer.adamw, parameter) for name, parameter in _trained(policy).items()},
        "num_updates": torch.tensor(optimizer.num_updates),
        "num_skipped": torch.tensor(optimizer.num_skipped),
    }
    if reference is not None:
        state["reference"] = {name: parameter.detach() for name, parameter in reference.named_parameters()}
    return state


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The optimizer's state of a parameter. Before the first update it is created here, as AdamW would."""
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state
