"""The text side of an objective: its tower, trained or frozen, and the words of a batch."""

import jax
import jax.numpy as jnp

from jepa_vl.config import Config
from jepa_vl.models import text
from jepa_vl.models.conditioner import Words
from jepa_vl.objectives.base import Batch
from jepa_vl.shapes import Array, PyTree


class CaptionTower:
    """Embeds captions. Trained parameters are ``params["text"]``, frozen ones ``frozen["text"]``.

    The parts that an objective adds to its own are {} where there is nothing to add.
    """

    def __init__(self, config: Config):
        """Builds the module of a resolved configuration; allocates nothing."""
        self.config = config.text
        self.module = text.build(config.text, jnp.dtype(config.train.dtype))
        self.trained = config.text.frozen == "no"
        self.pretrained = config.text.kind in text.FAMILIES

    def init(self, rng: Array, batch: Batch) -> tuple[PyTree, Words]:
        """Parameters to train, random, and words of the right shapes that hold zeros."""
        inputs = self._inputs(batch)
        states = jax.eval_shape(self.module.init_with_output, rng, *inputs)[0]
        words = Words(jnp.zeros(states.shape), batch["word_mask"], batch["caption_mask"])
        params = {"text": self.module.init(rng, *inputs)["params"]} if self.trained else {}
        return params, words

    def load_frozen(self) -> PyTree:
        """Weights that nothing updates, from their files."""
        return {"text": text.load(self.config)} if self.pretrained and not self.trained else {}

    def load_initial(self) -> PyTree:
        """Weights that training starts from, from their files."""
        return {"text": text.load(self.config)} if self.pretrained and self.trained else {}

    def words(self, params: PyTree, frozen: PyTree, batch: Batch) -> Words:
        """The embedded captions of a batch."""
        weights = (params if self.trained else frozen).get("text", {})
        states = self.module.apply({"params": weights}, *self._inputs(batch))
        return Words(states, batch["word_mask"], batch["caption_mask"])

    def _inputs(self, batch: Batch) -> tuple[Array, Array]:
        content = "word_states" if self.config.kind == "cached" else "word_ids"
        return batch[content], batch["word_mask"]
