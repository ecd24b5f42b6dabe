"""Rewards that do what the response says, for tests of the sandbox; light, because the sandbox's process imports it."""

import os
import subprocess
import time

from gvm_ray.types import Completion, Prompt


def faulty(prompt: Prompt, completion: Completion) -> float:
    """The length of the response, unless the response asks for a fault."""
    match completion.text:
        case "hang":
            time.sleep(60)
        case "hang in C":
            return float(10 ** (10**10))
        case "hog":
            return float(len(bytearray(2**40)))
        case "exit":
            os._exit(3)
        case "raise":
            raise RuntimeError("a fault")
        case "quit":
            raise SystemExit(0)
        case "nan":
            return float("nan")
        case "process":
            return float(subprocess.Popen(["sleep", "600"]).pid)
        case "pid":
            return float(os.getpid())
        case "parent":
            return float(os.getppid())
    return float(len(completion.text))


def raises_on_evaluation(prompt: Prompt, completion: Completion) -> float:
    """0; of a prompt whose answer is `eval` an error."""
    if prompt.answer == "eval":
        raise RuntimeError("a fault")
    return 0.0


def slow(prompt: Prompt, completion: Completion) -> float:
    """0, after a minute."""
    time.sleep(60)
    return 0.0
