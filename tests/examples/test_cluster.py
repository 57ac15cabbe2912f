"""The manifest for KubeRay, which no test applies: what can be known of it without a cluster."""

import re
import shlex
from pathlib import Path

import yaml

from jobs.zoo_prune import COMMAND

REPO = Path(__file__).resolve().parents[2]
MANIFEST = yaml.safe_load((REPO / "examples" / "cluster" / "rayjob.yaml").read_text())
CLUSTER = MANIFEST["spec"]["rayClusterSpec"]


def test_it_is_a_rayjob_with_a_command_that_there_is():
    assert (MANIFEST["apiVersion"], MANIFEST["kind"]) == ("ray.io/v1", "RayJob")
    program, job, *arguments = shlex.split(MANIFEST["spec"]["entrypoint"])
    assert program == "zoo-prune"
    context = COMMAND.commands[job].make_context(job, arguments)
    assert context.args == []
    assert context.params["config"] == "/data/job.yaml"
    assert yaml.safe_load(MANIFEST["spec"]["runtimeEnvYAML"]) == {"env_vars": {"RAY_worker_niceness": "0"}}


def test_its_versions_are_those_of_the_project():
    constraints = (REPO / "constraints.txt").read_text()
    assert re.search(rf"^ray(\[.*\])?=={re.escape(CLUSTER['rayVersion'])}$", constraints, re.M)
    version = re.search(r'^version = "(.*)"', (REPO / "pyproject.toml").read_text(), re.M)
    assert version is not None
    images = [pod["containers"][0]["image"] for pod in pods()]
    assert set(images) == {f"REGISTRY/zoo-prune:{version[1]}"}


def test_every_pod_mounts_the_data_and_a_large_shared_memory():
    for pod in pods():
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert set(mounts) == {"/data", "/dev/shm"}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert "persistentVolumeClaim" in volumes[mounts["/data"]]
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        resources = pod["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]


def test_gpus_are_of_the_workers_alone():
    head, *workers = pods()
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]
    assert [pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for pod in workers] == ["1"]


def pods() -> list[dict]:
    groups = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]
