"""The cluster examples: the RayJob's fields are KubeRay's and fit together, the SLURM script does what it says."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

FOLDER = Path(__file__).parents[2] / "examples" / "cluster"
# The fields of KubeRay's types (ray-operator/apis/ray/v1) that a RayJob may have at these places.
JOB_FIELDS = {
    *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint"),
    *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata"),
    *("rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig"),
    *("submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"),
}
CLUSTER_FIELDS = {
    *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec"),
    *("headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs"),
}
GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, Any]]:
    found = list(yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text(encoding="utf-8")))
    return {document["kind"]: document for document in found}


@pytest.fixture(scope="module")
def job(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return documents["RayJob"]["spec"]


def containers(job: dict[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Name -> the container and its pod."""
    cluster = job["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return {container["name"]: (container, pod) for pod in pods for container in pod["containers"]}


# --- RayJob -----------------------------------------------------------------------------------------------------------
def test_the_ray_job_has_fields_that_kuberay_knows(documents: dict[str, dict[str, Any]], job: dict[str, Any]) -> None:
    assert documents["RayJob"]["apiVersion"] == "ray.io/v1"
    assert job.keys() <= JOB_FIELDS
    cluster = job["rayClusterSpec"]
    assert cluster.keys() <= CLUSTER_FIELDS
    assert cluster["headGroupSpec"].keys() <= {"rayStartParams", "serviceType", "template"}
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() <= GROUP_FIELDS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert cluster["authOptions"] == {"mode": "token"}


def test_the_ray_version_is_the_installed_one_and_every_node_has_the_same_image(job: dict[str, Any]) -> None:
    assert job["rayClusterSpec"]["rayVersion"] == ray.__version__
    assert len({container["image"] for container, _ in containers(job).values()}) == 1


def test_limits_are_requests_and_every_mount_has_its_volume(job: dict[str, Any]) -> None:
    for container, pod in containers(job).values():
        assert container["resources"]["limits"] == container["resources"]["requests"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_a_stopped_job_has_time_for_its_checkpoint(job: dict[str, Any]) -> None:
    environment = yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]
    assert all(isinstance(value, str) for value in environment.values())  # Ray refuses numbers
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


@pytest.mark.parametrize("has_begun", [False, True])
def test_the_entrypoint_resumes_what_has_begun(
    documents: dict[str, dict[str, Any]], job: dict[str, Any], has_begun: bool, tmp_path: Path
) -> None:
    assert job["entrypoint"] == "bash /entrypoint/train.sh"
    assert documents["ConfigMap"]["data"].keys() == {"train.sh"}
    head, pod = containers(job)["ray-head"]
    assert {"name": "entrypoint", "mountPath": "/entrypoint"} in head["volumeMounts"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["entrypoint"]["configMap"]["name"] == documents["ConfigMap"]["metadata"]["name"]
    script = documents["ConfigMap"]["data"]["train.sh"].replace("/shared", str(tmp_path))
    if has_begun:
        (tmp_path / "runs" / "main").mkdir(parents=True)
        (tmp_path / "runs" / "main" / "config.json").touch()
    put_program(tmp_path / "gvm-ray", 'echo "$@"')
    told = subprocess.run(
        ["bash", "-c", script], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.split()[:2] == ["train", "/config/main.toml"]
    assert ("--resume" in told.stdout.split()) == has_begun


# --- SLURM ------------------------------------------------------------------------------------------------------------
def put_program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def node(tmp_path: Path) -> dict[str, str]:
    """The environment of a job's first node, whose programs write down how they are called."""
    programs = tmp_path / "programs"
    programs.mkdir()
    log = f'echo "$(basename "$0") $*" >> {shlex.quote(str(tmp_path / "calls"))}'
    for name in ("srun", "scontrol"):
        put_program(programs / name, log)
    put_program(programs / "python", f'{log}; [ "$1" = -c ] && echo token; cat > /dev/null')
    put_program(
        programs / "gvm-ray", f"trap 'exit 143' TERM\n{log}\nfor i in $(seq ${{STEPS:-0}}); do sleep 0.05; done"
    )
    activate = tmp_path / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "NAME": "main",
    }


def start(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = ["bash", str(FOLDER / "slurm.sh"), *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, text=True)


def calls(folder: Path, name: str) -> list[str]:
    """The arguments of each call of a program."""
    path = folder / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.partition(" ")[2] for line in lines if line.split()[0] == name]


def test_the_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], check=True)


def test_ray_is_started_on_every_node_and_the_driver_on_the_first(tmp_path: Path, node: dict[str, str]) -> None:
    assert start(tmp_path, node, "main.toml", "--set", "num_steps=5").wait(60) == 0
    head, others = sorted(calls(tmp_path, "srun"), key=lambda call: "--head" not in call)
    assert "--nodes=1 --ntasks=1" in head
    assert "ray start --head" in head
    assert "--nodes=1 --ntasks=1 --exclude=" in others
    assert "ray start --address=" in others
    assert calls(tmp_path, "gvm-ray") == [
        f"train main.toml --set runs_dir={tmp_path}/runs --set name=main --set num_steps=5"
    ]
    assert calls(tmp_path, "scontrol") == []


def test_before_the_time_is_up_the_driver_is_stopped_and_the_job_comes_again(
    tmp_path: Path, node: dict[str, str]
) -> None:
    (tmp_path / "runs" / "main").mkdir(parents=True)
    (tmp_path / "runs" / "main" / "config.json").touch()
    script = start(tmp_path, {**node, "STEPS": "1200", "SLURM_JOB_NUM_NODES": "1"}, "main.toml")
    for _ in range(600):
        if calls(tmp_path, "gvm-ray"):
            break
        time.sleep(0.05)
    script.send_signal(signal.SIGTERM)
    assert script.wait(60) == 143
    assert calls(tmp_path, "gvm-ray")[0].endswith("--resume")
    assert len(calls(tmp_path, "srun")) == 1
    assert calls(tmp_path, "scontrol") == ["requeue 7"]
