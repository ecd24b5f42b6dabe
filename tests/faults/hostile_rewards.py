"""A reward that does what the response says, for tests of what a reward process may do; light, for speed."""

import contextlib
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from gvm_ray.types import Completion, Prompt

GARBAGE: dict[str, Any] = {
    "none": None,
    "string": "1.0",
    "bytes": b"1",
    "nan": float("nan"),
    "inf": float("inf"),
    "tuple": (1.0,),
    "huge int": 10**400,
    "complex": 1j,
    "class": float,
}


def hostile(prompt: Prompt, completion: Completion) -> Any:
    """What the response's first word asks for, with the rest as its argument; the length of any other response."""
    word, _, rest = completion.text.partition(":")
    if word == "return":
        return GARBAGE[rest]
    return ACTIONS[word](rest) if word in ACTIONS else float(len(completion.text))


def hang(_: str) -> float:
    time.sleep(60)
    return 0.0


def swallow_and_hang(_: str) -> float:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)


def eat_memory(_: str) -> float:
    eaten = []
    while True:
        eaten.append(bytes(2**24))


def recurse(_: str) -> float:
    return recurse(_)


def signal_itself(name: str) -> float:
    os.kill(os.getpid(), signal.Signals[name])
    time.sleep(60)
    return 0.0


def fork(_: str) -> float:
    """1, in both processes: the child comes back into the loop that called the reward."""
    os.fork()
    return 1.0


def fork_and_exit(_: str) -> float:
    for _ in range(20):
        if os.fork() == 0:
            time.sleep(600)
    os._exit(3)


def write(num_bytes: str) -> float:
    with tempfile.TemporaryFile() as file:
        return float(file.write(bytes(int(num_bytes))))


def open_many(_: str) -> float:
    with contextlib.ExitStack() as stack:
        return float(len([stack.enter_context(open(os.devnull, "rb")) for _ in range(5000)]))


def raise_limits(_: str) -> float:
    """1 if memory can be had without bound again."""
    resource.setrlimit(resource.RLIMIT_AS, (2**50, 2**50))
    return 1.0


def print_forever(_: str) -> float:
    while True:
        print("x" * 2**20)
        print("x" * 2**20, file=sys.stderr)


def raise_long(length: str) -> float:
    raise RuntimeError("\x1b[2J\ud800" + "e" * int(length) + "the end")


def connect(port: str) -> float:
    with socket.create_connection(("127.0.0.1", int(port)), timeout=5):
        return 1.0


def variable(name: str) -> float:
    """Whether there is an environment variable of this name."""
    return float(name in os.environ)


def parents_environment(_: str) -> float:
    """The length of the parent's environment, as the kernel tells it."""
    with open(f"/proc/{os.getppid()}/environ", "rb") as file:
        return float(len(file.read()))


def send(packet: str) -> float:
    """Write bytes to the parent in place of a result, as code that took over the process could."""
    os.write(int(sys.argv[2]), bytes.fromhex(packet))
    time.sleep(60)
    return 0.0


ACTIONS: dict[str, Callable[[str], Any]] = {
    action.__name__: action
    for action in (
        hang,
        swallow_and_hang,
        eat_memory,
        recurse,
        signal_itself,
        fork,
        fork_and_exit,
        write,
        open_many,
        raise_limits,
        print_forever,
        raise_long,
        connect,
        variable,
        parents_environment,
        send,
    )
} | {"exit": lambda code: os._exit(int(code))}
