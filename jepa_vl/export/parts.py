"""What a run trains, by our names: text tower, predictor, conditioner, or the whole model."""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.numpy import load_file

from jepa_vl.config import Config, ConfigError, to_dict
from jepa_vl.export import process, write
from jepa_vl.export.base import WEIGHTS, write_json
from jepa_vl.models import tensors
from jepa_vl.shapes import Array

WHOLE = "whole"  # parameters and target, which are a model: its names keep the branch
# Part -> how the names of its arrays begin in a train state, the EMA before what is trained.
PARTS = {
    "text": {"target": ("target/text/", "params/text/"), "context": ("params/text/",)},
    "predictor": dict.fromkeys(("target", "context"), ("params/predictor/",)),
    "conditioner": dict.fromkeys(("target", "context"), ("params/predictor/conditioner_",)),
}
FORMAT = "safetensors"
PLACE = "place"  # metadata: params or target, which names of parts leave out
LOAD = """\
import json
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import load_file
from jepa_vl.config import resolve
from jepa_vl.training import whole

file = Path(folder, "model.safetensors")
with safe_open(file, "np") as opened:
    place = opened.metadata().get("place")
begin = f"{place}/" if place else ""
arrays = {begin + name: x for name, x in load_file(file).items()}
config = resolve(json.loads(Path(folder, "config.json").read_text()))
model = whole.fit(config, {**others, **arrays}, ("--part", folder))
outputs = whole.outputs(model, batch)
"""
BEFORE = """\
import sys

import numpy
from safetensors.numpy import load_file

sys.path.append(home)
batch, others = load_file(given), load_file(beside)
"""
AFTER = """
import jax
from safetensors.numpy import save_file
from jepa_vl import __version__

save_file(outputs, found)
print(json.dumps({"jepa_vl": __version__, "jax": jax.__version__}))
"""


class Probe(NamedTuple):
    """What a part is held to: its model's outputs, with the part from its files and before.

    Attributes:
      others: the arrays of the model that are not the part's, by their names in the train state.
      batch: that the model computes of, arrays by name.
      outputs: of the model before.
      words: on which images, for the card.
    """

    others: dict[str, Array]
    batch: dict[str, Array]
    outputs: dict[str, Array]
    words: str


def names_of(part: str, branch: str, names: list[str], config: Config) -> list[str]:
    """The names of a part's arrays in a train state.

    Raises:
      ConfigError: its run trains no such part.
    """
    if part == WHOLE:
        return [name for name in names if name.startswith(("params/", "target/"))]
    for start in PARTS[part][branch]:
        found = [name for name in names if name.startswith(start)]
        if found:
            return found
    rule = f"the run (objective {config.objective!r}) trains none; a frozen tower is in its files"
    raise ConfigError("--part", part, rule)


def export(
    part: str,
    arrays: dict[str, Array],
    config: Config,
    facts: dict[str, Any],
    out: Path,
    probe: Probe,
) -> write.Told:
    """Writes a folder: the arrays, the run's configuration, a card.

    Args:
      part: of :data:`PARTS`, or :data:`WHOLE`.
      arrays: by their names in the train state, which parts keep without the branch.
      config: of the run.
      facts: of the checkpoint, see ``base.Encoder``.
      out: folder that does not exist yet; it appears when what was written was read again bit by
        bit, and a fresh process has computed the same from it.
      probe: what it computes.

    Raises:
      ConfigError: the folder is there already, or cannot be written.
      Differs: the outputs differ; no folder is left.
    """
    with write.appearing(out) as folder:
        renamed, place = arrays, {}
        if part != WHOLE:
            place = {PLACE: next(iter(arrays)).partition("/")[0]}
            renamed = {name.partition("/")[2]: x for name, x in arrays.items()}
        metadata = {"format": "np", "part": part, "config": json.dumps(to_dict(config)), **place}
        tensors.write(folder / WEIGHTS, renamed, metadata, "--out")
        write_json(folder / "config.json", to_dict(config))
        told = check(folder, probe)
        text = _card(part, renamed, config, facts, (told, probe.words))
        (folder / "README.md").write_text(text)
    return told


def check(folder: Path, probe: Probe) -> write.Told:
    """Compares the outputs of a model whose part a fresh process reads with those before.

    Raises:
      ConfigError: the files do not fit their configuration.
      Differs: see :func:`export`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        files = {name: str(Path(scratch, name)) for name in ("given", "beside", "found")}
        for name, held in (("given", probe.batch), ("beside", probe.others)):
            tensors.write(Path(files[name]), held, {"format": "np"}, "--out")
        home = str(Path(__file__).parents[2])
        values = {"folder": str(folder), "home": home, **files}
        said = process.run(FORMAT, BEFORE + LOAD + AFTER, values)
        theirs = load_file(files["found"])
    return write.compare(theirs, probe.outputs, json.loads(said.splitlines()[-1]))


def _card(
    part: str,
    arrays: dict[str, Array],
    config: Config,
    facts: dict[str, Any],
    checked: tuple[write.Told, str],
) -> str:
    told, images = checked
    count = sum(x.size for x in arrays.values())
    versions = ", ".join(f"{package} {version}" for package, version in told.versions.items())
    rows = {
        "part": f"{part}, {len(arrays)} arrays, {count:,} parameters",
        "trained on": facts["data"],
        "step, configuration, commit": f"{facts['step']}, {facts['config_hash']}, {facts['git']}",
        "largest difference": f"{told.largest:.3g}",
        "mean difference": f"{told.mean:.3g}",
        "largest output": f"{told.scale:.3g}",
        "with": versions,
    }
    lines = [f"# {config.objective}: {part}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "Names are those of a train state; config.json is the run's configuration, from"]
    lines += ["which the module is built that takes them. The file was read again and compared bit"]
    lines += ["by bit before it appeared. No other library has this part.", ""]
    if part == WHOLE:
        lines += ["`jepa-vl eval --model FOLDER`, also with `--task grounding` where words look at"]
        lines += ["patches, and `jepa-vl report --model FOLDER` read it, `init_from` too.", ""]
    lines += [f"The differences are of what the whole model computes of {images}: features,"]
    lines += [
        "predictions, words and loss, float32, on a CPU. A process of its own has computed it"
    ]
    lines += ["by these lines, where `folder` is this one, `others` the arrays of the train state"]
    lines += ["that are not in it, and `batch` images, masks and captions:", ""]
    return "\n".join([*lines, "```python", LOAD.rstrip(), "```", ""])
