"""Waiting for an actor, always with a deadline. Errors say what was waited for and which actor failed."""

import asyncio
import re
from collections.abc import Awaitable
from typing import Any, TypeVar

from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

from gvm_ray.exceptions import ActorDied, ActorFailure, DeadlineExceeded, ObjectsLost, SystemFailure, UserError

T = TypeVar("T")


async def wait_for(awaitable: Awaitable[T], *, timeout_s: float, what: str, setting: str) -> T:
    """The result of an object ref or coroutine, within `timeout_s` seconds.

    Args:
        awaitable: the object ref or coroutine.
        timeout_s: the deadline, in seconds.
        what: names the work in error messages, e.g. "scoring 64 samples".
        setting: the setting that extends the deadline, e.g. "deadlines.sample_s".

    Raises:
        DeadlineExceeded: the time is up. The wait ends; the work itself isn't stopped.
        UserError, SystemFailure: raised by the work, passed on unchanged.
        ActorDied: an actor died; the message names it, its node and the cause of death.
        ObjectsLost: an object that the work needs is gone.
        ActorFailure: the work raised something else.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if not done:
            raise DeadlineExceeded(
                f"{what} took longer than {timeout_s:g} s; give it longer with --set {setting}={2 * timeout_s:g}"
            )
        return task.result()
    except RayError as error:
        raise failure_of(error, what) from None
    finally:
        task.cancel()
        task.add_done_callback(_seen)


def _seen(task: asyncio.Future[Any]) -> None:
    """Retrieve the task's exception. Otherwise asyncio would log, below the user's error, that nobody did."""
    if not task.cancelled():
        task.exception()


def failure_of(error: RayError, what: str) -> UserError | SystemFailure:
    """Translate a Ray error: into the work's own error, or an ActorFailure that says what failed."""
    origin: BaseException = error
    while isinstance(origin, RayTaskError) and isinstance(origin.cause, BaseException):
        origin = origin.cause  # an error in an argument's task comes wrapped once more
    if isinstance(origin, UserError | SystemFailure):
        return origin
    if isinstance(origin, RayActorError):
        died = ActorDied(f"{what} failed: {_death(origin)}")
        died.actor_id = origin.actor_id or ""
        return died
    if isinstance(origin, ObjectLostError):
        return ObjectsLost(f"{what} failed: {str(origin).splitlines()[0]}")
    text = re.sub(r"\x1b\[\d+m", "", str(error))
    return ActorFailure(f"{what} failed: {type(origin).__name__}: {origin}\n{text}")


def _death(error: RayActorError) -> str:
    """Name, node and cause of an actor's death, parsed from the lines of Ray's message."""
    fields = dict(re.findall(r"^\t(\w+): (.*)$", error.error_msg, re.MULTILINE))
    if not fields:
        return f"actor {error.actor_id or 'of unknown id'}: {error.error_msg}"
    cause = "\n".join(line for line in error.error_msg.splitlines()[1:] if not line.startswith("\t"))
    name = fields.get("name") or f"{fields.get('class_name', 'of unknown name')} {error.actor_id}"
    return f"actor {name} on node {fields.get('ip', 'unknown')} (process {fields.get('pid', 'unknown')}) died: {cause}"
