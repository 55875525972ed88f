"""Promises of launch/tpu_vm.sh and launch/babysit.py, kept against a stand-in of gcloud."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_gcloud import COMING
from tests.launching import LAUNCH, ROOT, environment, load, program, until

POD = ("--name", "pod", "--zone", "z")
RUN = ("--config", "c.py", "--workdir", "/mnt/b/one")
babysit = load("babysit")


class Cloud:
    """The stand-in of Google Cloud, and what was asked of it."""

    def __init__(self, folder: Path, *lives, state="ABSENT", **errors):
        self.folder = folder
        fake = f'#!/bin/sh\nexec {sys.executable} -S {ROOT}/tests/fake_gcloud.py "$@"\n'
        program(folder / "bin/gcloud", fake)
        world = {"lives": [list(life) for life in lives], "life": -1, "state": state}
        world |= {"coming": [], "started": False, "counts": {}, "errors": errors}
        (folder / "world.json").write_text(json.dumps(world))
        (folder / "calls").touch()
        self.environment = environment(folder / "bin", FAKE_CLOUD=folder)

    def calls(self, verb: str) -> list[str]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [line for line in lines if f"queued-resources {verb} " in line]

    def starts(self) -> list[str]:
        return [line for line in self.calls("ssh") if "entrypoint.sh" in line]

    def state(self) -> str:
        return json.loads((self.folder / "world.json").read_text())["state"]

    def tool(self, *words):
        command = [LAUNCH / "tpu_vm.sh", *words]
        return subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=60
        )

    def babysit(self, *options):
        command = [sys.executable, LAUNCH / "babysit.py", *POD, "--type", "v5e-16", "--git", "u"]
        command += ["--poll", "0", "--backoff", "0.01", *options, "--", *RUN]
        return subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=120
        )


# The babysitter


def test_a_run_that_is_preempted_twice_is_done_on_its_third_machines(tmp_path):
    lives = ["running", "SUSPENDED"], ["running", "running", "SUSPENDED"], ["running", "exit 0"]
    cloud = Cloud(tmp_path, *lives)
    done = cloud.babysit("--spot")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(cloud.calls("create")) == 3 and all("--spot" in c for c in cloud.calls("create"))
    assert len(cloud.calls("delete")) == 3  # what was suspended, twice, and the end
    starts = cloud.starts()  # the same run each time: it resumes from its workdir
    assert len(starts) == 3 and len(set(starts)) == 1 and "--workdir /mnt/b/one" in starts[0]
    assert cloud.state() == "ABSENT"
    for word in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE running", "attempt 2 of 20"):
        assert word in done.stdout


def test_it_gives_up_after_so_many_losses_in_a_row_and_leaves_no_machine(tmp_path):
    cloud = Cloud(tmp_path, *[["SUSPENDED"] for _ in range(9)])
    done = cloud.babysit("--max-attempts", "2")
    assert done.returncode == 1 and "2 attempts in a row are used up" in done.stderr
    assert len(cloud.calls("create")) == 3 and cloud.state() == "ABSENT"


def test_a_run_that_never_comes_up_is_not_started_for_ever(tmp_path):
    cloud = Cloud(tmp_path, ["idle"] * 99)
    assert cloud.babysit("--max-attempts", "2").returncode == 1
    assert len(cloud.starts()) == 3


def test_a_gcloud_that_fails_now_and_then_changes_nothing(tmp_path):
    errors = {"describe": [1, 3, 8], "create": [1], "setup": [1], "run": [1], "look": [2]}
    cloud = Cloud(tmp_path, ["running", "SUSPENDED"], ["running", "exit 0"], **errors)
    done = cloud.babysit()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "UNAVAILABLE" in done.stdout and len(cloud.starts()) >= 2 and cloud.state() == "ABSENT"


def test_a_gcloud_that_always_fails_ends_it(tmp_path):
    cloud = Cloud(tmp_path, describe=[*range(1, 99)])
    done = cloud.babysit("--failures", "3")
    assert done.returncode == 1 and "3 looks in a row failed" in done.stderr
    assert cloud.calls("create") == []


@pytest.mark.parametrize(("code", "kept"), [(4, True), (5, False)])
def test_a_run_that_no_restart_mends_ends_it_with_the_runs_code(tmp_path, code, kept):
    cloud = Cloud(tmp_path, ["running", f"exit {code}"], ["running"])
    done = cloud.babysit(*["--keep"] * kept)
    assert done.returncode == code and len(cloud.starts()) == 1
    assert any("tail -n 40" in call for call in cloud.calls("ssh"))  # before the disk is gone
    assert cloud.state() == ("ACTIVE" if kept else "ABSENT")


@pytest.mark.parametrize("end", ["exit 3", "exit 137", "idle"])
def test_a_run_that_ended_otherwise_starts_again_on_the_same_machines(tmp_path, end):
    cloud = Cloud(tmp_path, ["running", end, "running", "exit 0"])
    assert cloud.babysit().returncode == 0
    assert (len(cloud.calls("create")), len(cloud.starts())) == (1, 2)


def test_hosts_that_do_not_answer_are_replaced(tmp_path):
    cloud = Cloud(tmp_path, ["running", *["unreachable"] * 9], ["exit 0"])
    done = cloud.babysit("--failures", "3")
    assert done.returncode == 0 and "hosts do not answer" in done.stdout
    assert len(cloud.calls("create")) == 2


def test_what_is_suspended_or_failed_already_is_made_anew(tmp_path):
    for state in ("SUSPENDED", "FAILED"):
        cloud = Cloud(tmp_path / state, ["exit 0"], state=state)
        assert cloud.babysit().returncode == 0
        assert len(cloud.calls("create")) == 1


def test_bad_input_ends_it_before_machines_cost_anything(tmp_path):
    cloud = Cloud(tmp_path)
    done = cloud.babysit("--wheel", "w")
    assert done.returncode == 5 and "not with --git" in done.stderr
    assert (tmp_path / "calls").read_text() == ""


def test_backoff_doubles_and_a_healthy_run_makes_losses_forgotten():
    seen = iter(["SUSPENDED"] * 4 + ["ACTIVE running"] * 3 + ["SUSPENDED", "ACTIVE exit 0"])
    slept, now = [], [0.0]

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    patience = babysit.Patience(poll=60, backoff=30, max_backoff=100, healthy=100)
    sitter = babysit.Babysitter(
        lambda action: (0, next(seen)) if action == "status" else (0, ""),
        patience, sleep, lambda: now[0],
    )  # fmt: skip
    assert sitter.watch() == 0
    assert slept == [30, 60, 100, 100, 60, 60, 60, 30]


# launch/tpu_vm.sh


def test_creating_twice_asks_once_and_deleting_twice_deletes_once(tmp_path):
    cloud = Cloud(tmp_path, [])
    for said in ("", "pod: WAITING_FOR_RESOURCES already"):
        done = cloud.tool("create", *POD, "--type", "v5p-8", "--nodes", "2")
        assert done.returncode == 0 and said in done.stdout
    assert len(cloud.calls("create")) == 1
    assert "--accelerator-type=v5p-8" in cloud.calls("create")[0]
    assert "--node-count=2 --node-prefix=pod" in cloud.calls("create")[0]
    for said in ("", "there is none"):
        assert said in cloud.tool("delete", *POD).stdout
    assert len(cloud.calls("delete")) == 1


def test_wait_ends_when_the_machines_are_there_and_fails_when_they_will_not_come(tmp_path):
    cloud = Cloud(tmp_path, [])
    assert cloud.tool("wait", *POD, "--poll", "1").returncode == 1
    cloud.tool("create", *POD, "--type", "v5e-8")
    done = cloud.tool("wait", *POD, "--poll", "1")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"pod: {state}" for state in COMING]


@pytest.fixture
def host(tmp_path) -> Cloud:
    """A cloud whose one host is this machine, with a trainer that saves at SIGTERM."""
    cloud = Cloud(tmp_path, ["running"] * 99, state="ACTIVE")
    home = tmp_path / "home/jepa-vl"
    shutil.copytree(LAUNCH, home / "launch", ignore=shutil.ignore_patterns("__pycache__"))
    trainer = 'echo "$@"; echo "$LIBTPU_INIT_ARGS"; trap "exit 3" TERM; while :; do sleep 0.1; done'
    program(home / ".venv/bin/jepa-vl", f"#!/bin/bash\n{trainer}\n")
    return cloud


def test_a_run_starts_once_in_the_background_and_is_asked_to_save_by_stop(host, tmp_path):
    """The remote commands themselves, run by a shell."""
    start = ("run", *POD, "--type", "v5e-8", "--", *RUN, "it's")
    assert host.tool("status", *POD).stdout == "ACTIVE idle\n"
    state = tmp_path / "home/jepa-vl/run"
    assert host.tool(*start).returncode == 0
    until(lambda: (state / "log").exists() and "collective" in (state / "log").read_text())
    assert "runs already" in host.tool(*start).stdout
    assert host.tool("status", *POD).stdout == "ACTIVE running\n"
    said, flags = (state / "log").read_text().splitlines()
    assert said == f"train --supervise {' '.join(RUN)} it's"
    assert "async_collective_fusion=true" in flags
    assert host.tool("stop", *POD).stdout == "exit 3\n"
    assert host.tool("status", *POD).stdout == "ACTIVE exit 3\n"
    assert "no run" in host.tool("stop", *POD).stdout
