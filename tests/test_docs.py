"""Promises of README and docs/: their commands are known, and they run; the site builds."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from jepa_vl.cli import main

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples/quickstart.ipynb"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^```(\w*)(?: title=\"(.+?)\")?\n(.*?)^```$", re.M | re.S)
EXTRAS = set(re.findall(r'^        "(\w+)": ', (ROOT / "setup.py").read_text(), re.M))
TIMED = ("benchmarks/", "studies/", "launch/soak.py")  # run in small by tests of their own


class Block(NamedTuple):
    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in FENCE.findall(page.read_text())]


def commands(page: Path) -> list[str]:
    """Those that a reader is told to give: the lines of blocks of bash."""
    found = [block.text for block in blocks(page) if block.language == "bash"]
    return [line for text in found for line in text.replace("\\\n", "").splitlines() if line]


def written_here(page: Path) -> set[str]:
    return {block.title for block in blocks(page)}


def check(line: str, page: Path) -> None:
    """Fails where a command names what is not there."""
    program, *words = shlex.split(line)
    files = [word.partition(":")[0] for word in words if re.search(r"\.(py|sh)(:|$)", word)]
    for file in files:
        assert (ROOT / file).is_file() or file in written_here(page), f"{line}: no file {file}"
    if program == "jepa-vl":
        assert words == ["--version"] or main._parse(words)
    elif program == "pip":
        extras = re.findall(r"\[([\w,]+)\]", line)
        assert words[:2] == ["install", "-e"] and set(",".join(extras).split(",")) <= EXTRAS | {""}
    elif program in ("python", "touch", "pytest"):
        return
    else:
        assert (ROOT / program).is_file() and os.access(ROOT / program, os.X_OK), line


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_name_what_is_there(page):
    for line in commands(page):
        check(line, page)


@pytest.mark.parametrize(
    "line",
    [
        "jepa-vl trian --config configs/quickstart.py", "jepa-vl eval --wrkdir runs/a",
        "jepa-vl train --config configs/absent.py --workdir a", 'pip install -e ".[absent]"',
        "launch/absent.sh", "python examples/absent.py",
    ],
)  # fmt: skip
def test_a_command_of_what_is_not_there_is_noticed(line):
    with pytest.raises((AssertionError, main.ConfigError)):
        check(line, PAGES[0])


def cells() -> list[str]:
    """Cells of code of the notebook, without the first, which fetches the repository."""
    page = json.loads(NOTEBOOK.read_text())
    assert (page["nbformat"], page["nbformat_minor"]) == (4, 5)
    code = [cell for cell in page["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code)
    first, *rest = ["".join(cell["source"]) for cell in code]
    assert first.startswith("!git clone")
    return rest


def test_the_notebook_names_what_is_there():
    for cell in cells():
        lines = cell.splitlines()
        for line in lines:
            if line.startswith("!"):
                check(line[1:], PAGES[0])
        ast.parse("\n".join(line for line in lines if not line.startswith("!")))


def test_pages_are_linked_and_what_they_link_to_is_there():
    for page in PAGES[1:]:
        for target in re.findall(r"\]\(([^)#]+\.md)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).is_file(), f"{page}: {target}"
    listed = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert str(page.relative_to(ROOT / "docs")) in listed, f"{page} is not in the navigation"


# In place of `jepa-vl`: the same command, with a run of seconds.
SHIM = """\
import sys
from jepa_vl.cli import main
words = sys.argv[1:]
small = {{
    "train": "train.steps=12 train.batch_size=8 checkpoint.every=6 eval.every=12 eval.k=5 "
    "eval.train_images=48 eval.val_images=16 log.diagnostics_every=6 log.diagnostics_images=16 "
    "optim.warmup_steps=2 loss.ramp_steps=2 data.workers=0 "
    "data.train_size=400 health.data_images=16 log.tensorboard=False",
    "eval": "eval.train_images=64 eval.val_images=16 eval.probe_steps=4",
}}.get(words[0] if words[1:2] != ["compare"] else "", "")
words = [{swap}.get(word, word) for word in words]
sys.exit(main.main(words + [f"--config.{{key}}" for key in small.split()]))
"""
# Steps of a run of a thousand, and what they are of one of twelve.
SWAP = {
    "400": "6", "@1000": "@12", "100:110": "4:5",
    **{f"runs/quickstart/eval_1000_{b}.json": f"runs/quickstart/eval_12_{b}.json"
       for b in ("target", "context")},
}  # fmt: skip


class Bench:
    """A folder that looks like the repository to commands, which are made short."""

    def __init__(self, folder: Path, copied: bool = False):
        self.folder, programs = folder, folder / "bin"
        programs.mkdir(parents=True)
        for name in ("configs", "launch", "examples", "jepa_vl", "studies", "tests"):
            if copied:
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__py*"))
            else:
                (folder / name).symlink_to(ROOT / name)
        (programs / "shim.py").write_text(SHIM.format(swap=SWAP))
        for name, call in {
            "jepa-vl": f"{sys.executable} {programs}/shim.py",
            "pip": "true",
        }.items():
            (programs / name).write_text(f'#!/bin/sh\nexec {call} "$@"\n')
            (programs / name).chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(folder if copied else ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        }

    def run(self, line: str) -> None:
        done = subprocess.run(
            line, shell=True, cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout[-4000:]}"


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Path:
    """What pages begin with: a run of the quickstart, a folder of pictures, a table of points."""
    bench = Bench(tmp_path_factory.mktemp("ready"))
    bench.run("jepa-vl train --config configs/quickstart.py --workdir runs/quickstart")
    bench.run("python examples/make_folder.py photos --images 40 --size 64")
    rows = [
        (n, d, 1.7 + 400 / n**0.34 + 410 / d**0.28)
        for n in (1e8, 2e8, 4e8, 8e8)
        for d in (2e9, 4e9, 8e9, 16e9)
    ]
    text = "\n".join(",".join(map(str, row)) for row in [("N", "D", "loss"), *rows])
    (bench.folder / "points.csv").write_text(text)
    return bench.folder


def executed(page: Path) -> list[str]:
    """Commands of a page that this machine can run within seconds."""
    lines = commands(page)
    # Minutes, or what those leave; each has tests of its own.
    studied = [f"jepa-vl scaling {what}" for what in ("run", "ledger", "report", "coords")]
    studied += ["jepa-vl scaling fit --ledger"]
    elsewhere = ("jepa-vl compile", *studied, "pytest", "launch/local_multi")
    timed = [f"python {name}" for name in TIMED]
    return [line for line in lines if not line.startswith((*elsewhere, *timed))]


def repeats_the_readme(page: Path) -> bool:
    return page != PAGES[0] and set(executed(page)) <= set(executed(PAGES[0]))


RUN = [page for page in PAGES if page.name != "add-a-method.md" and not repeats_the_readme(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page, ready, tmp_path):
    bench = Bench(tmp_path / "bench")
    makes = any("make_folder.py" in line for line in commands(page))
    for name in ("runs", "points.csv", *([] if makes else ["photos"])):
        copy = shutil.copytree if (ready / name).is_dir() else shutil.copy
        copy(ready / name, bench.folder / name)
    for line in executed(page):
        bench.run(line.replace("--images 400", "--images 40"))


@pytest.mark.slow
def test_the_cells_of_the_notebook_run(ready, tmp_path):
    bench = Bench(tmp_path / "bench")
    for name in ("runs", "photos"):
        shutil.copytree(ready / name, bench.folder / name)
    # What a notebook has of itself: a way to show things, and the names of earlier cells.
    shown = "class HTML:\n    def __init__(self, shown):\n        assert shown\n\n\nImage = HTML\n"
    (bench.folder / "IPython").mkdir()
    (bench.folder / "IPython" / "__init__.py").write_text("")
    (bench.folder / "IPython" / "display.py").write_text(shown)
    bench.environment["PYTHONPATH"] = f"{bench.folder}:{ROOT}"
    before, done = "", set(executed(PAGES[0])) - {"jepa-vl report --workdir runs/quickstart"}
    for cell in cells():
        if not cell.startswith("!"):
            before += cell + "\n"
            (bench.folder / "cells.py").write_text(before)
            bench.run(f"{sys.executable} cells.py")
            continue
        for line in cell.replace("!", "").splitlines():
            if line not in done and "make_folder" not in line:  # else it is there already
                bench.run(line)
    assert (bench.folder / "words.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_method_is_added_as_the_tutorial_says(tmp_path):
    page = ROOT / "docs/tutorials/add-a-method.md"
    bench, new = Bench(tmp_path / "bench", copied=True), 0
    for block in blocks(page):
        if block.language == "python":
            file = bench.folder / block.title
            before = file.read_text() if file.exists() else ""
            if before:  # a line among those that import
                assert len(block.text.splitlines()) == 1
                first = before.index("from jepa_vl.objectives import")
                file.write_text(before[:first] + block.text + before[first:])
            else:
                file.write_text(block.text)
            new += len(block.text.splitlines())
    assert new < 150
    bench.run(f"{sys.executable} -m pytest -q -n 0 tests/test_blockjepa.py")
    for line in executed(page):
        bench.run(line)


def test_the_site_builds_without_a_broken_link(tmp_path):
    pytest.importorskip("mkdocs", reason="the site is built with the docs extra")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    keys = (tmp_path / "reference/configuration/index.html").read_text()
    assert "optim.final_ema" in keys and "encoder.patch_size" in keys
    assert "jepa-vl train" in (tmp_path / "reference/commands/index.html").read_text()
