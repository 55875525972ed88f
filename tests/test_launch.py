"""Promises of launch/ that need no machine: exact commands, one-line errors, no secrets.

The commands are goldens, tests/goldens/launch/*.txt; see tests/goldens.py.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jepa_vl import hardware
from jepa_vl.config import ConfigError
from tests.goldens import assert_golden

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
GOLDENS = ROOT / "tests/goldens/launch"
SHELL = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
CLOUD = ("gcloud", "docker", "kubectl", "xpk", "srun", "scontrol", "scancel", "gcsfuse", "sudo")
POD = "--name pod --zone us-west4-a"
FLIGHT = "python launch/preflight.py --config configs/quickstart.py"
RUN = "--config configs/tcjepa_in1k.py:size=L --workdir /mnt/bkt/runs/one"
# name of the golden -> command lines; JEPA_VL_CHIP=... may stand before one.
CASES = {
    "tpu_create": [
        f"launch/tpu_vm.sh create {POD} --type v5e-16 --dry-run",
        f"launch/tpu_vm.sh create {POD} --type v5p-8 --spot --valid-until 6h --dry-run",
        f"launch/tpu_vm.sh create {POD} --type v6e-256 --nodes 2 --reserved --project p --dry-run",
        f"launch/tpu_vm.sh create {POD} --type v4-32 --dry-run",
    ],
    "tpu_wait_stop_delete": [
        f"launch/tpu_vm.sh {action} {POD} --dry-run"
        for action in ("wait", "status", "stop", "delete", "logs --node 1 --worker 3")
    ],
    "tpu_setup_git": [
        f"launch/tpu_vm.sh setup {POD} --git https://example.org/j.git --ref v1 --bucket bkt "
        "--dry-run"
    ],
    "tpu_setup_wheel": [f"launch/tpu_vm.sh setup {POD} --wheel dist/jepa_vl-1.whl --dry-run"],
    "tpu_run": [
        f"launch/tpu_vm.sh run {POD} --type v5e-16 --env HF_HOME=/mnt/hf --dry-run -- {RUN}"
    ],
    "babysit": [f"python launch/babysit.py {POD} --type v5e-16 --spot --git u --dry-run -- {RUN}"],
    "xpk": [
        "launch/xpk.sh build --image reg/jepa:1 --dry-run",
        "launch/xpk.sh build --image reg/jepa:1 --device gpu --dry-run",
        "launch/xpk.sh run --cluster c --workload w --image reg/jepa:1 --type v5e-256 --slices 2 "
        f"--dry-run -- {RUN}",
        "launch/xpk.sh run --cluster c --workload w --image reg/jepa:1 --type h100-80gb-8 "
        f"--slices 4 --zone z --project p --env HF_HOME=/hf --dry-run -- {RUN}",
        "launch/xpk.sh logs --workload w --dry-run",
        "launch/xpk.sh delete --cluster c --workload w --dry-run",
    ],
    "jobset_tpu": [
        "launch/jobset.sh --workload one --image reg/jepa:1 --type v5e-256 --slices 2 --claim bkt "
        f"--dry-run -- {RUN}"
    ],
    "jobset_gpu": [
        "launch/jobset.sh --workload one --image reg/jepa:1 --type h100-8 --slices 4 --claim bkt "
        f"--env HF_HOME=/hf --dry-run -- {RUN}"
    ],
    "slurm": [
        f"launch/slurm.sbatch --dry-run {RUN}",
        f"JEPA_VL_CHIP=h100 JEPA_VL_VENV=/opt/venv launch/slurm.sbatch --dry-run {RUN}",
    ],
    "stage_data": [
        "launch/stage_data.sh list /data/cc --dry-run",
        "launch/stage_data.sh copy gs://bkt/cc /nvme/cc --dry-run",
        "launch/stage_data.sh copy /nfs/cc /nvme/cc --unverified --dry-run",
        "launch/stage_data.sh verify /nvme/cc --dry-run",
        "launch/stage_data.sh mount gs://bkt /mnt/bkt --dry-run",
    ],
    "entrypoint": [f"JEPA_VL_CHIP=v5e launch/entrypoint.sh --dry-run jepa-vl train {RUN}"],
    "preflight": [
        f"{FLIGHT} --workdir /mnt/w --topology v5e-16 "
        "--slices 2 --bucket gs://bkt/xla --config.train.steps=90 --dry-run"
    ],
    "soak": [
        "python launch/soak.py --config configs/quickstart.py --workdir runs/soak --dry-run "
        "--config.train.steps=60"
    ],
}


def run(line: str, path: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JEPA_VL_", "SLURM_"))}
    environment |= {"PATH": path, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    environment["JAX_PLATFORMS"] = "cpu"
    line = line.replace("python ", f"{sys.executable} ", 1)
    return subprocess.run(
        ["bash", "-c", line],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def output(name: str, path: str) -> str:
    """What the golden of this name should be."""
    text = ""
    for line in CASES[name]:
        done = run(line, path)
        assert done.returncode == 0, done.stderr
        text += f"$ {line}\n{done.stdout}\n"
    return text


@pytest.fixture
def cloudless(tmp_path) -> str:
    """A PATH on which every command of the cloud fails and leaves a mark."""
    for name in CLOUD:
        fake = tmp_path / name
        fake.write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/ran\nexit 1\n")
        fake.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


@pytest.mark.parametrize("name", CASES)
def test_a_dry_run_prints_the_commands_of_the_golden_and_runs_none(name, cloudless, tmp_path):
    assert_golden(f"launch/{name}.txt", output(name, cloudless))
    assert not (tmp_path / "ran").exists()


def test_each_golden_has_its_case_and_each_script_its_golden():
    assert {path.stem for path in GOLDENS.iterdir()} == CASES.keys()
    lines = " ".join(line for lines in CASES.values() for line in lines)
    scripts = {p.name for p in LAUNCH.iterdir() if os.access(p, os.X_OK) or p.suffix == ".py"}
    scripts -= {"local_multiprocess.sh"}  # tested where it trains, in tests/test_multihost.py
    assert {name for name in scripts if f"launch/{name}" not in lines} == set()


@pytest.mark.parametrize("script", SHELL, ids=lambda p: p.name)
def test_shellcheck_finds_nothing(script):
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed: pip install -e '.[test]'")
    done = subprocess.run([checker, "-x", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


BAD = {
    "launch/tpu_vm.sh fly": "action = 'fly'",
    "launch/tpu_vm.sh create --zone z": "--name",
    "launch/tpu_vm.sh create --name n --zone z": "--type",
    "launch/tpu_vm.sh create --name n --zone z --type v9-8": "chip = 'v9'",
    "launch/tpu_vm.sh create --name n --zone z --type v5e-12": "slice = 'v5e-12'",
    "launch/tpu_vm.sh create --name n --zone z --type h100-8": "--type = 'h100-8'",
    "launch/tpu_vm.sh create --name n --zone z --type v5e-8 --nodes 0": "--nodes = '0'",
    "launch/tpu_vm.sh create --name n --zone z --spot --reserved": "--reserved",
    "launch/tpu_vm.sh run --name n --zone z --type v5e-8": "jepa-vl train",
    "launch/tpu_vm.sh run --name n --zone z --env hidden": "--env = 'hidden'",
    "launch/tpu_vm.sh setup --name n --zone z": "--git",
    "launch/tpu_vm.sh setup --name n --zone z --wheel none.whl": "--wheel = 'none.whl'",
    "python launch/babysit.py --poll often": "--poll",
    "python launch/babysit.py --name n --zone z --git u -- --config c": "--type",
    "launch/xpk.sh run --cluster c": "--workload",
    "launch/xpk.sh run --cluster c --workload w --image i --type v9-8 -- --config c": "v9-8",
    "launch/xpk.sh build --image i --device cpu": "--device = 'cpu'",
    "launch/jobset.sh --workload Big --image i --type v5e-8 --claim c -- --config c": "'Big'",
    "launch/jobset.sh --workload w --image i --type cpu-8 --claim c -- --config c": "'cpu-8'",
    "launch/jobset.sh --workload w --image i --type v5e-8 -- --config c": "--claim",
    "launch/slurm.sbatch": "jepa-vl train",
    "launch/stage_data.sh copy /nowhere": "SOURCE and DIR",
    "launch/stage_data.sh copy /nowhere elsewhere": "copy = '/nowhere'",
    "launch/stage_data.sh verify launch": "holds no SHA256SUMS",
    "launch/stage_data.sh mount bkt /mnt": "mount = 'bkt'",
    "python launch/preflight.py --config none.py --workdir w": "none.py",
    f"{FLIGHT} --workdir w --topology v5e-3": "v5e-3",
    f"{FLIGHT} --workdir w --devices x": "--devices",
    "python launch/soak.py --workdir w": "--config",
    "python launch/soak.py --config c --workdir w --steps 3": "--steps",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_line_and_exit_code_5(line, cloudless, tmp_path):
    done = run(line, cloudless)
    assert done.returncode == 5, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and BAD[line] in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("script", [p for p in SHELL if p.name != "lib.sh"], ids=lambda p: p.name)
def test_help_tells_the_usage(script):
    done = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: ")
    assert len(done.stdout.splitlines()) > 5


def jobset(name: str) -> dict:
    text = (GOLDENS / f"{name}.txt").read_text()
    return yaml.safe_load(text.split("<<'YAML'\n")[1].split("\nYAML\n")[0])


def test_the_jobset_is_yaml_with_a_job_a_slice_and_a_pod_a_host():
    spec = jobset("jobset_tpu")["spec"]
    job = spec["replicatedJobs"][0]
    assert job["replicas"] == 2
    pods = job["template"]["spec"]
    assert pods["completionMode"] == "Indexed" and pods["backoffLimit"] == 0
    assert pods["parallelism"] == pods["completions"] == 64
    pod = pods["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
    }
    container = pod["containers"][0]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["terminationMessagePath"] == "/dev/termination-log"
    assert container["args"] == ["jepa-vl", "train", "--supervise", *RUN.split()]
    # What no restart mends ends the whole set.
    assert pods["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [4, 5]
    assert spec["failurePolicy"]["rules"][0]["action"] == "FailJobSet"


def test_gpu_pods_are_told_their_coordinator():
    job = jobset("jobset_gpu")["spec"]["replicatedJobs"][0]
    container = job["template"]["spec"]["template"]["spec"]["containers"][0]
    values = {v["name"]: v.get("value") for v in container["env"]}
    assert values["JEPA_VL_COORDINATOR"] == "one-slice-0-0.one:8476"
    assert (values["JEPA_VL_PROCESSES"], values["JEPA_VL_HOSTS"], job["replicas"]) == ("4", "1", 4)
    assert {"containerPort": 8476} in container["ports"]


def test_no_placeholder_survives_the_filling_in():
    for name in ("jobset_tpu", "jobset_gpu"):
        assert "{{" not in (GOLDENS / f"{name}.txt").read_text()


def test_words_of_the_run_reach_the_pod_whatever_is_in_them(cloudless):
    words = ["--config", "a b", "--workdir", "/mnt/it's", '--config.data.name=say "so" & \\1']
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    line = "launch/jobset.sh --workload w --image i --type v6e-8 --claim c --dry-run -- " + quoted
    text = run(line, cloudless).stdout.split("<<'YAML'\n")[1].split("\nYAML\n")[0]
    pods = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert pods["template"]["spec"]["containers"][0]["args"][3:] == words
    assert pods["completions"] == 1  # eight chips are one host


NAMES = {"v5e-16": ("v5e", 16, "4x4"), "v5litepod-256": ("v5e", 256, "16x16"),
         "v5e-8": ("v5e", 8, "2x4"), "v6e-1": ("v6e", 1, "1x1"), "v5p-8": ("v5p", 4, "2x2x1"),
         "v5p-16": ("v5p", 8, "2x2x2"), "v4-64": ("v4", 32, "2x4x4"),
         "v5p-256": ("v5p", 128, "4x4x8"), "h100-8": ("h100", 8, "8")}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_slice_has_the_chips_that_its_name_counts(name):
    chip, chips = hardware.slice_named(name)
    assert (chip.name, chips, hardware.topology(chip, chips)) == NAMES[name]


@pytest.mark.parametrize("name", ["v5e-12", "v5p-4", "v5p-9", "v5e-", "v5e-0", "v7-8", "v5e-x"])
def test_a_slice_that_nobody_builds_is_refused(name):
    with pytest.raises(ConfigError):
        hardware.slice_named(name)


def test_a_field_of_the_table_of_chips_is_printed_alone(capsys):
    assert hardware.main(["v5litepod-16", "--field", "accelerator"]) == 0
    assert hardware.main(["v5p-8", "--field", "runtime"]) == 0
    assert capsys.readouterr().out == "v5litepod-16\nv2-alpha-tpuv5\n"
    assert hardware.main(["v5e", "--field", "colour"]) == 5
    assert capsys.readouterr().err.count("\n") == 1


# Forms of keys and tokens of services that a run may talk to.
SECRETS = re.compile(
    r"AIza[\w-]{20}|ya29\.|gh[pousr]_\w{20}|hf_[A-Za-z]{20}|sk-\w{20}|AKIA\w{12}|xox[bp]-"
    r"|-----BEGIN|eyJhbGci|(?i:(token|secret|password|api_?key)['\"]?\s*[:=]\s*['\"]?[\w/+-]{8})"
)


def test_no_file_of_launch_holds_a_secret():
    files = [path for folder in (LAUNCH, GOLDENS) for path in folder.rglob("*") if path.is_file()]
    texts = {path: path.read_text() for path in files if "__pycache__" not in path.parts}
    assert len(texts) > 20
    assert {path.name for path, text in texts.items() if SECRETS.search(text)} == set()
    for planted in ("HF_TOKEN=abcd1234efgh", "hf_" + "a" * 30, "key: AIza" + "x" * 30):
        assert SECRETS.search(planted)


def test_scripts_take_no_secret_as_an_option():
    """Command lines are seen by all users of a machine; secrets come by the environment."""
    for path in LAUNCH.iterdir():
        if path.suffix in (".sh", ".py", ".sbatch"):
            options = re.findall(r"--[a-z][a-z-]+", path.read_text())
            assert not {o for o in options if re.search("token|secret|password|key", o)}, path


def test_the_image_runs_the_entrypoint_and_takes_the_device_as_a_build_argument():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    assert 'ENTRYPOINT ["launch/entrypoint.sh"]' in lines and "ARG DEVICE=tpu" in lines
    assert any("${DEVICE}" in line and line.startswith("RUN pip install") for line in lines)
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
    for name in [name for names in copied for name in names]:
        assert (ROOT / name).exists(), name


def test_files_are_short_and_name_no_machine():
    for path in [*LAUNCH.iterdir(), *GOLDENS.iterdir()]:
        if path.is_file():
            text = path.read_text()
            assert len(text.splitlines()) <= 400, path
            assert str(ROOT) not in text and str(Path.home()) not in text, path


def test_the_readme_names_every_file():
    text = (LAUNCH / "README.md").read_text()
    for path in LAUNCH.iterdir():
        if path.is_file() and path.name not in ("README.md", "lib.sh"):
            assert path.name in text, path.name
