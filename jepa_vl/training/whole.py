"""A whole model out of files, without the run that trained it, and what it computes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa_vl import objectives, tree
from jepa_vl.config import Config, ConfigError, defaults, resolve, to_dict
from jepa_vl.models.intake.source import Source
from jepa_vl.objectives.captions import CaptionTower
from jepa_vl.shapes import Array, PyTree
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
    return fit(whole.config, whole.arrays(), source.where)


def fit(config: Config, arrays: Mapping[str, Array], where: tuple[str, str]) -> Model:
    """The model of a configuration with these arrays.

    Args:
      config: resolved.
      arrays: by their names in the train state, ``params/...`` and ``target/...``.
      where: option and path that they come from, for the error.

    Raises:
      ConfigError: they are not those of the configuration; lists how.
    """
    like = _like(config)
    problems = tree.diff(like, arrays)
    if problems:
        rule = "holds what its configuration has not:\n  " + "\n  ".join(problems[:SHOWN])
        raise ConfigError(*where, rule)
    found = tree.map_named(lambda name, _: arrays[name], like)
    return Model(config, found["params"], found["target"])


def untrained(model: Model) -> Model:
    """The same model before training: random weights of its own seed, whatever it started from.

    Raises:
      ConfigError: a pretrained tower is absent.
    """
    first = state.untrained(model.config, objectives.build(model.config))
    return Model(model.config, *jax.device_get((first.params, first.target)))


def outputs(model: Model, batch: Mapping[str, Array]) -> dict[str, Array]:
    """What a model computes of a batch in float32, on one CPU device.

    Args:
      model: its frozen towers are read from their files.
      batch: images, masks and captions as of ``data.pipeline``.

    Returns:
      ``features`` of the target encoder [B, T, D]; ``prediction_NAME`` of each modality that is
      predicted; where captions are read ``words`` [B, N, S, E], zeros at padding, and those of
      the tower's EMA, ``words_target``; ``loss`` [].

    Raises:
      ConfigError: a frozen tower is absent.
    """
    trained = dataclasses.replace(model.config.train, dtype="float32")
    objective = objectives.build(dataclasses.replace(model.config, train=trained))

    def compute(params: PyTree, target: PyTree, frozen: PyTree, batch: PyTree) -> dict[str, Array]:
        rng, ramp = jax.random.key(0), jnp.float32(1.0)
        loss, _, aux = objective.loss(params, target, frozen, batch, rng, ramp)
        encoder = {"params": objective.encoder_params(target, frozen)}
        out: dict[str, Any] = {"features": objective.encoder.apply(encoder, batch["image"])}
        for name, found in aux.get("predicted", {}).items():
            out[f"prediction_{name}"] = found.prediction
        captions = getattr(objective, "captions", None)
        if isinstance(captions, CaptionTower):
            towers = {"words": params} | ({"words_target": target} if "text" in target else {})
            for name, weights in towers.items():
                words = captions.words(weights, frozen, batch)
                out[name] = jnp.where(words.word_mask[..., None], words.states, 0.0)
        return {**out, "loss": loss}

    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        frozen = objective.load_frozen()
        found = jax.jit(compute)(model.params, model.target, frozen, dict(batch))
        return {name: np.asarray(x, np.float32) for name, x in found.items()}


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
