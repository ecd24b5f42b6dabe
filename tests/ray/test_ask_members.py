"""What the sender asks of generator actors: answers, deaths, errors and silence."""

import os
import time

import pytest
import ray

from gvm_ray.actors.weight_sync import ask_members, fetch, free_endpoint
from gvm_ray.exceptions import ActorDied, ObjectsLost, TransferBroken
from gvm_ray.types import JoinWorld, LiveWeights, TransferMember, WeightsRef

pytestmark = pytest.mark.ray

PHASE = JoinWorld(generation=1, init_info={})


@ray.remote(num_cpus=0)
class Member:
    """Answers as told."""

    def __init__(self, behaviour: str) -> None:
        self._behaviour = behaviour

    def transfer(self, phase: JoinWorld) -> None:
        assert phase.generation == 1
        match self._behaviour:
            case "dies":
                os._exit(1)
            case "hangs":
                time.sleep(60)
            case "breaks":
                raise TransferBroken("half of it")


def member(behaviour: str) -> TransferMember:
    return TransferMember(name=behaviour, actor=Member.remote(behaviour), num_workers=1)


def test_members_answer_or_are_named_with_what_they_failed_with(ray_cluster: None) -> None:
    works, works_too = member("works"), member("works too")
    assert ask_members([(works, PHASE), (works_too, PHASE)], 60) == {}
    (death,) = ask_members([(works, PHASE), (member("dies"), PHASE)], 60).items()
    assert death[0] == "dies"
    assert isinstance(death[1], ActorDied)
    (half,) = ask_members([(member("breaks"), PHASE), (member("hangs"), PHASE)], 30).items()  # without waiting for both
    assert half[0] == "breaks"
    assert isinstance(half[1], TransferBroken)
    assert ask_members([(works, PHASE), (member("hangs"), PHASE)], 1) == {"hangs": None}


def test_sent_weights_can_be_fetched_only_where_they_were_stored_as_well(ray_cluster: None) -> None:
    weights = WeightsRef(policy_version=3, location=LiveWeights(transfer="nccl"))
    with pytest.raises(ObjectsLost, match="weights version 3 were sent by nccl and not stored"):
        next(fetch(weights))


def test_an_endpoint_is_an_address_of_this_node_with_a_port(ray_cluster: None) -> None:
    address, port = free_endpoint()
    assert address == ray.util.get_node_ip_address()
    assert 1024 < port < 65536
