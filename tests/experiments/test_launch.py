"""Launchers: the shell and the YAML parse, and the commands, flags and XLA flags in them exist."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from absl import flags as absl_flags

from experiments.common import flags
from onelive_jax.training import stopping

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "experiments" / "launch"
SHELL = ("tpu_pod.sh", "slurm.sbatch")
GPU = ("slurm.sbatch", "kubernetes.yaml")


@pytest.mark.parametrize("name", SHELL)
def test_the_shell_parses(name):
    done = subprocess.run(["bash", "-n", LAUNCH / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_launcher_is_tried_here():
    assert sorted(file.name for file in LAUNCH.iterdir()) == sorted({*SHELL, *GPU, "serve.yaml"})


def test_the_manifest_of_the_live_service_starts_it():
    parts = {(part["kind"], part["metadata"]["name"]): part
             for part in yaml.safe_load_all((LAUNCH / "serve.yaml").read_text()) if part}
    for (kind, name), part in parts.items():
        assert part["apiVersion"] == ("v1" if kind == "Service" else "apps/v1")
        if kind == "Service":
            pods = parts.get(("Deployment", name)) or parts["StatefulSet", name]
            assert part["spec"]["selector"] == pods["spec"]["template"]["metadata"]["labels"]
        else:
            assert part["spec"]["selector"]["matchLabels"] == part["spec"]["template"]["metadata"]["labels"]
    pod = parts["Deployment", "onelive-serve"]["spec"]["template"]["spec"]
    container, = pod["containers"]
    assert container["command"] == ["onelive", "serve"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    command, app = ((ROOT / "experiments" / name).read_text() for name in ("serve.py", "server/app.py"))
    known = {*re.findall(r'DEFINE_\w+\("(\w+)"', command), *flags.COMMON}
    given = dict(arg.removeprefix("--").split("=", 1) for arg in container["args"])
    assert given.keys() <= known
    assert ("StatefulSet", given["bus"].removeprefix("redis://").split(":")[0]) in parts
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert f'"{asked["path"]}"' in app
        assert asked["port"] == int(given["port"]) == container["ports"][0]["containerPort"]


@pytest.fixture(scope="module")
def job():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    return job, service["metadata"]["name"]


def test_the_pods_of_the_job_find_each_other(job):
    job, service = job
    spec, container = job["spec"], job["spec"]["template"]["spec"]["containers"][0]
    environment = {entry["name"]: entry for entry in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["template"]["spec"]["subdomain"] == service
    assert spec["completions"] == spec["parallelism"] == int(environment["JAX_NUM_PROCESSES"]["value"])
    host, port = environment["JAX_COORDINATOR_ADDRESS"]["value"].split(":")
    assert host == f"{job['metadata']['name']}-0.{service}"
    assert container["ports"] == [{"containerPort": int(port)}]
    mounts, volumes = ({entry["name"] for entry in entries} for entries in (container["volumeMounts"],
                                                                            spec["template"]["spec"]["volumes"]))
    assert mounts == volumes


def test_a_stopped_pod_is_no_failure(job):
    code = stopping.EXIT_CODES[signal.SIGTERM]
    rule = job[0]["spec"]["podFailurePolicy"]["rules"][0]
    assert rule["action"] == "Ignore"
    assert rule["onExitCodes"]["values"] == [code]
    assert f'"$code" -eq {code} ]' in (LAUNCH / "slurm.sbatch").read_text()


def test_the_commands_take_the_flags_they_are_given(job):
    container = job[0]["spec"]["template"]["spec"]["containers"][0]
    assert container["command"][-1] == "experiments.train_supervised"
    helped = subprocess.run([sys.executable, "-m", "experiments.train_supervised", "--helpfull"], capture_output=True,
                            text=True, check=True, cwd=ROOT).stdout
    texts = "\n".join((LAUNCH / name).read_text() for name in SHELL) + "\n".join(container["args"])
    assert "COMMAND:-experiments.train_supervised" in texts
    used = set(re.findall(r"--((?:distributed|compile_cache_dir|workdir|config)[\w.]*)=", texts))
    assert {"distributed", "workdir", "config", "config.mesh.fsdp", "compile_cache_dir"} <= used
    for flag in used:
        assert f"--{flag}" in helped, flag
    ways = re.search(r"--distributed=([\w|]+)", helped)[1].split("|")
    assert set(re.findall(r"--distributed=(\w+)", texts)) <= set(ways)
    for path, _ in re.findall(r"--config=([\w/]+\.py):([\w.]+)", texts):
        assert (ROOT / path).is_file()


@pytest.mark.parametrize("name", SHELL)
def test_the_usage_of_a_launcher_is_a_whole_command_line(name, monkeypatch):
    """Its arguments, with those that the launcher adds, make a valid configuration (they exit with 2 otherwise)."""
    usage = re.search(rf"^#   (.*experiments/launch/{re.escape(name)}.*?[^\\])$", (LAUNCH / name).read_text(),
                      re.MULTILINE | re.DOTALL)[1]
    arguments = usage.replace("\n#", " ").split(f"experiments/launch/{name}")[1].replace("\\", " ").split()
    values = absl_flags.FlagValues()
    flags.define_config(flag_values=values)
    argv = ["train", "--workdir=W", *(argument.replace("experiments/", f"{ROOT}/experiments/")
                                      for argument in arguments)]
    monkeypatch.setattr(sys, "argv", argv)  # ml_collections reads the overrides of a config there
    config, _ = flags.parse(argv, values)
    assert config.name == "0.8b"
    assert config.data.path
    assert config.mesh.fsdp > 1


def test_this_jax_knows_the_flags_for_gpus():
    """XLA ends a process that is given a flag it does not know; its GPU flags are known on a CPU too."""
    flags = {name: set(re.findall(r"--xla_gpu_\w+=\w+", (LAUNCH / name).read_text())) for name in GPU}
    assert flags[GPU[0]] == flags[GPU[1]]
    assert len(flags[GPU[0]]) == 4
    done = subprocess.run([sys.executable, "-c", "import jax; print(jax.device_count())"], capture_output=True,
                          text=True, check=False, env={"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin",
                                                       "XLA_FLAGS": " ".join(sorted(flags[GPU[0]]))})
    assert done.stdout == "1\n", done.stderr
