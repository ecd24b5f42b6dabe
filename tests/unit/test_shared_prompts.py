"""Prompts that several runs of a comparison share are loaded once."""

from pathlib import Path

from gvm_ray.config import RunConfig
from gvm_ray.config.prompts import ArithmeticSourceConfig
from gvm_ray.lab.compare.slot import SharedPrompts
from gvm_ray.prepare import prepare


def run_config(seed: int, *, size: int = 20) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "any",
            "seed": seed,
            "prompts_per_step": 4,
            "model": {"type": "scratch"},
            "prompts": {"train": ArithmeticSourceConfig(size=size).model_dump(), "max_tokens": 16},
            "sampling": {"max_tokens": 16},
            "rewards": {"terms": [{"type": "exact"}]},
        }
    )


def test_runs_of_the_same_prompts_share_them(tmp_path: Path) -> None:
    load = SharedPrompts()
    first, second, other = (
        prepare(each, run_dir=tmp_path, load=load).prompts
        for each in (run_config(0), run_config(1), run_config(0, size=21))
    )
    assert first is second
    assert (len(first.train), len(other.train)) == (20, 21)
    alone = prepare(run_config(0), run_dir=tmp_path).prompts
    assert [prompt.prompt_id for prompt in alone.train] == [prompt.prompt_id for prompt in first.train]
