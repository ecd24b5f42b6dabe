"""Deadlines, failures, times and namespace: what the parts of one running system share."""

from dataclasses import dataclass, field

from gvm_ray.actors.cluster import namespace_of
from gvm_ray.config import RunConfig
from gvm_ray.config.run import DeadlineConfig
from gvm_ray.failure_log import FailureLog
from gvm_ray.phase_clock import PhaseClock


@dataclass(frozen=True, kw_only=True, eq=False)
class RunContext:
    """The context that a run's clients of actors are made with."""

    deadlines: DeadlineConfig
    failures: FailureLog  # counts each failure before the recovery from it
    clock: PhaseClock = field(default_factory=PhaseClock)
    namespace: str = "gvm_ray"  # Ray's, of actors whose names must not meet those of other runs

    @classmethod
    def of(
        cls, config: RunConfig, *, failures: FailureLog | None = None, clock: PhaseClock | None = None
    ) -> "RunContext":
        """The context of a run, with a failure log and a clock of its own where none is given."""
        return cls(
            deadlines=config.deadlines,
            failures=failures or FailureLog(config.faults),
            clock=clock or PhaseClock(),
            namespace=namespace_of(config),
        )
