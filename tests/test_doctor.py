"""``jepa-vl doctor``: what is wrong with a machine is named, with what to do about it."""

import importlib.metadata
import json
import resource
import subprocess
from types import SimpleNamespace

import pytest

from jepa_vl.cli import checkup
from jepa_vl.cli.main import main

PINS = (
    "numpy<3,>=2.4",
    "jax[tpu]<0.11,>=0.10; extra == 'tpu'",
    *(f"part-{name}>=2; extra == '{name}'" for name in checkup.EXTRAS if name != "tpu"),
)
HERE = {"numpy": "2.4.1", "jax": "0.10.2", "libtpu": "1.0", "part-gcs": "2.1", "part-timm": "1.9"}


@pytest.fixture
def installed(monkeypatch):
    """What is installed, to be changed by a test."""
    there = dict(HERE)

    def version(name):
        if name not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return there[name]

    def requires(name):
        return PINS if name == checkup.PACKAGE else ["libtpu==1.0; extra == 'tpu'", "scipy"]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", requires)
    return there


def told(check) -> dict[str, checkup.Finding]:
    return {finding.check: finding for finding in check()}


def test_libraries_and_extras_stand_against_their_pins(installed):
    found = told(checkup.libraries)
    assert found["libraries"][:3] == ("ok", "libraries", "1 as setup.py pins them")
    assert found["extra tpu"].found == found["extra gcs"].found == "installed"
    assert found["extra turbo"].state == "ok" and found["extra turbo"].found == "not installed"
    assert found["extra turbo"].advice.endswith("pip install 'jepa-vl[turbo]'")
    assert found["extra timm"].state == "warn" and "part-timm 1.9" in found["extra timm"].found
    del installed["libtpu"]  # named by jax[tpu], not by us
    assert told(checkup.libraries)["extra tpu"].found == "not installed"


@pytest.mark.parametrize(
    ("version", "part"), [("2.3.9", "numpy 2.3.9, not <3,>=2.4"), (None, "numpy not installed")]
)
def test_a_library_outside_its_pin_fails_with_the_command_that_helps(installed, version, part):
    del installed["numpy"]
    installed |= {"numpy": version} if version else {}
    found = told(checkup.libraries)["libraries"]
    assert (found.state, found.found) == ("fail", part)
    assert found.advice.startswith("pip install 'numpy") and "2.4" in found.advice


def test_an_old_python_and_a_package_that_is_not_installed_fail(monkeypatch):
    monkeypatch.setattr(checkup, "_metadata", lambda key: ">=9")
    assert told(checkup.python)["python"].advice == "use Python >=9"
    monkeypatch.setattr(checkup, "PACKAGE", "no-such-package-of-ours")
    assert told(checkup.libraries)["libraries"].advice == "pip install -e ."


@pytest.mark.parametrize(("free", "state"), [(0.1, "fail"), (1.0, "warn"), (6.0, "ok")])
def test_disk_and_shared_memory_that_are_short_are_named(monkeypatch, tmp_path, free, state):
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "cache"))
    usage = SimpleNamespace(free=free * checkup.GIB)
    monkeypatch.setattr(checkup.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(checkup, "SHARED", tmp_path)
    found = told(checkup.folders)
    assert found["cache"].state == "ok" and found["disk of the cache"].state == state
    shared = told(checkup.limits)["shared memory"]
    assert shared.state == ("warn" if free < 1 else "ok")
    assert ("--shm-size" in shared.advice) == (free < 1)


def test_a_cache_that_cannot_be_written_and_few_open_files_are_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "file/cache"))
    found = told(checkup.folders)["cache"]
    assert found.state == "fail" and "JEPA_VL_CACHE" in found.advice
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, resource.RLIM_INFINITY))
    found = told(checkup.limits)["open files"]
    assert (found.state, found.found) == ("warn", "256") and "ulimit -n" in found.advice


def test_pictures_are_decoded_and_a_codec_that_is_missing_is_named(monkeypatch):
    from PIL import Image

    assert told(checkup.codecs)["images"].state == "ok"
    save = Image.Image.save

    def without(self, file, form):
        if form == "WEBP":
            raise KeyError("WEBP")
        save(self, file, form)

    monkeypatch.setattr(Image.Image, "save", without)
    found = told(checkup.codecs)["images"]
    assert found.state == "fail" and "WEBP cannot be decoded" in found.found


@pytest.mark.parametrize(
    ("output", "code", "state", "part"),
    [
        ("tpu|4|TPU v5 lite|False", 0, "ok", "4 x TPU v5 lite (tpu)"),
        ("cpu|1|cpu|False", 0, "warn", "1 CPU device(s), though this machine has a GPU"),
        ("", 1, "fail", "RuntimeError: no device"),
        (None, 0, "fail", "no answer within"),
    ],
)
def test_devices_are_tried_apart_and_what_jax_misses_is_named(
    monkeypatch, tmp_path, output, code, state, part
):
    (tmp_path / "nvidia0").write_text("")
    monkeypatch.setattr(checkup, "DEVICES", {str(tmp_path / "nvidia0"): "gpu"})
    monkeypatch.setenv("JAX_PLATFORMS", "")

    def run(*_, **how):
        if output is None:
            raise subprocess.TimeoutExpired("python", how["timeout"])
        return SimpleNamespace(
            returncode=code, stdout=f"noise\n{output}\n", stderr="Trace\nRuntimeError: no device\n"
        )

    monkeypatch.setattr(checkup.subprocess, "run", run)
    found = told(checkup.devices)["devices"]
    assert found.state == state and part in found.found
    assert bool(found.advice) == (state != "ok")
    compiled = "fail" if state == "fail" else "ok"
    assert told(checkup.tpu_compiler)["tpu compiler"].state == compiled


def test_the_exit_code_is_1_where_a_check_fails_and_a_warning_is_none(
    monkeypatch, tmp_path, capsys
):
    findings = [checkup.Finding("ok", "a", "x"), checkup.Finding("warn", "b", "y", "do z")]
    monkeypatch.setattr(checkup, "CHECKS", (lambda: findings,))
    out = tmp_path / "found.json"
    assert main(["doctor", "--json", str(out)]) == 0
    assert "warn  b                  y  -> do z\nfit to train\n" in capsys.readouterr().out
    assert json.loads(out.read_text())[1]["advice"] == "do z"
    findings.append(checkup.Finding("fail", "c", "w", "mend it"))
    assert main(["doctor"]) == 1
    assert "1 of 3 checks failed" in capsys.readouterr().out


@pytest.mark.slow
def test_this_machine_is_fit_to_train(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ok    devices") and "cpu" in line for line in lines)
    assert not any("tensorflow" in line for line in lines)
