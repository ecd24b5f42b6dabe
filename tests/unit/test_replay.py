"""A part that is replaced knows what its predecessor knew; what it can't do at all ends the run."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gvm_ray.actors.recovery import Replayed
from gvm_ray.config.run import FaultsConfig
from gvm_ray.exceptions import ActorDied, ActorFailure, ConfigError, DeadlineExceeded, TooManyFailures
from gvm_ray.failure_log import FailureLog


class Sum:
    """Adds; dies where it is told to, before or after it has added."""

    def __init__(self, plan: "Plan") -> None:
        self.plan = plan
        self.total = 0
        self.added: list[int] = []

    async def add(self, number: int) -> int:
        await self.plan.raise_due("before")
        self.total += number
        self.added.append(number)
        await self.plan.raise_due("after")
        return self.total


class Plan:
    """Errors to raise, in order of calls; None where there is none."""

    def __init__(self, *errors: tuple[str, BaseException] | None) -> None:
        self.errors = list(errors)
        self.ended = 0
        self.started = 0

    async def raise_due(self, when: str) -> None:
        """Raise the next error if it is due at this point; a call that ends well uses up a None."""
        await asyncio.sleep(0)
        due = self.errors[0] if self.errors else None
        if due is not None and due[0] == when:
            raise self.errors.pop(0)[1]
        if due is None and when == "after" and self.errors:
            self.errors.pop(0)


def replayed(plan: Plan, *, max_failures: int = 20) -> Replayed[Sum]:
    async def replace(old: Sum) -> Sum:
        plan.ended += 1
        return Sum(plan)

    async def start(new: Sum) -> None:
        plan.started += 1
        await plan.raise_due("start")

    failures = FailureLog(FaultsConfig(max_failures=max_failures))
    return Replayed(Sum(plan), name="sum", replace=replace, start=start, failures=failures)


def add(number: int) -> Callable[[Sum], Awaitable[int]]:
    return lambda part: part.add(number)


def do_all(part: Replayed[Sum], *numbers: int) -> list[int]:
    async def go() -> list[int]:
        return [await part.do(add(number), changes_state=True) for number in numbers]

    return asyncio.run(go())


DIED, HUNG = ActorDied("gone"), DeadlineExceeded("too long")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [DIED, HUNG])
def test_a_replacement_does_again_what_was_done(when: str, error: BaseException) -> None:
    plan = Plan(None, None, (when, error))
    part = replayed(plan)
    assert do_all(part, 1, 10, 100, 1000) == [1, 11, 111, 1111]
    assert part.part.added == [1, 10, 100, 1000]
    assert (plan.ended, plan.started) == (1, 1)


def test_deaths_while_it_starts_and_while_it_replays() -> None:
    plan = Plan(None, None, ("before", DIED), ("start", DIED), ("after", HUNG))
    part = replayed(plan)
    assert do_all(part, 1, 10, 100) == [1, 11, 111]
    assert part.part.added == [1, 10, 100]
    assert plan.ended == 3


def test_what_left_no_trace_is_not_done_again() -> None:
    plan = Plan()
    part = replayed(plan)

    async def go() -> None:
        assert await part.do(add(5), changes_state=False) == 5
        plan.errors = [("before", DIED)]
        assert await part.do(add(7), changes_state=True) == 7

    asyncio.run(go())


def test_commands_before_a_checkpoint_are_dropped_but_those_of_open_steps() -> None:
    plan = Plan()
    part = replayed(plan)

    async def go() -> None:
        for step, number in enumerate((1, 10, 100)):
            await part.do(add(number), changes_state=True, step=step)
        part.restart_journal(add(11), open_steps={2})
        plan.errors = [("before", DIED)]
        assert await part.do(add(1000), changes_state=True) == 1111

    asyncio.run(go())
    assert part.part.added == [11, 100, 1000]


def test_commands_under_way_together_make_one_replacement_and_none_is_lost() -> None:
    class Part:
        def __init__(self) -> None:
            self.dead = False
            self.added: list[int] = []

        async def add(self, number: int) -> None:
            self.added.append(number)
            await asyncio.sleep(0.01 * number)
            if self.dead:
                raise ActorDied("gone")

    parts = [Part()]

    async def replace(old: Part) -> Part:
        await asyncio.sleep(0.02)  # the slower commands end meanwhile, with no error for the slowest
        old.dead = False
        parts.append(Part())
        return parts[-1]

    async def start(new: Part) -> None: ...

    async def go() -> list[int]:
        both = Replayed(
            parts[0], name="part", replace=replace, start=start, failures=FailureLog(FaultsConfig(max_failures=1))
        )
        parts[0].dead = True
        await asyncio.gather(*(both.do(lambda part, n=n: part.add(n), changes_state=True) for n in (1, 2, 9)))
        return both.part.added

    assert sorted(asyncio.run(go())) == [1, 2, 9]
    assert len(parts) == 2


def test_an_error_of_the_command_itself_is_raised_the_second_time() -> None:
    broken = ActorFailure("division by zero")
    plan = Plan(None, ("before", broken), None, ("before", broken))
    with pytest.raises(ActorFailure, match="division by zero"):
        do_all(replayed(plan), 1, 10)
    assert plan.ended == 1
    plan = Plan(("before", ConfigError("wrong setting")))
    with pytest.raises(ConfigError, match="wrong setting"):
        do_all(replayed(plan), 1)
    assert plan.ended == 0


def test_too_many_failures_end_the_run() -> None:
    with pytest.raises(TooManyFailures, match=r"4 failures .* faults.max_failures=3: sum 4 times; the last one: gone"):
        do_all(replayed(Plan(*[("before", DIED)] * 9), max_failures=3), 1)


def test_failures_count_within_their_window_only() -> None:
    times = iter((0.0, 5.0, 11.0, 16.0, 17.0))
    log = FailureLog(FaultsConfig(max_failures=2, window_s=10), clock=lambda: next(times))
    for _ in range(4):
        log.record("reward-0", "gone")
    assert log.metrics == {"faults/total": 4}
    assert log.counts == {"reward-0": 4}
    with pytest.raises(TooManyFailures, match="3 failures within 10 s"):
        log.record("reward-1", "gone")
    with pytest.raises(TooManyFailures):
        FailureLog(FaultsConfig(max_failures=0)).record("allocator", "gone")
