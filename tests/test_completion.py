"""``jepa-vl completion``: what a shell offers while somebody types."""

import shutil
import subprocess

import pytest

from jepa_vl.cli import completion
from jepa_vl.cli.main import VERBS, main
from jepa_vl.config import flat, to_dict
from tests.test_cli import python, refused
from tests.tiny import tiny

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
_jepa_vl
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("shell") / "jepa-vl.bash"
    path.write_text(completion.bash(VERBS))
    return path


def offered(script, *words: str) -> list[str]:
    """What bash offers for the last word, given words as bash splits them."""
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run(
        [bash, "--norc", "-c", ASK, "ask", str(script), "jepa-vl", *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["r"], ["report", "runs"]),
        (["runs", ""], ["ls", "show", "compare"]),
        (["runs", "ls", "--r"], ["--root"]),
        (["checkpoint", "c"], ["convert"]),
        (["eval", "--wa"], ["--watch"]),
        (["eval", "compare", "--"], ["--first", "--second", "--help"]),
        (["train", "--config", "f.py", "--max"], ["--max-restarts"]),
        (["train", "--config.optim.final_l"], ["--config.optim.final_lr="]),
        (["train", "--config.objective", "=", "tc"], ["tcjepa"]),
        (["train", "--config.objective", "="], ["ijepa", "tcjepa", "tijepa", "crossmodal",
                                                "contrastive"]),
        (["train", "--config.objective=cr"], ["--config.objective=crossmodal"]),
        (["train", "--config.log.progress", "j"], ["json"]),
        (["train", "--config.log.tensorboard", "=", "f"], ["false"]),
        (["eval", "--config.eval.probe_s"], ["--config.eval.probe_steps="]),
        (["eval", "--config.train.st"], []),
        (["report", "--config.train.st"], []),
        (["eval", "--task", "knn,few"], ["knn,fewshot"]),
        (["export", "--format", "o"], ["onnx"]),
        (["completion", "f"], ["fish"]),
        (["train", "--workdir", "r"], []),  # files, which bash itself offers then
    ],
)  # fmt: skip
def test_bash_offers_commands_options_keys_and_values(script, words, expected):
    assert offered(script, *words) == expected


def test_every_key_of_the_schema_is_offered(script):
    keys = {f"--config.{key}=" for key in flat(to_dict(tiny()))}
    assert set(offered(script, "train", "--config.")) == keys


def test_names_that_are_offered_are_those_that_are_registered():
    from jepa_vl.cli.preview import KINDS
    from jepa_vl.evaluators import base
    from jepa_vl.export import FORMATS, parts
    from jepa_vl.training import convert

    values = completion.VALUES
    assert set(completion.TASKS) == set(base.REGISTRY)
    assert set(values["preview", "--what"]) == set(KINDS)
    assert set(values["export", "--format"]) == set(FORMATS)
    assert set(values["export", "--part"]) == {"encoder", *parts.PARTS, parts.WHOLE}
    assert set(values["checkpoint convert", "--branch"]) == set(convert.BRANCHES)
    assert set(values["checkpoint convert", "--dtype"]) == set(convert.DTYPES)
    for verb, option in values:
        assert not option or option[2:].replace("-", "_") in VERBS[verb].options


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_each_shell_reads_its_script(tmp_path, shell, capsys):
    assert main(["completion", shell]) == 0
    path = tmp_path / "script"
    path.write_text(capsys.readouterr().out)
    text = path.read_text()
    assert "jepa-vl" in text and "config.train.steps" in text and text.count("'") % 2 == 0
    found = shutil.which(shell)
    if found:  # zsh and fish are not everywhere
        done = subprocess.run([found, "-n", str(path)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_other_shells_are_refused_and_nothing_heavy_is_imported(capsys):
    assert "did you mean 'bash'?" in refused(capsys, "completion", "bsh")
    assert "one of bash, zsh, fish" in refused(capsys, "completion")
    code = """
import sys
from jepa_vl.cli.main import main
assert main(["completion", "bash"]) == 0
assert not {"jax", "flax", "numpy", "transformers"} & set(sys.modules)
"""
    assert "complete -o default -F _jepa_vl jepa-vl" in python(code)
