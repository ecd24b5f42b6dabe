"""Checkpoints are complete or absent, few, and refuse what they don't fit."""

import asyncio
import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gvm_ray.checkpoints import CheckpointFolder, RestoredCheckpoint
from gvm_ray.config import RunConfig, parse_config
from gvm_ray.exceptions import CheckpointError, SystemFailure
from gvm_ray.types import CheckpointState


def run_config(**changes: Any) -> RunConfig:
    values = {"name": "t", "model": {"type": "scratch"}, "prompts": {"train": {"type": "arithmetic"}}, **changes}
    return parse_config(values)


def state(step: int) -> CheckpointState:
    return CheckpointState(
        step=step,
        policy_version=step,
        cursor={"epoch": 1, "window": [3, 4]},
        allocator={"stats": {"a": [1.5, 0.25]}},
        costs={"cost/generated_samples": 8.0 * step},
        prompt_states={
            "ids": np.array(["a", "é"]),
            "steps": np.array([step, 0]),
            "states": np.array([[0.1, 2], [3, 4]], dtype=np.float32),
        },
    )


@dataclass
class FakeLearners:
    """Writes one file; dies half way through where it is told to."""

    dies: bool = False
    folders: list[Path] = field(default_factory=list)
    complete: list[str] = field(default_factory=list)

    async def save(self, folder: str) -> None:
        self.folders.append(Path(folder))
        Path(folder).mkdir(parents=True)
        (Path(folder) / "shard").write_text("half")
        if self.dies:
            raise SystemFailure("the learner died while saving")
        (Path(folder) / "shard").write_text("whole")

    def checkpointed(self, folder: str) -> None:
        assert (Path(folder) / "shard").read_text() == "whole"
        self.complete.append(folder)


def save(folder: CheckpointFolder, step: int, learners: Any = None) -> None:
    asyncio.run(folder.save(state(step), learners or FakeLearners()))


def latest(folder: CheckpointFolder) -> RestoredCheckpoint:
    restored = folder.latest()
    assert restored is not None
    return restored


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    learners = FakeLearners()
    save(folder, 10, learners)
    assert learners.complete == [str(tmp_path / "step_000010" / "learner")]
    restored = latest(folder)
    np.testing.assert_equal(vars(restored.state), vars(state(10)))
    assert restored.state.prompt_states["states"].dtype == np.float32
    assert (restored.learner / "shard").read_text() == "whole"
    assert json.loads((tmp_path / "step_000010" / "config.json").read_text())["name"] == "t"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config(checkpoint={"keep": 2}))
    for step in (8, 9, 10, 11):
        save(folder, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000010", "step_000011"]
    assert latest(folder).state.step == 11


def test_a_crash_while_saving_leaves_the_last_good_one(tmp_path: Path) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    save(folder, 1)
    dying = FakeLearners(dies=True)
    with pytest.raises(SystemFailure, match="died while saving"):
        save(folder, 2, dying)
    assert dying.folders[0].exists()  # something was half written
    assert dying.complete == []
    assert [path.name for path in folder.complete()] == ["step_000001"]
    assert latest(folder).state.step == 1
    save(folder, 2)  # and what it left is no hindrance
    assert latest(folder).state.step == 2
    assert not dying.folders[0].exists()


def test_a_step_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    save(folder, 1)
    (tmp_path / "step_000001" / "left over").touch()
    save(folder, 1)
    assert sorted(path.name for path in (tmp_path / "step_000001").iterdir()) == [
        "config.json",
        "learner",
        "manifest.json",
        "prompt_states.npz",
        "state.json",
    ]


@pytest.mark.parametrize("text", ["", '{"step": 1', '{"step": 1}', "[]", '{"unknown": 1}'])
def test_a_damaged_state_is_named(tmp_path: Path, text: str) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    save(folder, 1)
    (tmp_path / "step_000001" / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"step_000001' is damaged"):
        folder.latest()


def test_a_missing_state_is_named(tmp_path: Path) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    save(folder, 1)
    (tmp_path / "step_000001" / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"step_000001' is damaged"):
        folder.latest()


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    save(folder, 1)
    (tmp_path / "step_000001" / "config.json").write_text('{"name": ')
    with pytest.raises(CheckpointError, match=r"step_000001' is damaged"):
        folder.latest()


@pytest.mark.parametrize("name", ["learner/shard", "prompt_states.npz", "state.json", "config.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_file_that_is_not_what_was_written_is_named_and_the_older_checkpoint_offered(
    tmp_path: Path, name: str, harm: str
) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    save(folder, 1)
    save(folder, 2)
    file = tmp_path / "step_000002" / name
    content = file.read_bytes()
    match harm:
        case "flip":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "cut":
            file.write_bytes(content[:-1])
        case _:
            file.unlink()
    with pytest.raises(CheckpointError, match=rf"step_000002' is damaged \({name} .*'step_000001', the one before"):
        folder.latest()
    shutil.rmtree(tmp_path / "step_000002")
    assert latest(folder).state.step == 1


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    save(folder, 1)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", full)
        with pytest.raises(CheckpointError, match=r"after step 2 can't be written .* No space left on device"):
            save(folder, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]
    assert latest(folder).state.step == 1


def test_there_may_be_no_checkpoint_yet(tmp_path: Path) -> None:
    assert CheckpointFolder(folder=tmp_path, config=run_config()).latest() is None


# --- settings of a resumed run ----------------------------------------------------------------------------------------
FIXED: dict[str, list[tuple[dict[str, Any], str]]] = {  # by section: changes, and what the message says of each
    "seed": [({"seed": 5}, "seed = 0 (not 5)")],
    "prefill_price": [({"prefill_price": 0.5}, "prefill_price = 1.0 (not 0.5)")],
    "prompts_per_step": [({"prompts_per_step": 3}, "prompts_per_step = 64 (not 3)")],
    "samples_per_prompt": [({"samples_per_prompt": 16}, "samples_per_prompt = 8 (not 16)")],
    "model": [
        ({"model": {"type": "scratch", "num_layers": 3}}, "model.num_layers = 2 (not 3)"),
        ({"model": {"type": "pretrained", "path": "m"}}, 'model.type = "scratch" (not "pretrained")'),
    ],
    "prompts": [
        ({"prompts": {"train": {"type": "arithmetic", "size": 99}}}, "prompts.train.size = 2048 (not 99)"),
        ({"prompts": {"train": {"type": "arithmetic"}, "max_tokens": 9}}, "prompts.max_tokens = 1024 (not 9)"),
        (
            {"prompts": {"train": {"type": "arithmetic"}, "template": {"type": "chat"}}},
            'prompts.template.type = "plain" (not "chat")',
        ),
    ],
    "sampling": [
        ({"sampling": {"temperature": 0.5}}, "sampling.temperature = 1.0 (not 0.5)"),
        ({"sampling": {"max_tokens": 7}}, "sampling.max_tokens = 3072 (not 7)"),
    ],
    "environment": [
        (
            {"environment": {"type": "function", "path": "a:b"}},
            'environment.type = "single_turn" (not "function")',
        )
    ],
    "rewards": [
        (
            {"rewards": {"terms": [{"type": "exact"}]}},
            'rewards.terms = [{"type": "math_verify", "weight": 1.0, "require_boxed": false, "truncated": ... (not [',
        ),
        ({"rewards": {"accept_threshold": 0.75}}, "rewards.accept_threshold = 0.5 (not 0.75)"),
    ],
    "allocator": [
        ({"allocator": {"type": "uniform"}}, 'allocator.type = "gvm_pool" (not "uniform")'),
        ({"allocator": {"type": "gvm_pool", "states": "none"}}, 'allocator.states = "embedding" (not none)'),
        (
            {"allocator": {"type": "gvm_pool", "predictor": {"forgetting": 0.5}}},
            "allocator.predictor.forgetting = 0.9 (not 0.5)",
        ),
    ],
    "algorithm": [
        ({"algorithm": {"type": "grpo"}}, 'algorithm.type = "raft++" (not "grpo")'),
        ({"algorithm": {"type": "raft++", "updates_per_batch": 9}}, "algorithm.updates_per_batch = 1 (not 9)"),
    ],
    "learner": [
        ({"learner": {"dtype": "bfloat16"}}, 'learner.dtype = "float32" (not "bfloat16")'),
        ({"learner": {"lora": {"rank": 4}}}, 'learner.lora = none (not {"rank": 4, '),
        (
            {"learner": {"optimizer": {"learning_rate": 0.5}}},
            "learner.optimizer.learning_rate = 1e-06 (not 0.5)",
        ),
    ],
    "engine": [
        ({"engine": {"dtype": "bfloat16"}}, 'engine.dtype = "float32" (not "bfloat16")'),
        ({"engine": {"vllm": {"kv_cache_dtype": "fp8"}}}, 'engine.vllm.kv_cache_dtype = none (not "fp8")'),
    ],
    "warm_start": [({"warm_start": {"num_updates": 3}}, 'warm_start = none (not {"source": null, "num_updates": 3, ')],
    "evaluation": [
        ({"evaluation": {"num_samples": 4}}, "evaluation.num_samples = 1 (not 4)"),
        ({"evaluation": {"temperature": 0.6}}, "evaluation.temperature = 1.0 (not 0.6)"),
        ({"evaluation": {"top_p": 0.6}}, "evaluation.top_p = 1.0 (not 0.6)"),
        ({"evaluation": {"num_prompts": 6}}, "evaluation.num_prompts = none (not 6)"),
        ({"evaluation": {"fresh_seeds": True}}, "evaluation.fresh_seeds = false (not true)"),
    ],
}
FREE: dict[str, list[dict[str, Any]]] = {
    "name": [{"name": "u"}],
    "runs_dir": [{"runs_dir": "/elsewhere"}],
    "num_steps": [{"num_steps": 500}],
    "token_budget": [{"token_budget": 10**6}],
    "max_staleness": [{"max_staleness": 2}],
    "max_unscored_fraction": [{"max_unscored_fraction": 0.9}],
    "engine": [
        {"engine": {"num_generators": 2, "max_num_seqs": 3, "cpus_per_generator": 2}},
        {"engine": {"type": "custom", "path": "a:B", "kv_cache_gib": 0.5, "enforce_eager": True, "sleep": False}},
        {"engine": {"gpus_per_generator": 2, "tensor_parallel_size": 2, "gpu_memory_utilization": 0.5}},
        {"engine": {"in_flight": "finish"}},
    ],
    "rewards": [
        {"rewards": {"num_actors": 3, "cpus_per_actor": 2, "timeout_s": 9, "memory_mb": 512}},
        {"rewards": {"allow_network": True, "pass_env": ["KEY"]}},
    ],
    "learner": [
        {"learner": {"num_workers": 2, "cpus_per_worker": 2, "gpus_per_worker": 1, "micro_batch_tokens": 7}},
        {"learner": {"packing": "padded", "attention": "sdpa", "logprob_chunk_tokens": 5, "compile": True}},
        {"learner": {"activation_checkpointing": True, "cpu_offload": True, "max_skipped_updates": 5}},
    ],
    "weight_sync": [{"weight_sync": {"transfer": "object_store", "bucket_mib": 3}}],
    "evaluation": [{"evaluation": {"every_steps": 3, "num_generators": 1, "at_steps": [1], "base_prompts": 3}}],
    "checkpoint": [{"checkpoint": {"every_steps": 3, "keep": 1}}],
    "deadlines": [{"deadlines": {"start_s": 3}}],
    "faults": [{"faults": {"max_failures": 3}}],
    "cluster": [{"cluster": {"num_cpus": 3, "dashboard": False}}],
    "reporting": [{"reporting": {"tensorboard": False}}],
}


def test_of_every_setting_it_is_decided_whether_a_resumed_run_may_change_it() -> None:
    assert {*FIXED, *FREE} == RunConfig.model_fields.keys()
    for section in FIXED.keys() & FREE.keys():  # some of these may, and some may not
        model: Any = RunConfig.model_fields[section].annotation
        of_fixed = {message.removeprefix(f"{section}.").split()[0].split(".")[0] for _, message in FIXED[section]}
        of_free = {name for change in FREE[section] for name in change[section]}
        assert {*of_fixed, *of_free} == model.model_fields.keys(), section
        assert not of_fixed & of_free


@pytest.mark.parametrize(("changes", "message"), [case for cases in FIXED.values() for case in cases])
def test_settings_that_a_resumed_run_may_not_change(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save(CheckpointFolder(folder=tmp_path, config=run_config()), 1)
    with pytest.raises(CheckpointError) as raised:
        CheckpointFolder(folder=tmp_path, config=run_config(**changes)).latest()
    name = message.split()[0]
    assert f"step_000001' was made with other settings in {name}; resume with {message}" in str(raised.value)
    assert "or start a new run with --set name=..." in str(raised.value)


def test_every_setting_that_was_changed_is_named(tmp_path: Path) -> None:
    save(CheckpointFolder(folder=tmp_path, config=run_config()), 1)
    changed = run_config(prompts_per_step=3, seed=5, num_steps=7)
    with pytest.raises(CheckpointError, match=r"resume with seed = 0 \(not 5\), prompts_per_step = 64 \(not 3\), or"):
        CheckpointFolder(folder=tmp_path, config=changed).latest()


@pytest.mark.parametrize("changes", [case for cases in FREE.values() for case in cases])
def test_settings_that_a_resumed_run_may_change(tmp_path: Path, changes: dict[str, Any]) -> None:
    save(CheckpointFolder(folder=tmp_path, config=run_config()), 1)
    assert latest(CheckpointFolder(folder=tmp_path, config=run_config(**changes))).state.step == 1


def saved_as(path: Path, change: Callable[[dict[str, Any]], None]) -> CheckpointFolder:
    """A checkpoint whose settings were written otherwise than they are now."""

    class Otherwise:
        checkpoint = run_config().checkpoint

        def model_dump_json(self, **_: Any) -> str:
            values = json.loads(run_config().model_dump_json())
            change(values)
            return json.dumps(values)

    save(CheckpointFolder(folder=path, config=Otherwise()), 1)  # type: ignore[arg-type]
    return CheckpointFolder(folder=path, config=run_config())


def test_a_setting_that_came_later_had_its_default(tmp_path: Path) -> None:
    folder = saved_as(tmp_path, lambda values: [values.pop("algorithm"), values["learner"].pop("lora")])
    assert latest(folder).state.step == 1


def test_settings_of_another_version_are_no_riddle(tmp_path: Path) -> None:
    folder = saved_as(tmp_path, lambda values: values.update(gone=1))
    with pytest.raises(
        CheckpointError, match=r"this version of gvm_ray doesn't take \(.*gone: unknown setting.* resume"
    ):
        folder.latest()


@pytest.mark.parametrize("found", [None, 3])
def test_a_checkpoint_of_another_format_is_not_called_damaged(tmp_path: Path, found: int | None) -> None:
    folder = CheckpointFolder(folder=tmp_path, config=run_config())
    save(folder, 1)
    path = tmp_path / "step_000001" / "state.json"
    values = json.loads(path.read_text())
    del values["format"]
    path.write_text(json.dumps(values if found is None else {**values, "format": found}))
    manifest = path.with_name("manifest.json")
    entries = json.loads(manifest.read_text())
    entries["state.json"] = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match=rf"step_000001' has format {found or 1}, .* reads format 2; resume with"):
        folder.latest()
