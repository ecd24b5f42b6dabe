"""Findings of the doctor: one line of text each, which can be pasted into an issue."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gvm_ray.rewards.sandbox_child import without_secrets

State = Literal["right", "WRONG", "not applicable"]

_MIN_SECRET = 6  # characters; a shorter value would hide words that have nothing to do with it
_MAX_TEXT = 600  # characters of an error


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check."""

    subject: str
    state: State
    text: str  # what was found; if wrong, with the remedy; if not applicable, with the reason

    def line(self) -> str:
        """The finding on one line, without line breaks, the home folder's path, or secrets of the environment."""
        return f"{self.state:<14}  {self.subject:<22}  {printable(self.text)}"


Check = Callable[[], Iterable[Finding]]


def right(subject: str, text: str) -> Finding:
    """A finding that asks for nothing."""
    return Finding(subject=subject, state="right", text=text)


def wrong(subject: str, text: str, *, remedy: str) -> Finding:
    """A finding that needs mending."""
    return Finding(subject=subject, state="WRONG", text=f"{text}; {remedy}")


def not_applicable(subject: str, reason: str) -> Finding:
    """A check that says nothing about this machine."""
    return Finding(subject=subject, state="not applicable", text=reason)


def examine(checks: Mapping[str, Check]) -> Iterator[Finding]:
    """Yield the findings of the checks in order. A check that raises is a finding too, and the others still run.

    Args:
        checks: by the subject under which an error is reported.
    """
    for subject, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # whatever is broken here: to find it is the purpose
            yield failed(subject, error)


def failed(subject: str, error: BaseException) -> Finding:
    """The finding of a check that raised."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = f"{type(error).__name__}: {error}"
    return Finding(subject=subject, state="WRONG", text=text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} ...")


def printable(text: str, *, environment: Mapping[str, str] = os.environ) -> str:
    """The text on one line, with ~ for the home folder and *** for values of variables that look like secrets."""
    public = without_secrets(environment)
    for name in environment.keys() - public.keys():
        if len(environment[name]) >= _MIN_SECRET:
            text = text.replace(environment[name], "***")
    home = str(Path(environment.get("HOME") or "~").expanduser())
    if home.count("/") > 1 or home == "/root":  # not "/", where everything is
        text = text.replace(home, "~")
    return " ".join(text.split())
