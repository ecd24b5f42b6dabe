"""The processes of Ray's actors, found by the names that Ray gives them."""

import os

import psutil


def command_of(process: psutil.Process) -> str:
    """Its command line; empty where it ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def processes_named(name: str, *, of: int | None = None) -> list[psutil.Process]:
    """The descendants of a process, or else of this one, whose command begins so, such as "ray::TrainController"."""
    family = psutil.Process(os.getpid() if of is None else of).children(recursive=True)
    return [process for process in family if command_of(process).startswith(name)]
