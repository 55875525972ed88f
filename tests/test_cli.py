"""The command line: what it accepts, and what it refuses in one line with exit code 5."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jepa_vl.cli import configs
from jepa_vl.cli.main import VERBS, main
from jepa_vl.config import ConfigError

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests/configs_tiny.py")
# Eight devices here: the batch of eight is spread over them.
SPREAD = "--config.mesh.data=-1"


def override(*words: str):
    return configs.load(TINY, configs.take_overrides(words)[1])


def python(code: str) -> str:
    """Output of a fresh interpreter, one that has not imported jax."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout


def test_help_has_an_example_everywhere_and_imports_nothing_heavy():
    code = """
import sys
from jepa_vl.cli.main import VERBS, main
for words in ([], *([verb] for verb in VERBS)):
    assert main([*words, "--help"]) == 0
assert main(["--version"]) == 0
heavy = {"jax", "flax", "numpy", "grain", "matplotlib", "tensorflow"} & set(sys.modules)
assert not heavy, heavy
"""
    text = python(code)
    assert text.count("example:\n  jepa-vl ") == 1 + len(VERBS)
    assert re.search(r"^jepa-vl \d+\.\d+", text, re.M)


@pytest.mark.parametrize(
    "words",
    [
        ["--config.train.steps=7"],
        ["--config.train.steps", "7"],
        ["--config.train.steps=3", "--config.train.steps=7"],
    ],
)
def test_values_are_overridden_in_either_form_and_the_last_one_counts(words):
    assert override(*words).train.steps == 7


def test_overrides_keep_the_types_of_the_schema():
    config = override(
        "--config.optim.lr=1", "--config.optim.weight_decay", "0",
        "--config.log.tensorboard", "true", "--config.data.crop_scale=0.5,1",
        "--config.data.caption_keys=text", "--config.seed", "3",
        "--config.data.path=a,b c", "--config.objective=ijepa",
    )  # fmt: skip
    assert (config.optim.lr, config.optim.weight_decay, config.seed) == (1.0, 0.0, 3)
    assert isinstance(config.optim.lr, float)
    assert config.log.tensorboard is True
    assert (config.data.crop_scale, config.data.caption_keys) == ((0.5, 1), ("text",))
    assert (config.data.path, config.objective) == ("a,b c", "ijepa")
    assert override("--config.log.tensorboard").log.tensorboard is True
    assert (
        override("--config.log.tensorboard", "--noconfig.log.tensorboard").log.tensorboard is False
    )


def test_a_config_file_may_leave_keys_out_and_takes_an_argument(tmp_path):
    file = tmp_path / "partial.py"
    file.write_text(
        "def get_config(arg='32'):\n"
        "    encoder = dict(width=32, depth=1, heads=2, image_size=int(arg), patch_size=8)\n"
        "    return dict(encoder=encoder, predictor=dict(width=16), optim=dict(lr=1))\n"
    )
    assert configs.load(str(file)).encoder.image_size == 32
    changed = configs.load(f"{file}:64", [configs.Override("optim.lr", "0.5")])
    assert (changed.encoder.image_size, changed.optim.lr) == (64, 0.5)


def refused(capsys, *argv: str) -> str:
    """The one line on stderr of a command that must be refused with exit code 5."""
    assert main(argv) == 5
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("jepa-vl: error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert re.match(r"jepa-vl: error: [^=]+ = .+: .+", err)
    return err


TRAIN = ("train", "--config", TINY, "--workdir")


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("--config.train.stepz=3", ("train.stepz", "did you mean train.steps?")),
        ("--config.steps=3", ("did you mean train.steps?",)),
        ("--config.wings=3", ("wings", "no such key")),
        ("--config.train=3", ("train", "keys of its own", "train.steps")),
        ("--config.train.steps=abc", ("train.steps = 'abc'", "must be int")),
        ("--config.train.steps=1.5", ("train.steps", "must be int")),
        ("--config.optim.lr=fast", ("optim.lr = 'fast'", "must be float")),
        ("--config.log.tensorboard=maybe", ("log.tensorboard", "must be bool")),
        ("--config.data.crop_scale=(1,", ("data.crop_scale", "must be tuple")),
        ("--config.data.crop_scale=2,1", ("data.crop_scale", "low <= high")),
        ("--config.train.steps", ("train.steps", "needs a value")),
        ("--config.train.steps=0", ("train.steps = 0", "at least 1")),
        ("--config.encoder.variant=Q", ("encoder.variant = 'Q'", "one of 'Ti', 'S'")),
        ("--config.objective=jepa", ("objective", "did you mean 'ijepa'?")),
        ("--config.mesh.data=3", ("mesh = (3, 1, 1)", "must be 8, the number of devices")),
        ("--config.optim.lr=nan", ("optim.lr = nan", "finite")),
        ("--config.data.crop_ratio=1,1e999", ("data.crop_ratio", "finite")),
        ("--config.optim.lr=0", ("optim.lr = 0.0", "above 0")),
        ("--config.optim.final_lr=-1", ("optim.final_lr", "at least 0")),
        ("--config.optim.weight_decay=-0.1", ("optim.weight_decay", "at least 0")),
        ("--config.optim.b2=1", ("optim.b2 = 1.0", "0 <= value < 1")),
        ("--config.optim.eps=0", ("optim.eps", "above 0")),
        ("--config.eval.temperature=0", ("eval.temperature", "above 0")),
        ("--config.conditioner.mlp_ratio=-1", ("conditioner.mlp_ratio", "at least 0")),
        ("--config.optim.warmup_steps=9999", ("below train.steps", "--config.optim.warmup_steps=")),
        ("--config.text.words=0", ("text.words = 0", "at least 1")),
        ("--config.eval.batch_size=-1", ("eval.batch_size = -1", "at least 1")),
        ("--config.eval.every=-1", ("eval.every = -1", "at least 1")),
        ("--config.seed=-1", ("seed = -1", "0 <= seed < 2**32")),
        ("--config.masks.context_tokens=15", ("masks.context_tokens = 15", "at most")),
        ("--config.data.kind=tar", ("data.path", "needs the folder")),
        ("--workdr=x", ("'--workdr=x'", "did you mean --workdir?")),
        ("surplus", ("'surplus'", "train takes --config, --workdir")),
    ],
)
def test_bad_arguments_are_refused(capsys, tmp_path, argument, parts):
    line = refused(capsys, *TRAIN, str(tmp_path / "run"), argument)
    assert all(part in line for part in parts), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (None, "no such file"),
        ("def get_config():\n    return unheard_of\n", "NameError: name 'unheard_of'"),
        ("def get_config():\n    raise ValueError('two\\nlines')\n", "ValueError: two (line 2)"),
        ("def get_config(:\n", "SyntaxError"),
        ("import nowhere\n", "ModuleNotFoundError: No module named 'nowhere'"),
        ("config = 1\n", "AttributeError"),
        ("def get_config():\n    pass\n", "must return a ConfigDict, not NoneType"),
        ("def get_config(arg):\n    return {}\n", "TypeError: get_config() missing"),
        ("def get_config():\n    return {'trian': {}}\n", "did you mean train?"),
        ("def get_config():\n    return {'train': {'stepz': 1}}\n", "did you mean train.steps?"),
        ("def get_config():\n    return {'train': {'steps': '1'}}\n", "must be int, not str"),
        ("def get_config():\n    return {'train': 1}\n", "holds keys of its own"),
    ],
)
def test_bad_config_files_are_refused(capsys, tmp_path, text, part):
    file = tmp_path / "config.py"
    if text is not None:
        file.write_text(text)
    assert part in refused(capsys, "train", f"--config={file}", "--workdir", str(tmp_path / "run"))


def test_bad_arguments_of_a_config_file_are_refused(capsys, tmp_path):
    line = refused(capsys, "train", f"--config={TINY}:speed=9", "--workdir", str(tmp_path))
    assert "config argument = 'speed=9'" in line


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], f"one of {', '.join(VERBS)}"),
        (["fly"], "one of train, preview, "),
        (["trian", "--workdir", "x"], "no such command; did you mean train?"),
        (["checkpoint", "lst"], "did you mean checkpoint ls?"),
        (["checkpoint"], "one of checkpoint ls, checkpoint show"),
        (["eval", "compair"], "did you mean eval compare?"),
        (["run", "--json", "x"], "one of runs ls, runs show, runs compare"),
        (["train", "--workdir", "x"], "--config = '': give FILE"),
        (["train", "--config", TINY], "--workdir = '': give DIR"),
        (["train", "--config", TINY, "--workdir", "gs://b/run"], "a folder, not a URL"),
        (["train", "--config"], "expected one argument"),
        (["preview", "--config", TINY, "--what", "mask"], "did you mean 'masks'?"),
        (["report", "--workdir", "x", "--config.seed=1"], "takes no overrides"),
        (["report", "--workdir", "/nowhere"], "no such folder"),
        (["report", "--workdir", str(ROOT / "tests")], "holds no run"),
    ],
)
def test_incomplete_commands_are_refused(capsys, argv, part):
    assert part in refused(capsys, *argv)


def test_a_workdir_that_cannot_be_written_is_refused(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is no folder" in refused(capsys, *TRAIN, str(tmp_path / "file"), SPREAD)
    assert "is no folder" in refused(capsys, *TRAIN, str(tmp_path / "file/run"), SPREAD)
    if os.getuid():
        tmp_path.chmod(0o500)
        assert "cannot be written" in refused(capsys, *TRAIN, str(tmp_path / "run"), SPREAD)


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_data_that_cannot_be_read_are_refused(capsys, tmp_path, kind):
    nowhere, empty = tmp_path / "nowhere", tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file").write_text("")
    for path in (nowhere, empty, tmp_path / "file"):
        argv = (f"--config.data.kind={kind}", f"--config.data.path={path}", SPREAD)
        line = refused(capsys, *TRAIN, str(tmp_path / "run"), *argv)
        assert "data.path" in line and str(path) in line
    assert not (tmp_path / "run").exists()


def test_other_failures_keep_their_traceback_and_an_interrupt_is_quiet(
    monkeypatch, capsys, tmp_path
):
    argv = ("preview", "--config", TINY, "--what", "config", "--out", str(tmp_path))
    for error, expected in ((RuntimeError("ours"), None), (KeyboardInterrupt(), 130)):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(configs, "load", fail)
        if expected is None:
            with pytest.raises(RuntimeError):
                main(argv)
        else:
            assert main(argv) == expected
    assert capsys.readouterr().err == ""


def test_several_lines_of_an_error_become_one(monkeypatch, capsys, tmp_path):
    def fail(*_):
        raise ConfigError("workdir", "w", "another run:\n  seed: 0 -> 1\n  train.steps: 1 -> 2")

    monkeypatch.setattr(configs, "load", fail)
    line = refused(capsys, "preview", "--config", TINY, "--what", "config")
    assert line.endswith("another run: seed: 0 -> 1; train.steps: 1 -> 2\n")


@pytest.mark.parametrize("words", [["train", "--config", "tests/configs_tiny.py", "--workdir"],
                                   ["report", "--workdir"], ["eval", "--workdir"],
                                   ["checkpoint ls", "--workdir"]])  # fmt: skip
def test_the_home_of_an_unknown_user_is_one_line(words, capsys):
    words = [part for word in words for part in word.split()]
    assert main([*words, "~nobody_of_this_name/run"]) == 5
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1 and "--workdir = '~nobody_of_this_name/run': no such user" in error
    )
