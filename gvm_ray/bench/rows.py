"""The one form of every figure: a value beside its floor, so that a number from another machine can be judged."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One measured figure beside its floor or bound, both of one process."""

    name: str  # what was measured, e.g. "learner update"
    value: float
    unit: str  # "tokens/s", "s", "MB/s" ...
    floor: float | None  # the same by the bare way; None where there is none
    floor_name: str  # what the bare way is: "bare PyTorch loop"
    higher_is_better: bool = True

    @property
    def ratio(self) -> float | None:
        """value / floor, or floor / value where lower is better: 1 is as good as the floor, more is better."""
        if self.floor is None:
            return None
        better, worse = (self.value, self.floor) if self.higher_is_better else (self.floor, self.value)
        return better / worse if worse else None
