"""Lines of progress: told by time, with what is left."""

from gvm_ray.reporting.progress import ProgressLines


class Hand:
    """A clock that is moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_is_told_by_time_with_what_is_left() -> None:
    clock, said = Hand(), list[str]()
    lines = ProgressLines("warm start", 60, say=said.append, every_s=10.0, clock=clock)
    for done, now in ((1, 4.0), (2, 9.0), (3, 12.0), (4, 16.0), (6, 24.0), (60, 240.0)):
        clock.now = now
        lines.at(done, note=f"loss {done}")
    # 12 s for 3, so 4 s for each of 57; 24 s for 6, so 4 s for each of 54; of the end another one speaks.
    assert said == ["warm start 3/60  loss 3  about 3.8 min left", "warm start 6/60  loss 6  about 3.6 min left"]
    clock.now = 250.0
    lines.at(0)  # it was begun again
    clock.now = 280.0
    lines.at(10)
    assert said[2:] == ["warm start 0/60", "warm start 10/60  about 2.5 min left"]


def test_progress_without_a_known_end_says_how_far_it_is() -> None:
    clock, said = Hand(), list[str]()
    lines = ProgressLines("read, rows", None, say=said.append, every_s=10.0, clock=clock)
    clock.now = 9.0
    lines.add(500)
    clock.now = 11.0
    lines.add(700)
    assert said == ["read, rows 1,200"]
