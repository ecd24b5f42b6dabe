"""Several turns: whoever answers wrongly reads the problem once more and may answer again.

An environment is a function of the prompt and of what the policy wrote in its turns so far. It returns what the policy
reads next, or None where the response is over and is scored:

    cd examples && gvm-ray train ../configs/quickstart.toml --set name=multi-turn \
        --set 'environment={type="function", path="multi_turn:second_chance", max_turns=2}' --set sampling.max_tokens=48

The policy is trained on what it wrote itself, in both turns; what the environment wrote it only reads.
"""

from collections.abc import Sequence

from gvm_ray.types import Prompt


def second_chance(prompt: Prompt, turns: Sequence[str]) -> str | None:
    """The problem again, until the boxed answer is right."""
    return None if f"\\boxed{{{prompt.answer}}}" in turns[-1] else prompt.text
