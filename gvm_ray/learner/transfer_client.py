"""What vLLM's sender says to the generators, with a deadline for each phase and one record of what went wrong."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gvm_ray.config.run import DeadlineConfig
from gvm_ray.exceptions import DeadlineExceeded, SystemFailure
from gvm_ray.types import (
    Delivery,
    FinishUpdate,
    JoinWorld,
    ReceiveWeights,
    StartUpdate,
    TransferMember,
    TransferPhase,
    TransferWorld,
    WeightTransfer,
)

Message = tuple[TransferMember, TransferPhase]
# Sends every message and waits for the answers, so many seconds at most. Gives back, by name, what members failed with
# and None for those that did not answer; empty when all are done. Returns at the first failure.
AskMembers = Callable[[Sequence[Message], float], Mapping[str, Exception | None]]


class TransferStopped(SystemFailure):
    """A generator failed, and the sender is to go no further; the delivery says the rest."""


class TransferClient:
    """A vLLM `VLLMWeightSyncClient` by its members, which vLLM's trainer side drives. For one transfer after the other.

    Args:
        ask: reaches the members.
        transfer: named in errors.
        deadlines: `start_s` for connecting, `sample_s` for samples under way, `sync_s` for each other phase.
        raises: whether a failure raises `TransferStopped` in the sender. Else the later phases do nothing, for a sender
            whose ranks all have to go through the whole round.
        on_failure: called at the first failure of a transfer, maybe in another thread than the sender's: it is to free
            the sender from a call that waits for a member.
    """

    def __init__(
        self,
        ask: AskMembers,
        *,
        transfer: WeightTransfer,
        deadlines: DeadlineConfig,
        raises: bool,
        on_failure: Callable[[], None],
    ) -> None:
        self._ask = ask
        self._transfer = transfer
        self._deadlines = deadlines
        self._raises = raises
        self._on_failure = on_failure
        self._world = TransferWorld(generation=-1, members=())
        self._policy_version = -1
        self._checksum: Callable[[], str] = str
        self._failures: dict[str, Exception] = {}
        self._halfway = False

    def aim(self, world: TransferWorld, *, policy_version: int, checksum: Callable[[], str]) -> None:
        """A new transfer, to these generators; `checksum` gives that of what was sent, once it was."""
        self._world = world
        self._policy_version = policy_version
        self._checksum = checksum
        self._failures = {}
        self._halfway = False

    @property
    def delivery(self) -> Delivery:
        """How the present transfer went so far."""
        return Delivery(policy_version=self._policy_version, failures=dict(self._failures), halfway=self._halfway)

    # --- the four calls of vLLM ---------------------------------------------------------------------------------------
    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Connect the members. vLLM means one engine, so each member's workers are given ranks of their own."""
        messages: list[Message] = []
        rank_offset = 1  # rank 0 sends
        for member in self._world.members:
            info = {**init_info, "rank_offset": rank_offset} if "rank_offset" in init_info else init_info
            messages.append((member, JoinWorld(generation=self._world.generation, init_info=info)))
            rank_offset += member.num_workers
        self._all("init", messages, timeout_s=self._deadlines.start_s, setting="deadlines.start_s")

    def start_weight_update(self) -> None:
        """All members at rest, which those with samples under way may first end."""
        deadlines = self._deadlines
        timeout_s = deadlines.sync_s + deadlines.sample_s
        phase = StartUpdate(
            generation=self._world.generation,
            policy_version=self._policy_version,
            silence_s=timeout_s + deadlines.sync_s,  # one may rest for as long as another takes to
        )
        self._same("start", phase, timeout_s=timeout_s)

    def update_weights(self, update_info: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """All members receive what is announced; returns when they have it."""
        assert isinstance(update_info, Mapping), "a list, one for each worker, is of transfers that aren't used here"
        phase = ReceiveWeights(generation=self._world.generation, update_info=update_info)
        self._same("update", phase, timeout_s=self._deadlines.sync_s)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """All members compare checksums and go on; the version is that of the transfer."""
        phase = FinishUpdate(
            generation=self._world.generation, policy_version=self._policy_version, checksum=self._checksum()
        )
        self._same("finish", phase, timeout_s=self._deadlines.sync_s)

    def _same(self, name: str, phase: TransferPhase, *, timeout_s: float) -> None:
        self._all(name, [(m, phase) for m in self._world.members], timeout_s=timeout_s, setting="deadlines.sync_s")

    def _all(self, name: str, messages: Sequence[Message], *, timeout_s: float, setting: str) -> None:
        if self._failures:
            return
        failures = self._ask(messages, timeout_s)
        if not failures:
            return
        what = f"weights version {self._policy_version} by {self._transfer}, phase {name!r}"
        longer = 2 * getattr(self._deadlines, setting.removeprefix("deadlines."))
        for member, error in failures.items():
            self._failures[member] = error or DeadlineExceeded(
                f"{what}: {member} took longer than {timeout_s:g} s; give it longer with --set {setting}={longer:g}"
            )
        self._halfway = name != "init"
        self._on_failure()
        if self._raises:
            raise TransferStopped(f"{what} failed at {', '.join(failures)}")
