"""Which GPUs learners and generators get from one setting, what fills these, and which settings contradict others."""

from pathlib import Path
from typing import Any

import pytest

from gvm_ray.exceptions import ConfigError
from tests.resource_plans import GIB, parts, plan_of, refusal, run_config

COLOCATED: dict[str, Any] = {"cluster": {"placement": "colocated"}}


def test_a_rank_and_a_generator_that_divide_a_gpu_add_up(tmp_path: Path) -> None:
    divided: dict[str, Any] = {
        "learner": {"activation_checkpointing": True},
        "engine": {"sleep": False, "gpu_memory_utilization": 0.4},
        **COLOCATED,
    }
    shared = plan_of(tmp_path, **divided)
    shared.check()
    (device,) = shared.devices
    assert (device.number, device.name) == (1, "GPU with learner rank + generator")
    assert sum(group.number * group.gpus for group in shared.actors) == pytest.approx(1)
    alone = plan_of(tmp_path, learner={"activation_checkpointing": True}, engine={"gpu_memory_utilization": 0.4})
    assert device.needed == sum(each.needed for each in alone.devices)
    assert parts(device)["engine weights"] + parts(device)["key-value cache"] == pytest.approx(0.4 * 80 - 3)
    divided["engine"]["gpu_memory_utilization"] = 0.9
    assert "lower engine.gpu_memory_utilization=0.9" in refusal(plan_of(tmp_path, **divided))


def test_in_turns_the_fuller_side_counts_and_what_stays_on_the_gpu(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "learner": {"activation_checkpointing": True},
        "engine": {"gpu_memory_utilization": 0.6},
        **COLOCATED,
    }
    plan = plan_of(tmp_path, **settings)
    plan.check()
    learning, sampling = plan.devices
    assert [learning.name, sampling.name] == [
        f"GPU with learner rank + generator while the {name} works" for name in ("learner rank", "generator")
    ]
    learner, generator = parts(learning), parts(sampling)
    assert {"gradients", "activations", "logits"} <= learner.keys() - generator.keys()
    assert {"engine weights", "key-value cache"} <= generator.keys() - learner.keys()
    # 1.5437 billion parameters: float32 weights, the reference's, and two moments stay.
    stay = {"master weights": 5.75, "reference weights": 5.75, "optimizer moments": 11.5, "learner's CUDA": 2.0}
    assert {name: generator[name] for name in stay} == pytest.approx(stay, abs=0.01)
    assert sampling.needed / GIB == pytest.approx(0.6 * 80 + sum(stay.values()), abs=0.02)
    assert learner["engine's CUDA"] == 3.0
    settings["engine"]["gpu_memory_utilization"] = 0.8
    assert "while the generator works needs about" in refusal(plan_of(tmp_path, **settings))
    settings["engine"]["gpu_memory_utilization"] = 0.6
    settings["engine"]["sleep"] = False
    assert plan_of(tmp_path, **settings).devices[0].needed > max(learning.needed, sampling.needed)


def test_what_is_offloaded_is_not_on_the_gpu(tmp_path: Path) -> None:
    offloaded = plan_of(tmp_path, learner={"activation_checkpointing": True, "cpu_offload": True})
    kept = parts(plan_of(tmp_path, learner={"activation_checkpointing": True}).devices[0])
    sharded = {"master weights", "gradients", "optimizer moments", "reference weights"}
    assert parts(offloaded.devices[0]) == {name: size for name, size in kept.items() if name not in sharded}


def test_colocated_generators_that_are_split_share_with_as_many_ranks(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        "qwen2.5-math-7b",
        learner={"num_workers": 4},
        engine={"tensor_parallel_size": 2, "gpus_per_generator": 2, "num_generators": 2},
        **COLOCATED,
    )
    assert [device.number for device in plan.devices] == [4, 4]
    assert parts(plan.devices[1])["engine weights"] == pytest.approx(14.18 / 2, abs=0.01)
    assert sum(group.number * group.gpus for group in plan.actors) == pytest.approx(4)


def test_two_small_generators_share_a_gpu_and_a_third_takes_the_next(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, engine={"gpus_per_generator": 0.5, "num_generators": 3, "gpu_memory_utilization": 0.4})
    assert [(device.number, device.name) for device in plan.devices] == [
        (1, "GPU with learner rank"),
        (1, "GPU with generator + generator"),
        (1, "GPU with generator"),
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"learner": {"gpus_per_worker": 0.5}}, "write learner.gpus_per_worker=1, with cluster.placement='colocated'"),
        (
            {"learner": {"gpus_per_worker": 0}, "engine": {"gpus_per_generator": 0}, **COLOCATED},
            "write learner.gpus_per_worker=1 and engine.gpus_per_generator=1, or leave out cluster.placement",
        ),
        ({"engine": {"gpus_per_generator": 0.5}, **COLOCATED}, "write engine.gpus_per_generator=1"),
        (
            {
                "learner": {"num_workers": 6},
                "engine": {"tensor_parallel_size": 4, "gpus_per_generator": 4, "num_generators": 2},
                **COLOCATED,
            },
            "tensor_parallel_size=4 does not divide learner.num_workers=6, .* write learner.num_workers=8",
        ),
        ({"learner": {"num_workers": 8}, **COLOCATED}, "write engine.num_generators=8"),
        ({"evaluation": {"num_generators": 1}, **COLOCATED}, "write evaluation.num_generators=0"),
        ({"max_staleness": 1, **COLOCATED}, "write max_staleness=0, or engine.sleep=false"),
    ],
)
def test_contradictions_about_gpus(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        run_config(**changes)


def test_colocated_settings_that_fit() -> None:
    assert run_config(**COLOCATED).generators_sleep
    assert not run_config().generators_sleep
    divided = run_config(max_staleness=1, engine={"sleep": False}, **COLOCATED)
    assert not divided.generators_sleep
    run_config(
        learner={"num_workers": 4},
        engine={"tensor_parallel_size": 2, "gpus_per_generator": 2, "num_generators": 2},
        **COLOCATED,
    )
