"""A whole model out of files, without the run that trained it."""

import dataclasses
from typing import Any, NamedTuple

from jepa_vl import objectives, tree
from jepa_vl.config import Config, ConfigError, defaults, resolve, to_dict
from jepa_vl.models.intake.source import Source
from jepa_vl.shapes import PyTree
from jepa_vl.training import state

SHOWN = 12  # lines of what does not fit


class Model(NamedTuple):
    """An objective and what it has learnt.

    Attributes:
      config: resolved, of the run that trained it.
      params, target: of its train state; float32 numpy arrays.
    """

    config: Config
    params: PyTree
    target: PyTree


def load(source: Source, why: str) -> Model:
    """The model that the encoder of a source is a part of.

    Args:
      source: of ``intake.open_source``.
      why: who needs it, for the error.

    Raises:
      ConfigError: the source is an encoder alone, or its arrays do not fit its configuration.
    """
    whole = source.whole
    if whole is None:
        rule = f"holds an image encoder alone ({source.kind}); {why} needs a whole model: a run, "
        raise ConfigError(*source.where, f"{rule}what `export --part whole` wrote, or zoo:NAME")
    like = _like(whole.config)
    arrays = whole.arrays()
    problems = tree.diff(like, arrays)
    if problems:
        rule = "holds what its configuration has not:\n  " + "\n  ".join(problems[:SHOWN])
        raise ConfigError(*source.where, rule)
    found = tree.map_named(lambda name, _: arrays[name], like)
    return Model(whole.config, found["params"], found["target"])


def on_scenes(trained: Config) -> Config:
    """The configuration of a model, on as many built-in scenes as any encoder is measured on."""
    plain = defaults()
    plain.objective = "ijepa"  # which reads no text
    plain.encoder.update(to_dict(trained)["encoder"])
    found = resolve(plain)
    return dataclasses.replace(trained, data=found.data, eval=found.eval)


def _like(config: Config) -> dict[str, Any]:
    objective = objectives.build(config)
    found = state.shapes(config, objective, state.batch_spec(config))
    return {"params": found.params, "target": found.target}
