"""The sender's side of a transfer: what the generators are told, each phase's deadline, and what stops the sender."""

from collections.abc import Mapping, Sequence

import pytest

from gvm_ray.config.run import DeadlineConfig
from gvm_ray.exceptions import ActorDied, DeadlineExceeded
from gvm_ray.learner.transfer import TransferClient, TransferStopped
from gvm_ray.types import (
    FinishUpdate,
    JoinWorld,
    ReceiveWeights,
    StartUpdate,
    TransferMember,
    TransferPhase,
    TransferWorld,
)

DEADLINES = DeadlineConfig(start_s=10, sample_s=20, sync_s=3)
MEMBERS = tuple(
    TransferMember(name=f"generator-{i}", actor=None, num_workers=num_workers) for i, num_workers in enumerate((2, 1))
)


class Generators:
    """Takes the messages, and fails as told from a kind of phase on."""

    def __init__(self, *, fail_at: type | None = None, failures: Mapping[str, Exception | None] | None = None) -> None:
        self.asked: list[tuple[str, TransferPhase, float]] = []
        self._fail_at = fail_at
        self._failures = failures or {}

    def __call__(
        self, messages: Sequence[tuple[TransferMember, TransferPhase]], timeout_s: float
    ) -> Mapping[str, Exception | None]:
        self.asked += [(member.name, phase, timeout_s) for member, phase in messages]
        return self._failures if self._fail_at is not None and isinstance(messages[0][1], self._fail_at) else {}


class Sender:
    """A client with what it was told and did."""

    def __init__(self, generators: Generators, *, raises: bool = True) -> None:
        self.num_freed = 0
        self.client = TransferClient(
            generators, transfer="nccl", deadlines=DEADLINES, raises=raises, on_failure=self._free
        )
        self.client.aim(TransferWorld(generation=4, members=MEMBERS), policy_version=7, checksum=lambda: "5afe")

    def _free(self) -> None:
        self.num_freed += 1

    def send(self) -> None:
        """As vLLM's trainer engines call it."""
        self.client.init_weight_transfer_engine({"world_size": 4, "rank_offset": 1})
        self.client.start_weight_update()
        self.client.update_weights({"names": ["a"]})
        self.client.finish_weight_update()


def test_every_generator_hears_every_phase_with_its_deadline() -> None:
    generators = Generators()
    sender = Sender(generators)
    sender.send()
    assert not sender.client.delivery.failures
    assert sender.client.delivery.policy_version == 7
    assert sender.num_freed == 0
    names, phases, timeouts = zip(*generators.asked, strict=True)
    assert names == ("generator-0", "generator-1") * 4
    assert list(map(type, phases[::2])) == [JoinWorld, StartUpdate, ReceiveWeights, FinishUpdate]
    assert timeouts[::2] == (10, 23, 3, 3)
    assert {phase.generation for phase in phases} == {4}
    joins = [phase.init_info for phase in phases if isinstance(phase, JoinWorld)]
    assert joins == [{"world_size": 4, "rank_offset": 1}, {"world_size": 4, "rank_offset": 3}]
    (start, *_), (finish, *_) = phases[2:4], phases[6:]
    assert (start.policy_version, start.silence_s) == (7, 26)
    assert (finish.policy_version, finish.checksum) == (7, "5afe")


def test_a_transfer_without_ranks_of_its_own_is_connected_as_it_says() -> None:
    generators = Generators()
    Sender(generators).client.init_weight_transfer_engine({"packed": True})
    infos = [phase.init_info for _, phase, _ in generators.asked if isinstance(phase, JoinWorld)]
    assert infos == [{"packed": True}, {"packed": True}]


@pytest.mark.parametrize(
    ("fail_at", "phase", "timeout", "setting", "halfway"),
    [
        (JoinWorld, "init", "10", "deadlines.start_s=20", False),
        (StartUpdate, "start", "23", "deadlines.sync_s=6", True),
        (ReceiveWeights, "update", "3", "deadlines.sync_s=6", True),
        (FinishUpdate, "finish", "3", "deadlines.sync_s=6", True),
    ],
)
def test_a_generator_that_hangs_is_named_with_phase_and_setting(
    fail_at: type, phase: str, timeout: str, setting: str, halfway: bool
) -> None:
    generators = Generators(fail_at=fail_at, failures={"generator-1": None})
    sender = Sender(generators)
    with pytest.raises(TransferStopped, match=f"version 7 by nccl, phase '{phase}' failed at generator-1"):
        sender.send()
    delivery = sender.client.delivery
    error = delivery.failures["generator-1"]
    assert isinstance(error, DeadlineExceeded)
    assert str(error) == (
        f"weights version 7 by nccl, phase '{phase}': generator-1 took longer than {timeout} s; give it longer with "
        f"--set {setting}"
    )
    assert (delivery.halfway, sender.num_freed) == (halfway, 1)
    assert isinstance(generators.asked[-1][1], fail_at)  # nothing was asked afterwards


def test_a_death_is_passed_on_as_it_is() -> None:
    died = ActorDied("generator-0 died")
    sender = Sender(Generators(fail_at=ReceiveWeights, failures={"generator-0": died}))
    with pytest.raises(TransferStopped):
        sender.send()
    assert sender.client.delivery.failures == {"generator-0": died}


def test_a_sender_that_must_go_through_its_round_is_not_stopped() -> None:
    generators = Generators(fail_at=StartUpdate, failures={"generator-1": None})
    sender = Sender(generators, raises=False)
    sender.send()
    assert list(sender.client.delivery.failures) == ["generator-1"]
    assert isinstance(generators.asked[-1][1], StartUpdate)


def test_the_next_transfer_begins_without_the_failures_of_the_last() -> None:
    sender = Sender(Generators(fail_at=JoinWorld, failures={"generator-1": None}), raises=False)
    sender.send()
    sender.client.aim(TransferWorld(generation=5, members=MEMBERS[:1]), policy_version=8, checksum=str)
    assert not sender.client.delivery.failures
    assert not sender.client.delivery.halfway
