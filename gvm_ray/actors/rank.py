"""Learner ranks: Ray Train workers that take commands from the mailbox and serve them with a `Learner`."""

import gc
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from gvm_ray.actors.commands import (
    Command,
    Export,
    FinishWarmStart,
    GradientNorms,
    Load,
    PromptStates,
    Publish,
    Reset,
    ResponseStates,
    Save,
    SendWeights,
    Start,
    Stop,
    SupervisedUpdates,
    Update,
    absolute,
)
from gvm_ray.actors.mailbox import RankIdentity
from gvm_ray.actors.weight_sync import ask_members, free_endpoint, publish
from gvm_ray.config import RunConfig
from gvm_ray.config.model import LearnerConfig
from gvm_ray.exceptions import ActorFailure, ConfigError, SystemFailure, UserError
from gvm_ray.resources import logical_cpus, rank_gpus, thread_variables
from gvm_ray.types import (
    Delivery,
    Demonstration,
    Float64Array,
    GroupRef,
    LiveWeights,
    Metrics,
    RolloutGroup,
    TrainBatch,
    WeightsRef,
    WeightTransfer,
)

if TYPE_CHECKING:  # they import torch, which the processes of the mailbox and the allocator do without
    from gvm_ray.learner.learner import Learner
    from gvm_ray.learner.losses import TokenLoss
    from gvm_ray.learner.transfer import WeightSender


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnerSetup:
    """Arguments of a rank's learner."""

    config: RunConfig
    base_path: str
    token_loss: "TokenLoss"
    transfer: WeightTransfer = "object_store"
    adapters: bool = False  # whether generators get the adapters alone


@dataclass(frozen=True, kw_only=True, eq=False)
class RankSetup:
    """Arguments of a rank."""

    learner: LearnerSetup
    mailbox: Any  # actor handle
    num_threads: int = 1


def run_rank(setup: dict[str, RankSetup]) -> None:
    """Serve commands until `Stop`. Ray Train calls this on every worker.

    An error ends the rank, and with it the group: collective calls can't continue without one rank. The cause goes to
    the mailbox first, so that the driver needn't wait for Ray Train to notice. A `UserError`, which every rank raises
    alike, isn't raised again: the driver shows it, and a traceback would only hide it.
    """
    import ray.train
    import torch
    from ray.train.torch import get_device

    torch.set_num_threads(setup["rank"].num_threads)  # Ray Train has imported it, perhaps before the variables were set
    rank, mailbox, learner = ray.train.get_context().get_world_rank(), setup["rank"].mailbox, setup["rank"].learner
    doing = "starting"
    context = ray.get_runtime_context()
    identity = RankIdentity(actor=context.current_actor, node=ray.util.get_node_ip_address(), pid=os.getpid())
    ray.get(mailbox.join.remote(rank, identity))
    try:
        server = _RankServer(learner, device=get_device(), rank=rank)
        number = 0
        while True:
            command: Command = ray.get(mailbox.take.remote(number))
            doing = command.what
            answer = server.serve(command)
            if learner.config.generators_sleep:
                _leave_room()
            if rank == 0:
                ray.get(mailbox.answer.remote(number, answer))
            if isinstance(command, Stop):
                return
            number += 1
    except Exception as error:
        ray.get(mailbox.fail.remote(_cause(error, rank=rank, doing=doing)))
        if not isinstance(error, UserError):
            raise


class _RankServer:
    """Carries out the commands on one rank."""

    def __init__(self, setup: LearnerSetup, *, device: Any, rank: int) -> None:
        self._rank = rank
        self._device = device
        self._setup = setup
        self._learner = self._make_learner(setup)
        self._version = -1  # of the policy after the last update
        self._sender: WeightSender | None = None
        self._demonstrations_ref: Any = None
        self._demonstrations: Sequence[Demonstration] = ()

    def serve(self, command: Command) -> Any:
        """Do the command; rank 0's return value is the answer."""
        match command:
            case Start() | Stop():
                return None
            case Reset(setup=setup):
                return self._reset(setup)
            case Update(batch=batch):
                return self._update(batch)
            case GradientNorms(refs=refs):
                return self._learner.gradient_norms(_fetch(refs))
            case ResponseStates(refs=refs):
                return self._learner.response_states(_fetch(refs))
            case PromptStates(token_ids=token_ids, pooling=pooling):
                return self._learner.prompt_states(ray.get(token_ids), pooling=pooling)
            case SupervisedUpdates():
                return self._supervised_updates(command)
            case FinishWarmStart():
                return self._learner.finish_warm_start()
            case Publish(policy_version=version, stored=True):
                return self._store(max(version, self._version))  # an update may have come in between
            case Publish(policy_version=version):
                return self._publish(version)
            case SendWeights():
                return self._send(command)
            case Save(folder=folder):
                return self._learner.save(folder)
            case Load(folder=folder):
                return self._load(folder)
            case Export(folder=folder):
                return self._learner.export(folder)
            case unknown:
                raise AssertionError(f"no command {unknown!r}")

    def _make_learner(self, setup: LearnerSetup) -> "Learner":
        from gvm_ray.learner.learner import Learner

        return Learner(setup.config, base_path=setup.base_path, token_loss=setup.token_loss, device=self._device)

    def _reset(self, setup: Any) -> None:
        """Begin another run. `setup` is an object ref to a LearnerSetup; see `Reset`."""
        del self._learner
        gc.collect()  # two policies might not fit in memory, and a sharded module has reference cycles
        fetched: Any = ray.get(setup)
        self._setup: LearnerSetup = fetched
        self._learner = self._make_learner(self._setup)
        self._version = -1

    def _update(self, batch: TrainBatch) -> tuple[WeightsRef | None, Metrics, tuple[Float64Array, ...]]:
        groups = _fetch([group.ref for group in batch.groups])
        done = self._learner.update(batch, groups)
        self._version = batch.step + 1
        return self._publish(self._version), done.metrics, done.gradient_norms

    def _supervised_updates(self, updates: SupervisedUpdates) -> Metrics:
        """Make the updates; returns metrics of the last one."""
        if updates.demonstrations != self._demonstrations_ref:  # fetched once: unpickling them every time is slow
            self._demonstrations = ray.get(updates.demonstrations)
            self._demonstrations_ref = updates.demonstrations
        metrics: Metrics = {}
        for indices in updates.batches:
            metrics = self._learner.supervised_update([self._demonstrations[i] for i in indices])
        return metrics

    def _load(self, folder: str) -> None:
        self._learner.load(folder)
        self._version = -1

    def _publish(self, policy_version: int) -> WeightsRef | None:
        """Publish the weights through the run's transfer: put them into the object store, or keep them here to send."""
        setup = self._setup
        if setup.transfer == "object_store":
            return self._store(policy_version)
        evaluation = setup.config.evaluation  # its own generators take no part in the transfer, and need this version
        stored = None
        if evaluation.num_generators and evaluation.is_due(policy_version):
            stored = self._store(policy_version)
        location = LiveWeights(transfer=setup.transfer, buckets=stored.location if stored else ())
        return WeightsRef(policy_version=policy_version, location=location)

    def _store(self, policy_version: int) -> WeightsRef | None:
        learner = self._learner
        tensors = learner.named_adapter_tensors() if self._setup.adapters else learner.named_full_tensors()
        if self._rank == 0:
            bucket_bytes = self._setup.config.weight_sync.bucket_mib * 2**20
            return publish(tensors, policy_version=policy_version, bucket_bytes=bucket_bytes)
        for _ in tensors:  # gathering is a collective call
            pass
        return None

    def _send(self, wanted: SendWeights) -> Delivery:
        import torch

        from gvm_ray.learner.transfer import WeightSender

        if self._sender is None:
            config = self._setup.config
            self._sender = WeightSender(
                lambda: self._learner.policy,
                transfer=self._setup.transfer,
                dtype=getattr(torch, config.engine.dtype),
                device=self._device,
                rank=self._rank,
                bucket_bytes=config.weight_sync.bucket_mib * 2**20,
                deadlines=config.deadlines,
                ask=ask_members,
                endpoint=free_endpoint,
            )
        return self._sender.send(wanted.world, policy_version=max(wanted.policy_version, self._version))


def _leave_room() -> None:
    """Release PyTorch's cached GPU memory to the generators; returns once all ranks have done so."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.distributed.barrier()


def _fetch(refs: Sequence[GroupRef]) -> list[RolloutGroup]:
    """The groups behind the refs; an object that holds several groups is fetched once."""
    distinct = list(dict.fromkeys(ref.ref for ref in refs))
    fetched = dict(zip(distinct, ray.get(distinct), strict=True))
    return [fetched[ref.ref][ref.index] for ref in refs]


def _cause(error: Exception, *, rank: int, doing: str) -> Exception:
    """The error for the driver: the project's own are passed on, any other becomes text with its traceback."""
    if isinstance(error, UserError | SystemFailure):
        return error
    text = "".join(traceback.format_exception(error))
    return ActorFailure(f"learner rank {rank} failed in {doing!r}: {type(error).__name__}: {error}\n{text}")


_UNNEEDED_CALLBACKS = ("PlacementGroupCleanerCallback", "DatasetsCallback")
_NODE_ID = "ray.io/node-id"  # a label that Ray gives every node


def learner_setup(
    config: RunConfig, *, base_path: str, token_loss: "TokenLoss", transfer: WeightTransfer, adapters: bool
) -> LearnerSetup:
    """The `LearnerSetup` of a run; a local base path is made absolute."""
    path = absolute(base_path) if Path(base_path).is_dir() else base_path  # a hub id stays
    return LearnerSetup(config=config, base_path=path, token_loss=token_loss, transfer=transfer, adapters=adapters)


def check_ranks_fit(wanted: LearnerConfig, present: LearnerConfig) -> None:
    """Refuse to reset ranks for a run that needs different ones.

    Raises:
        ConfigError: number, CPUs or GPUs of the ranks differ.
    """
    for name in ("num_workers", "cpus_per_worker", "gpus_per_worker"):
        new, old = getattr(wanted, name), getattr(present, name)
        if new != old:
            raise ConfigError(
                f"learner.{name}={new} differs from the {old} that the learners were started with, and a reset keeps "
                f"the ranks; write {name}={old}, or start new learners"
            )


def rank_resources(config: RunConfig, *, nodes: Sequence[str] = ()) -> Any:
    """Ray Train's ScalingConfig of the ranks; see `rank_trainer`."""
    from ray.train import ScalingConfig

    learner = config.learner
    use_gpu = learner.gpus_per_worker > 0
    return ScalingConfig(
        num_workers=learner.num_workers,
        use_gpu=use_gpu,
        resources_per_worker={"CPU": logical_cpus(learner.cpus_per_worker)}
        | ({"GPU": rank_gpus(config)} if use_gpu else {}),
        placement_strategy="PACK" if use_gpu else "SPREAD",  # ranks on CPUs have the cores of all machines
        label_selector=[{_NODE_ID: node} for node in nodes] or None,
    )


def rank_trainer(setup: RankSetup, *, run_dir: str, nodes: Sequence[str] = ()) -> Any:
    """A Ray Train v2 trainer whose workers are the ranks. It doesn't retry: the ranks' state would be lost.

    Args:
        setup: of each rank.
        run_dir: the run's folder.
        nodes: Ray's node id for each rank, if the ranks share GPUs with generators; if empty, Ray chooses.
    """
    from ray.train import FailureConfig, LoggingConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from gvm_ray.learner.kernels import process_group_backend

    class Trainer(TorchTrainer):
        """TorchTrainer without two actors that the ranks don't need, for which Ray has no setting.

        The placement-group cleaner asks the dashboard if the controller lives. If the cluster has no dashboard but
        another cluster's listens on that port, the answer is that there is no such actor, and the cleaner removes the
        ranks' placement group, which ends anyway with the actor that made it. The manager of datasets has none to
        manage, and costs a process that imports Ray Data.
        """

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [c for c in callbacks if type(c).__name__ not in _UNNEEDED_CALLBACKS]

    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # its notices would be ignored
    config = setup.learner.config
    use_gpu = config.learner.gpus_per_worker > 0
    return Trainer(
        run_rank,
        train_loop_config={"rank": setup},
        torch_config=TorchConfig(
            backend=process_group_backend("cuda" if use_gpu else "cpu"), timeout_s=int(config.deadlines.update_s)
        ),
        scaling_config=rank_resources(config, nodes=nodes),
        run_config=RunConfig(
            name="learners",
            storage_path=str(Path(run_dir).absolute()),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": thread_variables(setup.num_threads)},
        ),
    )
