"""Promises of launch/entrypoint.sh, slurm.sbatch and stage_data.sh, kept against stand-ins."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launching import LAUNCH, environment, program, until

RUN = ("--config", "c.py", "--workdir", "/shared/one")


# launch/entrypoint.sh


def entrypoint(tmp_path, *command, **variables):
    more = {"JEPA_VL_STATE": tmp_path / "state", "JEPA_VL_TERMINATION_LOG": tmp_path / "ending"}
    return subprocess.Popen(
        [LAUNCH / "entrypoint.sh", *command], text=True, stdout=subprocess.PIPE,
        env=environment(tmp_path / "bin", **more, **variables),
    )  # fmt: skip


@pytest.mark.parametrize("code", [0, 3, 4])
def test_the_entrypoint_keeps_the_exit_code_and_the_last_lines_of_a_failure(tmp_path, code):
    (tmp_path / "ending").touch()
    process = entrypoint(tmp_path, "sh", "-c", f"seq 30; echo why >&2; exit {code}")
    shown = process.communicate(timeout=30)[0]
    assert process.returncode == code
    assert (tmp_path / "state/exit").read_text() == f"{code}\n"
    assert (tmp_path / "state/log").read_text() == shown
    ending = (tmp_path / "ending").read_text().splitlines()
    assert ending == ([] if code == 0 else [*map(str, range(12, 31)), "why"])


def test_the_entrypoint_hands_sigterm_on_and_waits_for_the_save(tmp_path):
    slow = "trap 'sleep 0.5; echo saved; exit 3' TERM; echo on; while :; do sleep 0.1; done"
    process = entrypoint(tmp_path, "bash", "-c", slow)
    log = tmp_path / "state/log"
    until(lambda: log.exists() and "on" in log.read_text())
    process.send_signal(signal.SIGTERM)
    assert "saved" in process.communicate(timeout=30)[0] and process.returncode == 3


def test_the_entrypoint_sets_the_chips_flags_and_counts_the_processes(tmp_path):
    pod = {"JEPA_VL_CHIP": "v6e", "JEPA_VL_COORDINATOR": "a:1", "JEPA_VL_SLICE": 2}
    pod |= {"JEPA_VL_HOSTS": 4, "JOB_COMPLETION_INDEX": 3}
    shown = entrypoint(tmp_path, "env", **pod).communicate(timeout=30)[0]
    assert "JEPA_VL_PROCESS=11\n" in shown and "scoped_vmem_limit_kib=98304" in shown


# launch/slurm.sbatch


class Slurm:
    """A cluster of one node: srun runs the trainer here, scancel signals it."""

    def __init__(self, folder: Path, trainer: str):
        self.folder = folder
        program(folder / "bin/jepa-vl", f"#!/bin/bash\n{trainer}\n")
        self.step = folder / "step"  # the process number of what srun runs
        srun = 'shift\necho "srun $*" >> calls\n"$@" &\necho $! > new; mv new step\nwait $!'
        program(folder / "bin/srun", f"#!/bin/bash\n{srun}\n")
        cancel = 'echo "scancel $*" >> calls; kill -TERM "$(cat step)"'
        program(folder / "bin/scancel", f"#!/bin/bash\n{cancel}\n")
        program(folder / "bin/scontrol", '#!/bin/bash\necho "scontrol $*" >> calls\n')

    def start(self, **variables) -> subprocess.Popen:
        own = {"SLURM_JOB_ID": 17, **variables}
        copy = shutil.copy(LAUNCH / "slurm.sbatch", self.folder / "slurm_script")  # as slurmd does
        return subprocess.Popen(
            ["bash", copy, *RUN], cwd=self.folder, env=environment(self.folder / "bin", **own),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@pytest.mark.parametrize(("code", "ends", "requeued"), [
    (0, 0, False), (3, 0, True), (4, 4, False), (5, 5, False), (139, 139, False),
])  # fmt: skip
def test_a_slurm_job_is_requeued_when_the_run_was_preempted_and_saved(
    tmp_path, code, ends, requeued
):
    cluster = Slurm(tmp_path, f"exit {code}")
    process = cluster.start()
    process.communicate(timeout=30)
    assert process.returncode == ends
    assert cluster.calls()[0] == f"srun jepa-vl train --supervise {' '.join(RUN)}"
    assert ("scontrol requeue 17" in cluster.calls()) is requeued


SAVES = "trap 'sleep 0.5; touch saved; exit 3' TERM"
STARTING = "trap 'exit 143' TERM"  # no checkpoint yet


@pytest.mark.parametrize(("sent", "trainer", "ends", "requeued"), [
    ("USR1", SAVES, 0, True), ("USR1", STARTING, 0, True), ("TERM", SAVES, 3, False),
    ("TERM", STARTING, 143, False), ("USR1", "trap 'exit 5' TERM", 5, False),
])  # fmt: skip
def test_a_job_whose_time_is_up_saves_and_is_requeued_and_a_cancelled_one_saves(
    tmp_path, sent, trainer, ends, requeued
):
    cluster = Slurm(tmp_path, f"{trainer}; touch on; while :; do sleep 0.1; done")
    process = cluster.start(SLURM_RESTART_COUNT=2)
    until(lambda: (tmp_path / "on").exists() and cluster.step.exists())
    process.send_signal(signal.Signals[f"SIG{sent}"])  # --signal=B: to the batch script alone
    said = process.communicate(timeout=30)[0]
    assert process.returncode == ends, said
    assert (tmp_path / "saved").exists() is (trainer == SAVES) and "start 3" in said
    assert cluster.calls()[1] == "scancel --signal=TERM 17"
    assert cluster.calls()[2:] == ["scontrol requeue 17"] * requeued


def test_a_job_is_not_requeued_for_ever(tmp_path):
    cluster = Slurm(tmp_path, "exit 3")
    process = cluster.start(SLURM_RESTART_COUNT=5, JEPA_VL_MAX_REQUEUES=5)
    assert "requeued 5 times already" in process.communicate(timeout=30)[0]
    assert process.returncode == 3 and len(cluster.calls()) == 1


def test_the_batch_script_asks_slurm_for_what_it_relies_on():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    options = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    wanted = {"--signal=B:SIGUSR1@120", "--requeue", "--open-mode=append", "--ntasks-per-node=1"}
    assert wanted <= options


# launch/stage_data.sh


def stage(*words):
    command = [LAUNCH / "stage_data.sh", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_data_is_copied_with_its_checksums_and_damage_is_told(tmp_path):
    source, copy = tmp_path / "a", tmp_path / "b c"
    (source / "x y").mkdir(parents=True)
    for name in ("0.tar", "x y/1.tar"):
        (source / name).write_text(name)
    refused = stage("copy", source, copy)
    assert refused.returncode == 5 and "holds no SHA256SUMS" in refused.stderr
    assert not copy.exists()
    assert stage("list", source).stdout.startswith("2 files")
    assert stage("list", source).returncode == 0  # again: the list does not list itself
    assert "2 files verified" in stage("copy", source, copy).stdout
    (copy / "x y/1.tar").write_text("1.tax")
    damaged = stage("verify", copy)
    assert damaged.returncode == 1 and "./x y/1.tar" in damaged.stderr
    assert "2 files verified" in stage("copy", source, copy).stdout  # mended
    (copy / "0.tar").unlink()
    assert stage("verify", copy).returncode == 1
    (copy / "SHA256SUMS").write_text("")
    assert stage("verify", copy).returncode == 1
