"""Prompts of your own: a function that returns rows, called once where the run starts, named in the config.

This one makes problems of two numbers; one that reads a database or a dataset of the `datasets` library looks no
different:

    cd examples && gvm-ray train ../configs/quickstart.toml --set name=custom-source --set warm_start=none \
        --set 'prompts.train={type="function", path="custom_source:sums", parameters={size=500}}'

The rows have no rationales, so there is no warm start, and the new model solves nothing: look at its prompts in
runs/custom-source/samples.jsonl, and give [model] one that can add.
"""

import random
from collections.abc import Iterator


def sums(*, size: int, seed: int = 0) -> Iterator[dict[str, object]]:
    """Rows with a problem and an answer, as a JSONL file would have them, and the level for `feature_fields`."""
    draw = random.Random(seed)
    for _ in range(size):
        a, b = draw.randrange(10), draw.randrange(10)
        yield {"problem": f"{a}+{b}=", "answer": (a + b) % 7, "level": "easy" if a + b < 7 else "hard"}
