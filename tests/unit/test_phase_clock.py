"""Wall time by phase, on a clock that the test sets."""

from pathlib import Path

import pytest
from tiny_runs import tiny_config

from gvm_ray.phase_clock import PHASES, PhaseClock
from gvm_ray.reporting import REQUIRED_KEYS, Reporter, read_rows


class Hand:
    """A clock that stands still until it is moved."""

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


def test_every_row_has_the_phases_since_the_step_before(tmp_path: Path) -> None:
    hand = Hand()
    clock = PhaseClock(hand)
    config = tiny_config(tmp_path, reporting__tensorboard=False)
    with Reporter(config, tmp_path, phases=clock) as reporter:
        for step, seconds in enumerate((2.0, 3.0)):
            with clock.phase("update"):
                hand.now += seconds
            reporter.log_step(step, dict.fromkeys(REQUIRED_KEYS, 1.0))
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["time/update_s"] for row in rows] == [2.0, 3.0]
    assert [row["time/idle_s"] for row in rows] == [0.0, 0.0]
