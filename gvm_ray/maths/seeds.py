"""Seeds of single samples, so that what is sampled doesn't depend on which generator serves it or in which batch."""

import hashlib


def sample_seed(run_seed: int, *, step: int, prompt_id: str, sample_index: int) -> int:
    """A seed in [0, 2**63), the same on every machine and Python version; unrelated for any two different arguments."""
    return _seed(f"{run_seed}\0{step}\0{sample_index}\0{prompt_id}")


def turn_seed(seed: int, *, turn: int) -> int:
    """The seed in [0, 2**63) of a sample's turn, of which the first one has the sample's own."""
    return _seed(f"{seed}\0{turn}") if turn else seed


def _seed(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
