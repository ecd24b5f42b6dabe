"""The process in which a sandbox scores; started as `python -m gvm_ray.rewards.sandbox_child FD MEMORY_MB PARENT`.

It reads pickled batches of (prompt, completion) from the inherited socket and writes one result at a time, so that the
parent can see which response it hangs on.
"""

import ctypes
import math
import os
import pickle
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from gvm_ray.exceptions import UserError
from gvm_ray.rewards.sandbox import Scored, StartFailure, Unscored
from gvm_ray.types import Completion, Prompt

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Serve until the parent closes the socket or dies."""
    descriptor, memory_mb, parent = map(int, sys.argv[1:])
    _limit(memory_mb=memory_mb, parent=parent)
    connection = Connection(descriptor)
    try:
        env = pickle.loads(connection.recv())()
    except EOFError:
        return
    except UserError as error:
        connection.send(StartFailure(error=error))
        return
    except Exception as error:  # anything can go wrong in a user's module; the parent tells the user
        connection.send(StartFailure(error=RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")))
        return
    connection.send("ready")
    while True:
        try:
            items = connection.recv()
        except (EOFError, ConnectionError):
            return
        for prompt, completion in items:
            connection.send(_score(env, prompt, completion))


def _limit(*, memory_mb: int, parent: int) -> None:
    """Die with the parent, leave no core files, get no more than so much address space."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request
        sys.exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20, memory_mb * 2**20))


def _score(env: Any, prompt: Prompt, completion: Completion) -> Scored | Unscored:
    try:
        env.reset(options={"prompt": prompt})
        _, reward, _, _, info = env.step(completion)
        reward = float(reward)
        terms = {str(name): float(value) for name, value in info.get("reward_terms", {}).items()}
    except MemoryError:
        return Unscored(reason="memory", detail=f"prompt {prompt.prompt_id!r}")
    except (Exception, SystemExit) as error:  # the boundary at which a faulty reward costs one sample, not the run
        detail = "".join(traceback.format_exception(error, limit=-5))
        return Unscored(reason="error", detail=f"prompt {prompt.prompt_id!r}: {detail}")
    if info.get("unscored") or not math.isfinite(reward):
        detail = info.get("unscored") if isinstance(info.get("unscored"), str) else f"reward {reward}"
        return Unscored(reason="error", detail=f"prompt {prompt.prompt_id!r}: {detail}")
    return Scored(reward=reward, terms=terms)


if __name__ == "__main__":
    main()
