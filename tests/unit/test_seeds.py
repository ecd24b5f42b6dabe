"""Seeds of single samples: stable over machines, distinct over samples."""

from gvm_ray.types import sample_seed


def test_a_seed_is_the_same_on_every_machine() -> None:
    # printf '0\\0000\\0000\\000p' | b2sum --length 64, shifted right by one bit
    assert sample_seed(0, step=0, prompt_id="p", sample_index=0) == 6552979151440376437


def test_seeds_of_different_samples_differ() -> None:
    seeds = {
        sample_seed(run, step=step, prompt_id=prompt, sample_index=index)
        for run in range(3)
        for step in range(12)
        for prompt in ("1", "11", "a")
        for index in range(12)
    }
    assert len(seeds) == 3 * 12 * 3 * 12
    assert all(0 <= seed < 2**63 for seed in seeds)
