"""Linear segmentation of frozen patch tokens: batch normalisation, dropout and a 1 x 1 map."""

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jepa_vl.config import Config, ConfigError
from jepa_vl.data import dense, faults, transforms
from jepa_vl.data.sources import Source
from jepa_vl.evaluators import adam, heads, miou, spread
from jepa_vl.evaluators.base import NETWORK, Measured, Measures, register
from jepa_vl.evaluators.linear import cosine
from jepa_vl.evaluators.network import Network
from jepa_vl.shapes import Array, PyTree

STEPS, BATCH, WARM_UP = 40_000, 16, 1500 / 40_000  # DINOv3's, as are the numbers below
RATE, DECAY, DROPOUT, EPS = 1e-3, 1e-3, 0.1, 1e-5
STRIDE = 341 / 512  # of the sliding window over its side


class Head(NamedTuple):
    """What is trained: float32 scale [D], shift [D], weight [D, C], bias [C]."""

    scale: Array
    shift: Array
    weight: Array
    bias: Array


class Fitted(NamedTuple):
    """A head with running statistics of its batch normalisation: float32 [D] each."""

    head: Head
    mean: Array
    variance: Array


def schedule(progress: float) -> float:
    """A linear warm-up, then a cosine to 0."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return cosine((progress - WARM_UP) / (1 - WARM_UP))


def logits(head: Head, normed: Array, size: int) -> Array:
    """[B, T, D] -> [B, size, size, C]: of patches, then bilinear (torch's align_corners=False)."""
    x = (normed * head.scale + head.shift) @ head.weight + head.bias
    grid = round(x.shape[1] ** 0.5)
    x = x.reshape(len(x), grid, grid, -1)
    return jax.image.resize(x, (len(x), size, size, x.shape[-1]), "linear")


def cross_entropy(scores: Array, masks: Array) -> Array:
    """Mean over pixels that have a class: float32 [B, S, S, C] and int32 [B, S, S]."""
    known = masks != miou.IGNORED
    picked = jnp.where(known, masks, 0)[..., None]
    each = -jnp.take_along_axis(jax.nn.log_softmax(scores), picked, axis=-1)[..., 0]
    return jnp.sum(each * known) / jnp.maximum(1, jnp.sum(known))


def fit(
    tokens: Array, masks: Array, classes: int, plan: heads.Plan, mesh: Mesh | None = None
) -> Fitted:
    """Trains the head.

    Args:
      tokens: float32 [n, T, D]; masks: int32 [n, S, S].
      classes: C.
      plan: of steps, batches and the learning rate.
      mesh: devices that share each batch where they divide it; None: one.
    """
    width, size = tokens.shape[-1], masks.shape[-1]
    first = heads.INIT_STD * np.random.default_rng(plan.seed).normal(size=(width, classes))
    zeros, ones = np.zeros(width, np.float32), np.ones(width, np.float32)
    head = Head(ones, zeros, first.astype(np.float32), np.zeros(classes, np.float32))
    key = jax.random.key(plan.seed)

    def step(state: tuple, data: tuple, batch: tuple) -> tuple:
        head, moments, mean, variance, count = state
        rows, factor = batch
        x, truth = (spread.rows(part, rows) for part in data)
        centre, varied = x.mean(axis=(0, 1)), x.var(axis=(0, 1))
        normed = (x - centre) * jax.lax.rsqrt(varied + plan.eps)
        kept = jax.random.bernoulli(
            jax.random.fold_in(key, count), 1 - DROPOUT, (len(rows), 1, width)
        )

        def loss(head: Head) -> Array:
            shifted = (normed * head.scale + head.shift) * kept / (1 - DROPOUT)
            plain = head._replace(scale=jnp.float32(1), shift=jnp.float32(0))
            return cross_entropy(logits(plain, shifted, size), truth)

        grads = jax.grad(loss)(head)
        head, moments = adam.update(head, grads, moments, RATE * factor, DECAY)
        pixels = len(rows) * tokens.shape[1]
        unbiased = varied * (pixels / max(1, pixels - 1))
        mean = (1 - heads.BN_MOMENTUM) * mean + heads.BN_MOMENTUM * centre
        variance = (1 - heads.BN_MOMENTUM) * variance + heads.BN_MOMENTUM * unbiased
        return head, moments, mean, variance, count + 1

    def parts() -> Iterator[tuple]:
        done = 0
        for rows, _ in heads.batches(len(tokens), 1, plan):
            progress = (done + np.arange(len(rows))) / plan.steps
            yield rows, np.array([plan.factor(p) for p in progress], np.float32)
            done += len(rows)

    state = (head, adam.start(head), zeros, ones, np.int32(0))
    head, _, mean, variance, _ = spread.scan(step, state, (tokens, masks), parts(), mesh)
    return Fitted(head, mean, variance)


@register("segmentation")
class Segmentation(Measures):
    """DINOv3's linear segmentation, without its photometric distortion and category ratio."""

    reads: ClassVar[str] = NETWORK

    def __init__(self, config: Config, network: Network):
        """Reads ``eval.crops``, ``probe_steps``, ``probe_batch`` and ``reduce_zero_label``.

        Raises:
          ConfigError: the data have no masks, or other classes in the held-out part.
        """
        self.config, self.network = config, network
        names = {
            tuple(getattr(p, "segment_classes", ())) for p in (network.train, network.held_out)
        }
        self.names = list(max(names, key=len))
        if not self.names:
            rule = "segmentation needs masks: kind mask_folder or shapes_world"
            raise ConfigError("data.kind", config.data.kind, rule)
        if len(names) > 1:
            rule = "masks of the held-out part count in other classes than those of the training"
            raise ConfigError("eval.path", config.eval.path, rule)
        e = config.eval
        reduce = e.reduce_zero_label
        self.classes = len(self.names) - reduce
        self.size = config.encoder.image_size
        self.stride = max(1, round(self.size * STRIDE))
        crops = f"{e.crops} an image, scale 0.5 to 2, mirrored by chance" if e.crops else "centres"
        self.protocol: dict[str, Any] = {
            "recipe": "DINOv3's linear segmentation",
            "head": f"batch normalisation, dropout of channels {DROPOUT}, 1 x 1",
            "optimiser": f"AdamW, rate {RATE}, weight decay {DECAY}",
            "schedule": f"warm-up {WARM_UP:.2%} of the steps, cosine to 0",
            "steps": e.probe_steps or STEPS, "batch": e.probe_batch or BATCH,
            "crops": f"{self.size} x {self.size}, {crops}",
            "test": f"short side {self.size}, windows of {self.size} every {self.stride}; their "
            "logits are averaged, then enlarged to the image",
            "background": "0 is no class" if reduce else f"0 ({self.names[0]}) is a class",
            "ignored": "255" if not reduce else "0 and 255",
            "classes": self.classes, "mean": "over classes that occur in truth or prediction",
        }  # fmt: skip

    def measure(self, params: PyTree) -> Measured:
        """``miou``, ``class_accuracy`` and ``pixel_accuracy`` of the held-out part.

        Raises:
          ConfigError: a part has no mask, or one that does not fit its image.
        """
        tokens, masks = self._training(params)
        e = self.config.eval
        batch = min(len(tokens), e.probe_batch or BATCH)
        plan = heads.Plan(e.probe_steps or STEPS, batch, schedule, False, EPS, self.config.seed)
        fitted = fit(tokens, masks, self.classes, plan, self.network.mesh)
        seen = np.bincount(masks[masks != miou.IGNORED], minlength=self.classes)
        commonest = int(seen.argmax())
        each, plain = [], []
        for image, truth in self._images(1, self.network.held_out):
            found = self.segment(params, fitted, image)
            each.append(miou.confusion(found, truth, self.classes))
            plain.append(miou.confusion(np.full_like(truth, commonest), truth, self.classes))
        crops = max(1, e.crops)
        self.protocol["masks"] = {"train": len(masks) // crops, "held_out": len(each)}
        floor = miou.scores(np.sum(plain, axis=0))
        return Measured(
            miou.scores(np.sum(each, axis=0)),
            {},
            {"miou": miou.interval(np.stack(each))},
            {"majority": {name: floor[name] for name in ("miou", "pixel_accuracy")}},
        )

    def segment(self, params: PyTree, fitted: Fitted, image: Array) -> Array:
        """Classes of all pixels by the sliding window: uint8 [H, W, 3] -> int [H, W]."""
        height, width = image.shape[:2]
        small = dense.scaled(image, np.zeros((height, width), np.uint8), self.size)[0]
        corners = dense.windows(small.shape[0], small.shape[1], self.size, self.stride)
        total = np.zeros((*small.shape[:2], self.classes), np.float32)
        count = np.zeros((*small.shape[:2], 1), np.float32)
        shown = [small[t : t + self.size, u : u + self.size] for t, u in corners]
        for (top, left), found in zip(corners, self._windows(params, fitted, shown), strict=True):
            area = slice(top, top + self.size), slice(left, left + self.size)
            total[area] += found
            count[area] += 1
        whole = jax.image.resize(total / count, (height, width, self.classes), "linear")
        return np.asarray(whole.argmax(axis=-1))

    def _windows(self, params: PyTree, fitted: Fitted, shown: list[Array]) -> Iterator[Array]:
        size = self.config.eval.batch_size
        for start in range(0, len(shown), size):
            part = shown[start : start + size]
            full = np.stack(part + part[-1:] * (size - len(part)))
            tokens = self.network.tokens(params, full)[: len(part)]
            normed = (tokens - fitted.mean) / np.sqrt(fitted.variance + EPS)
            yield from np.asarray(logits(fitted.head, jnp.asarray(normed), self.size))

    def _training(self, params: PyTree) -> tuple[Array, Array]:
        """Tokens of crops, float32 [n, T, D], and their masks, int32 [n, S, S]."""
        size, e = self.config.eval.batch_size, self.config.eval
        there = int(np.sum(getattr(self.network.train, "segmented", 0)))
        self.network.check_memory(min(there, e.train_images) * max(1, e.crops))
        waiting: list[Array] = []
        tokens: list[Array] = []
        masks: list[Array] = []

        def flush(least: int) -> None:
            while waiting and len(waiting) >= least:
                part, waiting[:] = waiting[:size], waiting[size:]
                full = np.stack(part + part[-1:] * (size - len(part)))
                tokens.append(self.network.tokens(params, full)[: len(part)])

        for image, mask in self._images(0, self.network.train):
            for shown, truth in self._crops(image, mask, len(masks)):
                waiting.append(shown)
                masks.append(truth)
            flush(size)
        flush(1)
        return np.concatenate(tokens), np.stack(masks)

    def _crops(self, image: Array, mask: Array, number: int) -> list[tuple[Array, Array]]:
        if not self.config.eval.crops:
            return [dense.centre_crop(image, mask, self.size)]
        rngs = (
            np.random.default_rng([self.config.seed, number + view])
            for view in range(self.config.eval.crops)
        )
        return [dense.random_crop(image, mask, self.size, rng) for rng in rngs]

    def _images(self, part: int, source: Source) -> Iterator[tuple[Array, Array]]:
        """Images with their masks, as numbers of the head; those that cannot be read are left out.

        Raises:
          ConfigError: no image of the part can be used, or a mask does not fit.
        """
        e, given = self.config.eval, source
        limit = (e.train_images, e.val_images)[part]
        there = np.flatnonzero(getattr(given, "segmented", np.zeros(0, bool)))
        order = np.random.Generator(np.random.Philox(self.config.seed)).permutation(there)
        used, bad = 0, []
        for index in np.sort(order[:limit]).tolist():
            try:
                with faults.reading():
                    record = source[index]
                most = self.config.data.max_pixels
                image = transforms.decode(record["image"], record["key"], most)
            except faults.BadSample as error:
                bad.append(faults.of(error, index))
                continue
            mask: Any = getattr(given, "segments")(index)  # noqa: B009 (not of every source)
            yield image, miou.reduced(mask, e.reduce_zero_label)
            used += 1
        if bad and self.network.log is not None:
            self.network.log.write(bad, source.name)
        if not used:
            rule = f"no image of {source.name} that can be read has a mask"
            raise ConfigError("data.path", self.config.data.path, rule)
