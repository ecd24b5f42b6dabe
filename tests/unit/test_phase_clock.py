"""Wall time by phase, on a clock that the test sets."""

import pytest

from gvm_ray.phase_clock import PHASES, PhaseClock


class Hand:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_overlapping_work_counts_for_each_phase_and_idle_for_none() -> None:
    hand = Hand()
    clock = PhaseClock(hand)
    hand.now += 1  # idle
    with clock.phase("sampling"):
        hand.now += 2
        with clock.phase("update"), clock.phase("sampling"):
            hand.now += 3  # two of one phase count once
        hand.now += 4
    hand.now += 5  # idle
    assert clock.seconds() == {**dict.fromkeys(PHASES, 0.0), "sampling": 9.0, "update": 3.0, "idle": 6.0}
    assert clock.elapsed == 15.0


def test_work_under_way_counts_up_to_now_and_goes_on_after_a_restart() -> None:
    hand = Hand()
    clock = PhaseClock(hand)
    with clock.phase("sync"):
        hand.now += 2
        assert clock.seconds()["sync"] == 2.0
        clock.restart()
        hand.now += 3
        assert clock.seconds()["sync"] == 3.0
    assert clock.elapsed == 3.0


def test_work_that_fails_has_ended() -> None:
    hand = Hand()
    clock = PhaseClock(hand)
    with pytest.raises(RuntimeError), clock.phase("reward"):
        raise RuntimeError
    hand.now += 1
    assert clock.seconds()["idle"] == 1.0


def test_an_unknown_phase_is_refused() -> None:
    with pytest.raises(KeyError), PhaseClock().phase("lunch"):
        pass
