"""A reward of your own: a function of (prompt, completion), named in the config, run in the sandboxed reward actors.

This one adds a small bonus for short answers to Math-Verify's verdict:

    cd examples && gvm-ray train ../configs/quickstart.toml --set name=custom-reward \
        --set 'rewards.terms=[{type="math_verify"}, {type="function", path="custom_reward:brevity", weight=0.1}]'
"""

from gvm_ray.types import Completion, Prompt


def brevity(prompt: Prompt, completion: Completion) -> float:
    """1 for an empty response, falling to 0 at 24 tokens."""
    return max(0.0, 1.0 - len(completion.token_ids) / 24)
