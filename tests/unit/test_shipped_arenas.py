"""Every shipped comparison plans its runs in both phases."""

from pathlib import Path

import pytest

from gvm_ray.arena.plan import planned_runs
from gvm_ray.config import load_arena

COMPARE = Path(__file__).parents[2] / "configs" / "compare"


@pytest.mark.parametrize("path", sorted(COMPARE.glob("*.toml")), ids=lambda path: path.name)
def test_it_plans_its_runs(path: Path) -> None:
    arena = load_arena(path)
    assert arena.name == path.stem
    names = set()
    for phase in ("exploration", "confirmation"):
        runs = planned_runs(arena, folder=path.parent, phase=phase)
        assert {run.arm for run in runs} == {arm.name for arm in arena.arms}
        assert {run.seed for run in runs} == set(arena.seeds(phase))
        names |= {run.fingerprint for run in runs}
    assert len(names) == len(runs) // len(arena.confirmation_seeds) * len(
        arena.exploration_seeds + arena.confirmation_seeds
    )
