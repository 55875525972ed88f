"""Fine-tuning of a copy of the encoder, with all labels or few: layer decay, smoothing, mixup."""

import dataclasses
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jepa_vl import tree
from jepa_vl.config import Config, ConfigError
from jepa_vl.data import faults, pipeline
from jepa_vl.evaluators import adam, crops, features, progress, spread
from jepa_vl.evaluators.base import NETWORK, Features, Measured, Measures, majority, register
from jepa_vl.evaluators.linear import cosine
from jepa_vl.evaluators.network import Network
from jepa_vl.models.frozen_vit import FrozenViT
from jepa_vl.models.vit import ViT, normalise
from jepa_vl.shapes import Array, PyTree
from jepa_vl.sharding import batch_sharding, replicated, round_up

LAYER_DECAY, SMOOTHING, WEIGHT_DECAY = 0.75, 0.1, 0.05
SHARE = 0.01  # of the labels


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A protocol: its source, peak learning rate (``scaled``: a batch / 256), epochs and batch."""

    source: str
    rate: float
    scaled: bool
    epochs: int
    warm_up: int
    batch: int
    mixup: float


FULL = Recipe("MAE's fine-tuning (arXiv 2111.06377)", 5e-4, True, 100, 5, 1024, 0.8)
LOW = Recipe("I-JEPA's 1 % (arXiv 2301.08243, appendix A)", 3e-5, False, 50, 5, 512, 0.0)


def layer_scales(params: PyTree, depth: int) -> PyTree:
    """What each leaf's learning rate is multiplied with: 0.75 to the number of layers above it.

    Patches, positions and class token are layer 0, blocks 1 to depth; the final norm and the head
    lie above.
    """

    def scale(name: str, _: Array) -> float:
        parts = name.split("/")
        block = next((part for part in parts if part.startswith("block_")), None)
        layer = int(block.removeprefix("block_")) + 1 if block else depth + 1
        layer = 0 if parts[-1].startswith(("patch_", "position", "cls")) else layer
        return LAYER_DECAY ** (depth + 1 - layer)

    return tree.map_named(scale, params)


def decays(params: PyTree) -> PyTree:
    """The weight decay of each leaf: matrices have one, positions have none (MAE's code)."""
    return tree.map_named(
        lambda name, p: WEIGHT_DECAY * (p.ndim > 1 and not name.endswith("position")), params
    )


def seen(encoder: Any, images: Array) -> Array:
    """uint8 [B, H, W, 3] -> float32, as the encoder normalises them."""
    if isinstance(encoder, FrozenViT):
        return normalise(images, encoder.shape.mean, encoder.shape.std)
    return normalise(images)


def targets(labels: Array, classes: int, share: Array | float) -> Array:
    """Smoothed labels, each mixed with that of the image from the other end: float32 [B, C]."""
    hot = jax.nn.one_hot(labels, classes) * (1 - SMOOTHING) + SMOOTHING / classes
    return share * hot + (1 - share) * hot[::-1]


def few(labels: Array, shots: int, seed: int) -> Array:
    """Which images keep their label: so many a class, or 1 %, at least one of each: bool [n]."""
    rng, kept = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        kept[members[: shots or max(1, round(SHARE * len(members)))]] = True
    return kept


class Tuned(Measures):
    """The encoder is trained from a copy; what was given stays as it is."""

    reads: ClassVar[str] = NETWORK
    of_pixels: ClassVar[bool] = False  # they have nothing to tune
    recipe: ClassVar[Recipe]
    low: ClassVar[bool]

    def __init__(self, config: Config, network: Network):
        """Reads ``eval.probe_steps``, ``eval.probe_batch`` and ``eval.shots``.

        Raises:
          ConfigError: the encoder is no ViT.
        """
        if not isinstance(network.encoder, ViT | FrozenViT):
            rule = "fine-tuning by layers needs an encoder that is a ViT"
            raise ConfigError("objective", config.objective, rule)
        self.config, self.network = config, network
        e, r = config.eval, self.recipe
        steps = f"{r.epochs} epochs" + (f", at most {e.probe_steps} steps" if e.probe_steps else "")
        self.protocol: dict[str, Any] = {
            "recipe": f"{r.source}, without RandAugment, erasing, CutMix and drop path",
            "optimiser": f"AdamW, weight decay {WEIGHT_DECAY} of matrices",
            "learning_rate": r.rate, "scaled_by": "batch / 256" if r.scaled else "nothing",
            "layer_decay": LAYER_DECAY, "label_smoothing": SMOOTHING, "mixup": r.mixup,
            "steps": steps, "batch": e.probe_batch or r.batch,
            "schedule": f"up for {r.warm_up} of {r.epochs} epochs, cosine to 0",
            "labels": "all" if not self.low else f"{e.shots} a class" if e.shots else "1 %",
            "training_images": f"a new crop each epoch: {crops.WORDS}",
            "layers": 1, "pooling": "mean over all patches", "chosen_on": "nothing",
        }  # fmt: skip

    def measure(self, params: PyTree) -> Measured:
        """``accuracy`` of the held-out part after training; ``images`` that it was trained on.

        Raises:
          ConfigError: no labelled image.
        """
        indices, labels = self._labelled()
        names, classes = np.unique(labels, return_inverse=True)
        kept = few(classes, self.config.eval.shots, self.config.seed) if self.low else None
        if kept is not None:
            indices, classes = indices[kept], classes[kept]
        tuned = self.tune(params, indices, classes, len(names))
        say = features.over(self.network.mesh, self._logits)
        found = self.network.labelled.read_part(1, lambda x: say(tuned, x), pipeline.centred)
        self.protocol |= self.network.labelled.describe()  # those that could be read
        right = names[found[0].argmax(axis=1)] == found[1]
        floor = majority(Features(labels, labels, found[1], found[1]))
        scores = {"accuracy": float(right.mean()), "images": float(len(indices))}
        baselines = {"majority": {"accuracy": floor}}
        return Measured(scores, {"accuracy": right[None]}, baselines=baselines)

    def _logits(self, params: Any, images: Array) -> Array:
        tokens = self.network.encoder.apply({"params": params["encoder"]}, images)
        return jnp.mean(tokens, axis=1) @ params["head"]["kernel"] + params["head"]["bias"]

    def tune(self, params: PyTree, indices: Array, labels: Array, classes: int) -> PyTree:
        """Trains encoder and head on the images of some indices, int [n], labels int [n]."""
        mesh, r, e = self.network.mesh, self.recipe, self.config.eval
        batch = round_up(min(len(indices), e.probe_batch or r.batch), mesh)
        steps = max(1, r.epochs * len(indices) // batch)
        steps = min(steps, e.probe_steps or steps)
        width = self.config.encoder.width
        head = {
            "kernel": np.zeros((width, classes), np.float32),
            "bias": np.zeros(classes, np.float32),
        }
        state: Any = {"encoder": spread.whole(params), "head": head}
        scales = layer_scales(state, self.network.depth)
        strengths = decays(state)
        state = spread.put(state, mesh)

        def loss(state: PyTree, images: Array, truth: Array, share: Array) -> Array:
            shown = seen(self.network.encoder, images)
            shown = share * shown + (1 - share) * shown[::-1]
            said = jax.nn.log_softmax(self._logits(state, shown))
            return -jnp.mean(jnp.sum(targets(truth, classes, share) * said, axis=-1))

        @functools.partial(jax.jit, out_shardings=replicated(mesh))
        def step(state: PyTree, moments: Any, batch: tuple, speed: Array) -> tuple:
            grads = jax.grad(loss)(state, *batch)
            rates = jax.tree.map(lambda scale: speed * scale, scales)
            return adam.update(state, grads, moments, rates, strengths)

        peak = r.rate * (batch / 256 if r.scaled else 1.0)
        warm = r.warm_up / r.epochs
        rng, place = np.random.default_rng([self.config.seed, 1]), batch_sharding(mesh)
        with jax.set_mesh(mesh):
            moments = jax.jit(adam.start)(state)
            for number, (images, rows) in enumerate(self._crops(indices, batch, steps)):
                done = number / steps
                speed = done / warm if done < warm else cosine((done - warm) / (1 - warm))
                share = rng.beta(r.mixup, r.mixup) if r.mixup else 1.0
                shown = features.from_all_hosts(images, place)
                truth = features.from_all_hosts(labels[rows].astype(np.int32), place)
                now = shown, truth, np.float32(share)
                state, moments = step(state, moments, now, np.float32(peak * speed))
                if number % progress.EVERY == 0:
                    jax.block_until_ready(state)
                    progress.beat()
        return state

    def _crops(self, indices: Array, batch: int, steps: int) -> Iterator[tuple[Array, Array]]:
        """Crops uint8 [B, H, W, 3] and their rows, int [B]; each epoch is another permutation."""
        rng, epoch, waiting = np.random.default_rng(self.config.seed), 0, np.zeros((0, 2), int)
        with ThreadPoolExecutor(self.config.data.threads) as pool:
            for _ in range(steps):
                while len(waiting) < batch:
                    order = rng.permutation(len(indices))
                    more = np.stack([order, np.full(len(order), epoch)], axis=1)
                    waiting, epoch = np.concatenate([waiting, more]), epoch + 1
                now, waiting = waiting[:batch], waiting[batch:]

                def look(pair: Array) -> Array:
                    source, index = self.network.train, int(indices[pair[0]])
                    return crops.crop(int(pair[1]), self.config, source, index)[1]

                yield np.stack(list(pool.map(look, now))), now[:, 0]

    def _labelled(self) -> tuple[Array, Array]:
        """Indices and labels of the training images that can be read: int [n] each."""
        source, found = self.network.train, []

        def look(index: int) -> tuple[int, int] | None:
            try:
                return index, int(pipeline.centred(self.config, source, index)[0]["label"])
            except faults.BadSample:
                return None

        with ThreadPoolExecutor(self.config.data.threads) as pool:
            found = list(pool.map(look, self.network.labelled.indices[0].tolist()))
        there = [pair for pair in found if pair is not None]
        if not there:
            rule = "none of the labelled training images can be read"
            raise ConfigError("data.path", source.name, rule)
        indices, labels = np.array(there).T
        return indices, labels


@register("finetune")
class Finetune(Tuned):
    """With all labels."""

    recipe, low = FULL, False


@register("finetune_low")
class FinetuneLow(Tuned):
    """With few labels."""

    recipe, low = LOW, True
