"""The text side of an objective: its tower, trained or frozen, and the words of a batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jepa_vl.config import Config, reads_text
from jepa_vl.models import packing, stack, text
from jepa_vl.models.conditioner import Words
from jepa_vl.objectives.base import Batch, rescale_init
from jepa_vl.schema import RANDOM
from jepa_vl.shapes import Array, PyTree


class CaptionTower:
    """Embeds captions. Trained parameters are ``params["text"]``, frozen ones ``frozen["text"]``.

    The parts that an objective adds to its own are {} where there is nothing to add.

    Attributes:
      width: E, channels of a word.
      trained: is the tower among the parameters?
    """

    def __init__(self, config: Config):
        """Builds the module of a resolved configuration; allocates nothing.

        Raises:
          ConfigError: there is no tower of this kind at ``text.path``.
        """
        self.run, self.config = config, config.text
        self.module = text.build(
            config.text, jnp.dtype(config.train.dtype), stack.plan(config.train)
        )
        self.width = text.width(config.text)
        self.trained = config.text.frozen == "no"

    def init(self, rng: Array, batch: Batch) -> tuple[PyTree, Words]:
        """Parameters to train, random, and words of the right shapes that hold zeros."""
        inputs = self._inputs(batch)
        states = jax.eval_shape(self.module.init_with_output, rng, *inputs)[0]
        words = Words(jnp.zeros(states.shape), batch["word_mask"], batch["caption_mask"])
        params = {"text": self.module.init(rng, *inputs)["params"]} if self.trained else {}
        return params, words

    def load_frozen(self) -> PyTree:
        """Weights that nothing updates.

        Raises:
          ConfigError: the files do not fit.
        """
        return {} if self.trained else FROZEN_WEIGHTS[self.config.kind](self)

    def frozen_spec(self) -> PyTree:
        """Shapes and dtypes of these weights."""
        if self.trained or self.config.kind == "cached":
            return {}
        stored = jnp.dtype(self.config.weights_dtype)

        def leaf(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            dtype = stored if x.ndim > 1 and self.config.kind in text.FAMILIES else x.dtype
            return jax.ShapeDtypeStruct(x.shape, dtype)

        return {"text": jax.tree.map(leaf, text.expected(self.config))}

    def load_initial(self) -> PyTree:
        """Weights that training starts from, where they come from files.

        Raises:
          ConfigError: the files do not fit.
        """
        from_files = self.trained and self.config.kind in text.FAMILIES
        return _pretrained(self) if from_files else {}

    def words(self, params: PyTree, frozen: PyTree, batch: Batch) -> Words:
        """The embedded captions of a batch.

        Args:
          params: holds ``text`` where the tower is trained: what is trained, or an EMA of it.
          frozen: holds ``text`` where it is not.
          batch: see ``data.pipeline``.
        """
        weights = (params if self.trained else frozen).get("text", {})

        def tower(*inputs: Array) -> Array:
            return self.module.apply({"params": weights}, *inputs)  # pyright: ignore[reportReturnType]

        with jax.named_scope("text"):
            if self.config.packed:
                states = packing.embed(tower, *self._inputs(batch), self.config.packed)
            else:
                states = tower(*self._inputs(batch))
        return Words(states, batch["word_mask"], batch["caption_mask"])

    def one_text(self, params: PyTree, frozen: PyTree, batch: Batch) -> tuple[Array, Array]:
        """All captions of an image as one text: states [B, N * S, E], bool [B, N * S]."""
        words = self.words(params, frozen, batch)
        b, n, s, width = words.states.shape
        return words.states.reshape(b, n * s, width), words.present.reshape(b, n * s)

    def _inputs(self, batch: Batch) -> tuple[Array, Array]:
        content = "word_states" if self.config.kind == "cached" else "word_ids"
        return batch[content], batch["word_mask"]


def _pretrained(tower: CaptionTower) -> PyTree:
    return {"text": text.load(tower.config)}


def _built_in(tower: CaptionTower) -> PyTree:
    """Out of the run that ``frozen.text`` names, or untrained."""
    config, path = tower.run, tower.run.frozen.text
    if path != RANDOM:
        return {"text": text.load_from_run(config.text, path, "frozen.text")}
    words = (1, 1, config.text.words)
    inputs = jnp.zeros(words, jnp.int32), jnp.ones(words, bool)
    rng = jax.random.fold_in(jax.random.key(config.seed), 2)
    params = jax.jit(tower.module.init)(rng, *inputs)["params"]
    return {"text": rescale_init(params, config.train.init)}


FROZEN_WEIGHTS: dict[str, Callable[[CaptionTower], PyTree]] = {
    "hashed": _built_in,
    "cached": lambda tower: {},
    **dict.fromkeys(text.FAMILIES, _pretrained),
}


class NoCaptions:
    """In place of a tower where no captions are read."""

    def init(self, rng: Array, batch: Batch) -> tuple[PyTree, None]:
        """Nothing to train, and no words."""
        return {}, None

    def load_frozen(self) -> PyTree:
        """Nothing."""
        return {}

    frozen_spec = load_frozen

    def load_initial(self) -> PyTree:
        """Nothing."""
        return {}

    def words(self, params: PyTree, frozen: PyTree, batch: Batch) -> None:
        """None."""


def build(config: Config) -> CaptionTower | NoCaptions:
    """The text side of a resolved configuration.

    Raises:
      ConfigError: see :class:`CaptionTower`.
    """
    return CaptionTower(config) if reads_text(config) else NoCaptions()


class ReadsCaptions:
    """What comes from files for an objective with ``captions``: the weights of its text tower."""

    captions: CaptionTower | NoCaptions

    def load_frozen(self) -> PyTree:
        """The text tower, where it is left as it is."""
        return self.captions.load_frozen()

    def frozen_spec(self) -> PyTree:
        """Shapes of :meth:`load_frozen`."""
        return self.captions.frozen_spec()

    def load_initial(self) -> PyTree:
        """The text tower, where it is pretrained and trained further."""
        return self.captions.load_initial()
