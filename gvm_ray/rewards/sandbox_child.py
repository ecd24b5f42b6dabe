"""The sandbox's child process. Its five arguments are two descriptors, MEMORY_MB, PARENT and NETWORK, all numbers.

It reads pickles from one socket: first the function that makes the environment, then batches of (prompt, completion),
each of these pickled separately. On the other socket it answers every response with one packet, so that the parent can
see at which response it hangs.
"""

import math
import os
import pickle
import socket
import sys
import traceback
from typing import Any, BinaryIO

from gvm_ray.exceptions import UserError
from gvm_ray.rewards.sandbox_limits import close_network, limit_resources, limit_writing
from gvm_ray.rewards.sandbox_messages import Observed, Result, Scored, Started, Unscored, encode, printable
from gvm_ray.types import Completion, Prompt


def main() -> None:
    """Serve until the parent closes the sockets or dies."""
    requests_fd, results_fd, memory_mb, parent, network = map(int, sys.argv[1:])
    if not network:
        close_network()
    limit_resources(memory_mb=memory_mb, parent=parent)
    for descriptor in (requests_fd, results_fd):
        os.set_inheritable(descriptor, False)  # processes started by a reward would keep them open
    requests = socket.socket(fileno=requests_fd).makefile("rb")
    results = socket.socket(fileno=results_fd)
    env, started = _make_env(requests)
    results.send(encode(started))
    if not started.failure:
        _serve(env, requests, results)


def _make_env(requests: BinaryIO) -> tuple[Any, Started]:
    """The environment, or None if that failed, and the report to the parent."""
    try:
        env = pickle.load(requests)()
    except EOFError:  # the parent is gone
        sys.exit(1)
    except UserError as error:
        return None, Started(failure="user", detail=printable(str(error)))
    except Exception as error:  # a user's module may raise anything; the parent reports it
        detail = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-10)}"
        return None, Started(failure="system", detail=printable(detail))
    limit_writing()  # not earlier: a library may fill its cache while it is imported
    return env, Started()


def _serve(env: Any, requests: BinaryIO, results: socket.socket) -> None:
    process = os.getpid()
    while True:
        try:
            batch = pickle.load(requests)
        except (EOFError, ConnectionError):
            return
        for request in batch:
            result = _score(env, *pickle.loads(request))
            if os.getpid() != process:  # a fork made by the reward returned here; only its parent answers
                os._exit(0)
            results.send(encode(result))


def _score(env: Any, prompt: Prompt, completion: Completion) -> Result:
    try:
        env.reset(options={"prompt": prompt})
        observation, reward, terminated, truncated, info = env.step(completion)
        if not (terminated or truncated):
            return Observed(observation=observation.encode(errors="replace").decode())
        reward = float(reward)
        terms = {printable(str(name)): float(value) for name, value in info.get("reward_terms", {}).items()}
        unscored = info.get("unscored")
    except MemoryError:
        return Unscored(reason="memory", detail=_of(prompt))
    except (Exception, SystemExit) as error:  # a faulty reward costs one sample, not the run
        return Unscored(reason="error", detail=_of(prompt, "".join(traceback.format_exception(error, limit=-5))))
    if unscored:
        return Unscored(reason="error", detail=_of(prompt, unscored if isinstance(unscored, str) else "no reward"))
    if not all(math.isfinite(value) for value in (reward, *terms.values())):
        return Unscored(reason="error", detail=_of(prompt, f"reward {reward} of terms {terms}"))
    return Scored(reward=reward, terms=terms)


def _of(prompt: Prompt, detail: str = "") -> str:
    return printable(f"prompt {prompt.prompt_id!r}: {detail}")


if __name__ == "__main__":
    main()
