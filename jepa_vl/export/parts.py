"""What a run trains, by our names: text tower, predictor, conditioner, or the whole model."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from jepa_vl.config import Config, ConfigError, to_dict
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


def write(
    part: str, arrays: dict[str, Array], config: Config, facts: dict[str, Any], out: Path
) -> None:
    """Writes a folder: the arrays, the run's configuration, a card.

    Args:
      part: of :data:`PARTS`, or :data:`WHOLE`.
      arrays: by their names in the train state, which parts keep without the branch.
      config: of the run.
      facts: of the checkpoint, see ``base.Encoder``.
      out: folder that does not exist yet; it appears when what was written was read again and is
        the same, bit by bit.

    Raises:
      ConfigError: the folder is there already, or cannot be written.
    """
    if out.exists():
        raise ConfigError("--out", str(out), "is there already; name a new folder")
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        renamed = arrays
        if part != WHOLE:
            renamed = {name.partition("/")[2]: x for name, x in arrays.items()}
        metadata = {"format": "np", "part": part, "config": json.dumps(to_dict(config))}
        tensors.write(temporary / WEIGHTS, renamed, metadata, "--out")
        write_json(temporary / "config.json", to_dict(config))
        (temporary / "README.md").write_text(_card(part, renamed, config, facts))
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _card(part: str, arrays: dict[str, Array], config: Config, facts: dict[str, Any]) -> str:
    count = sum(x.size for x in arrays.values())
    rows = {
        "part": f"{part}, {len(arrays)} arrays, {count:,} parameters",
        "trained on": facts["data"],
        "step, configuration, commit": f"{facts['step']}, {facts['config_hash']}, {facts['git']}",
    }
    lines = [f"# {config.objective}: {part}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "Names are those of a train state; config.json is the run's configuration, from"]
    lines += ["which the module is built that takes them. The file was read again and compared bit"]
    lines += ["by bit before it appeared. No other library has this part.", ""]
    if part == WHOLE:
        lines += ["`jepa-vl eval --model FOLDER`, also with `--task grounding` where words look at"]
        lines += ["patches, and `jepa-vl report --model FOLDER` read it, `init_from` too.", ""]
    return "\n".join(lines)
