"""The weight-sync figures: every case is measured against both kinds of memory."""

import pytest

from gvm_ray.lab.speed.weight_sync import named_tensors, sync_rows

pytestmark = pytest.mark.ray


def test_both_floors_are_measured(ray_cluster: None) -> None:
    rows = sync_rows(named_tensors(3, 2**12), repeats=1)
    assert [row.floor_name for row in rows] == ["np.copyto into warm memory", "np.copyto into fresh memory"]
    assert all(row.ratio is not None and row.ratio > 0 for row in rows)
