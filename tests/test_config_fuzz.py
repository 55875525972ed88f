"""Thousands of mutated recipes: each is the plan of a run or one clear line, soon and in bounds."""

import contextlib
import dataclasses
import json
import re
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from jepa_vl import objectives, pretrained, sharding
from jepa_vl.cli import configs
from jepa_vl.cli.main import main, one_line
from jepa_vl.config import Config, ConfigError, config_hash, resolve, to_dict
from jepa_vl.data import masking, sources
from jepa_vl.methods import METHODS
from jepa_vl.models import text
from jepa_vl.training import plan
from tests.mutations import HUGE, WORLD, commands, holder, recipe, trees
from tests.test_recipes import ROOT, TOWERS

# Seconds after which an example counts as hanging: of this process's work, and of waiting. (SIGPROF
# belongs to the TPU compiler, where one test before has loaded it.)
HANG = {signal.ITIMER_VIRTUAL: 60, signal.ITIMER_REAL: 600}
ROOM = 3 * 2**30  # bytes of address space that one example may add
LINE = 1000  # letters of a clear line, at most
UNTRACED = ("data", "optim", "mesh", "checkpoint", "log", "eval")  # shapes do not depend on them
LAYERS = {"num_layers": 2, "num_hidden_layers": 2}  # of the towers that recipes name


@pytest.fixture(scope="module", autouse=True)
def no_downloads(tmp_path_factory):
    """The towers that recipes name are folders here, without weights; there is no hub."""
    folders = {}
    for number, (name, content) in enumerate(TOWERS.items()):
        folders[name] = tmp_path_factory.mktemp(f"tower{number}")
        (folders[name] / "config.json").write_text(json.dumps(content | LAYERS))
    found = pretrained.locate

    def locate(path, key, weights=True):
        return folders.get(path) or found(path, key, weights)

    def from_hub(path, key, weights):
        raise ConfigError(key, path, "cannot be had from the hub (a test); offline, give a folder")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pretrained, "_from_hub", from_hub)
        for module in (text, pretrained):
            patched.setattr(module, "locate", locate)
        yield


class Hang(BaseException):
    """No Exception: nothing in between may catch it."""


@contextlib.contextmanager
def guarded():
    """Stops what takes minutes or gigabytes."""

    def ring(number, _):
        raise Hang(signal.Signals(number).name)

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = {number: signal.signal(number, ring) for number in (signal.SIGVTALRM, signal.SIGALRM)}
    for timer, seconds in HANG.items():
        signal.setitimer(timer, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, limits[1]))
    try:
        yield
    finally:
        for timer in HANG:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def configured(case) -> Config:
    """What a tree or words of the command line resolve to."""
    if isinstance(case, dict):
        config = resolve(case)
        masking.plan_masks(config)
        return config
    base, words = case
    return configs.change(base, configs.take_overrides(words)[1])


def clear(error: ConfigError) -> None:
    """An error is one line of a length to be read, which names key and rule."""
    line = one_line(error)
    assert line.isprintable() and len(line) < LINE and line.encode(), line
    assert isinstance(error.key, str) and error.key and error.rule


class Judge:
    """Says what becomes of configurations; those that are traced alike are traced once.

    Attributes:
      traces: how many may still be traced; beyond them names and sizes alone are checked.
    """

    def __init__(self, traces: int):
        self.traces, self.known = traces, {}

    def __call__(self, case) -> None:
        with guarded():
            try:
                config = configured(case)
                assert resolve(to_dict(config)) == config and len(config_hash(config)) == 12
                self.plan(config)
                sources.open_sources(config)
            except ConfigError as error:
                clear(error)

    def plan(self, config: Config) -> None:
        mesh = sharding.make_mesh(config.mesh)
        sharding.check_batch(config.train, mesh)
        traced = {k: v for k, v in to_dict(config).items() if k not in UNTRACED}
        traced = json.dumps(traced | {"mesh": dict(mesh.shape)}, sort_keys=True)
        if traced not in self.known:
            if not self.traces:
                objectives.build(config).frozen_spec()
                return
            self.traces -= 1
            self.known[traced] = self.trace(config, mesh)
        if self.known[traced] is not None:
            raise self.known[traced]

    def trace(self, config: Config, mesh: Any) -> ConfigError | None:
        try:
            assert plan.make(config, mesh).flops().total > 0
        except ConfigError as error:
            return error


def fuzz(examples: int, traces: int) -> None:
    judge = Judge(traces)

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(trees() | commands())
    def run(case):
        judge(case)

    run()
    assert len(judge.known) >= 6  # it is no test of refusals alone


@pytest.mark.usefixtures("quick_compilation")
def test_mutated_recipes_are_plans_or_clear_lines():
    fuzz(examples=200, traces=6)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_two_thousand_mutated_recipes_are_plans_or_clear_lines():
    fuzz(examples=2000, traces=2000)


# What the first thousands found: once a traceback, a hang or gigabytes.
FOUND = [
    ("masks.target_blocks", 1_000_000, "at most 256"),
    ("encoder.depth", 100_000, "at most 64"),
    ("encoder.patch_size", 0, "at least 1"),
    ("encoder.width", 2**20, "at most 16384"),
    ("loss.contrast_images", 10_000, "at most 64"),
    ("conditioner.mlp_ratio", 1e-9, "at least 1 / predictor.width"),
    ("conditioner.mlp_ratio", HUGE, "must be finite"),
    ("optim.lr", 1e300, "as float32 holds"),
    ("optim.eps", 1e-300, "above 0"),
    ("optim.schedule_scale", 1e30, "schedules must be 1 to"),
    ("train.steps", 2**31, "from -2147483647 to 2147483647"),
    ("data.crop_ratio", (1, HUGE), "from -2147483647"),
    ("data.crop_ratio", (None, 1), "holds words or numbers alone"),
    ("eval.tasks", ([0.1, 0.2], 1), "holds names alone"),
    ("data.path", "a\nb", "without control characters"),
    ("text.path", "x" * 5000, "has 5000 letters"),
    ("frozen.image", "x" * 300, "a name in it has 300 bytes"),
    ("train", 3, "holds keys of its own"),
]


@pytest.mark.parametrize(("key", "value", "rule"), FOUND)
def test_what_was_found_is_refused_by_a_rule(key, value, rule):
    tree = dataclasses.asdict(recipe(*WORLD, "", True))
    section, last = holder(tree, key)
    section[last] = value
    with pytest.raises(ConfigError, match=re.escape(rule)) as caught:
        resolve(tree)
    assert caught.value.key == key
    clear(caught.value)


@pytest.mark.parametrize("tree", [None, 3, [], "train", {1: 2}, {b"x": {}}, {"train": {None: 1}}])
def test_what_is_no_tree_of_words_is_refused(tree):
    with pytest.raises(ConfigError) as caught:
        resolve(tree)
    clear(caught.value)


@pytest.mark.parametrize("value", ["(" * 5000, "[" * 5000 + "]" * 5000, "9" * 5000, "\0", "1,\0"])
def test_text_that_python_cannot_read_is_refused(value):
    for key in ("data.crop_scale", "train.steps", "optim.lr", "log.tensorboard"):
        with pytest.raises(ConfigError) as caught:
            configured((recipe(*WORLD, "", True), [f"--config.{key}={value}"]))
        clear(caught.value)


@pytest.mark.parametrize("objective", METHODS)
@pytest.mark.parametrize("key", ["conditioner.fusion", "loss.regulariser", "loss.distance"])
def test_preview_refuses_names_that_nothing_is_registered_under(capsys, objective, key):
    words = [f"--config.objective={objective}", f"--config.{key}=papier"]
    config = str(ROOT / "quickstart.py")
    assert main(["preview", "--config", config, "--what", "config", *words]) == 5
    assert f"{key} = 'papier': one of" in capsys.readouterr().err


def test_a_folder_of_an_unknown_user_is_no_folder():
    for key, kind in (("data.path", {"data.kind": "folder"}), ("text.path", {"text.kind": "t5"})):
        values = {**kind, key: "~nobody_here/x"}
        words = [f"--config.{name}={value}" for name, value in values.items()]
        config = configured((recipe(*WORLD, "", True), words))
        with pytest.raises(ConfigError) as caught:
            objectives.build(config)
            sources.open_sources(config)
        assert caught.value.key == key and "~nobody_here" in str(caught.value)
