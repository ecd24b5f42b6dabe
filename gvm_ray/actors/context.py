"""Deadlines, failure log, threads, clock and namespace that the parts of one running system share."""

from dataclasses import dataclass, field

from gvm_ray.actors.cluster import namespace_of
from gvm_ray.config import RunConfig
from gvm_ray.config.run import DeadlineConfig
from gvm_ray.failure_log import FailureLog
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.resources import Threads


@dataclass(frozen=True, kw_only=True, eq=False)
class RunContext:
    """Shared context of a run's actor clients."""

    deadlines: DeadlineConfig
    failures: FailureLog  # records each failure before recovery begins
    clock: PhaseClock = field(default_factory=PhaseClock)
    namespace: str = "gvm_ray"  # Ray namespace; keeps actor names apart from those of other runs
    threads: Threads = field(default_factory=Threads)  # a replaced actor's successor has as many as it had

    @classmethod
    def of(
        cls,
        config: RunConfig,
        *,
        threads: Threads | None = None,
        failures: FailureLog | None = None,
        clock: PhaseClock | None = None,
    ) -> "RunContext":
        """The context of a run; by default with one thread an actor, a new failure log and a new clock."""
        return cls(
            deadlines=config.deadlines,
            failures=failures or FailureLog(config.faults),
            clock=clock or PhaseClock(),
            namespace=namespace_of(config),
            threads=threads or Threads(),
        )
