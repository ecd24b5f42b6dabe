"""Trial of a reward process on this machine: a reward that hangs is killed in time. Light: that process imports it."""

import time
from collections.abc import Iterator

import numpy as np

from gvm_ray.actors.reward_env import make_reward_sandbox
from gvm_ray.config.rewards import RewardsConfig
from gvm_ray.lab.doctor.findings import Finding, right, wrong
from gvm_ray.rewards.sandbox import Result, Scored, Unscored
from gvm_ray.types import Completion, Prompt

_SUBJECT = "reward process"
_LIMIT_S = 2.0
_HANG, _FINE = "hang", "fine"


def hangs_on_request(prompt: Prompt, completion: Completion) -> float:
    """A reward of 1, or an endless loop if the response asks for it."""
    while completion.text == _HANG:
        pass
    return 1.0


def check_rewards(*, timeout_s: float = _LIMIT_S) -> Iterator[Finding]:
    """Score a response whose reward never returns, then one whose reward does."""
    term = {"type": "function", "path": f"{__name__}:{hangs_on_request.__name__}"}
    config = RewardsConfig.model_validate({"terms": [term], "timeout_s": timeout_s})
    sandbox = make_reward_sandbox(config, max_tokens=8)
    prompt = Prompt(prompt_id="doctor", text="", token_ids=np.zeros(0, dtype=np.int32), answer="")
    try:
        sandbox.start()
        began = time.monotonic()
        hung, scored = sandbox.score([(prompt, _response(text)) for text in (_HANG, _FINE)])
        yield judge_rewards(hung, scored, timeout_s=timeout_s, took_s=time.monotonic() - began)
    finally:
        sandbox.close()


def judge_rewards(hung: Result, scored: Result, *, timeout_s: float, took_s: float) -> Finding:
    """The finding from the results of a response whose reward hangs, and of the next one."""
    if not (isinstance(hung, Unscored) and hung.reason == "timeout"):
        return wrong(_SUBJECT, f"a reward that hangs ended as {hung}", remedy="please report this line")
    if not isinstance(scored, Scored):
        return wrong(_SUBJECT, f"after a kill the next response ended as {scored}", remedy="please report this line")
    text = f"a reward that hung was killed after {timeout_s:g} s, and the next was scored ({took_s:.1f} s in all)"
    return right(_SUBJECT, text)


def _response(text: str) -> Completion:
    return Completion(
        token_ids=np.zeros(1, dtype=np.int32),
        logprobs=np.zeros(1, dtype=np.float32),
        policy_versions=np.zeros(1, dtype=np.int32),
        finish_reason="stop",
        text=text,
    )
