"""Few-shot accuracy: ridge regression in closed form, as big_vision's few-shot evaluator."""

import numpy as np

from jepa_vl.config import Config, ConfigError
from jepa_vl.evaluators.base import Extract, Features, Measured, Measures, register
from jepa_vl.evaluators.features import standardise
from jepa_vl.shapes import Array, PyTree

SHOTS = (5, 10, 25)
DRAWS = 3
STRENGTHS = tuple(2.0**power for power in range(-10, 21))
FIXED = 2.0**10  # big_vision's choice for all data sets


class Ridge:
    """Ridge regression with a free intercept: one decomposition serves all strengths."""

    def __init__(self, x: Array, y: Array):
        """Decomposes.

        Args:
          x: float64 [n, X], columns of mean 0.
          y: float64 [n, C].
        """
        self.mean = y.mean(axis=0)
        self.centred = y - self.mean
        self.u, self.s, self.vt = np.linalg.svd(x, full_matrices=False)
        self.uy = self.u.T @ self.centred

    def coefficients(self, l2: float) -> Array:
        """argmin |y - mean - x W|^2 + l2 |W|^2: float64 [X, C]."""
        return self.vt.T @ ((self.s / (self.s**2 + l2))[:, None] * self.uy)

    def predict(self, x: Array, l2: float) -> Array:
        """float [m, X] -> [m, C]."""
        return x @ self.coefficients(l2) + self.mean

    def left_out(self, l2: float) -> Array:
        """Mean squared error on each row by the fit without it, in closed form: float64 scalar."""
        shrunk = self.s**2 / (self.s**2 + l2)
        leverage = self.u**2 @ shrunk + 1.0 / len(self.u)  # the second term: of the intercept
        errors = (self.centred - self.u @ (shrunk[:, None] * self.uy)) / (1.0 - leverage)[:, None]
        return np.mean(errors**2)


def draw(labels: Array, shots: int, rng: np.random.Generator) -> Array:
    """Indices of ``shots`` images a class, int labels [n] -> int [<= shots * classes], sorted.

    From the same state of rng fewer shots are a subset of more. A class that has fewer gives all.
    """
    order = rng.permutation(len(labels))
    picked = [order[labels[order] == label][:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(picked))


@register("fewshot")
class FewShot(Measures):
    """Ridge regression onto one-hot labels, from 5, 10 and 25 images a class, three draws each."""

    def __init__(self, config: Config, extract: Extract):
        """Of the configuration only the seed is read."""
        self.extract, self.seed = extract, config.seed
        self.protocol = {
            "head": "ridge regression onto one-hot labels, free intercept, float64",
            "normalisation": "mean and standard deviation of the shots",
            "l2": [STRENGTHS[0], STRENGTHS[-1], len(STRENGTHS)],
            "chosen_on": "the shots, by their leave-one-out squared error",
            "draws": DRAWS,
            "spread": "standard deviation over draws (n - 1)",
        }

    def measure(self, params: PyTree) -> Measured:
        """For S shots ``Sshot``, its ``_spread``, ``_l2_1024`` (at big_vision's) and ``_images``.

        ``Sshot_images`` is the number of images learnt from, smaller than S times the number of
        classes where a class has fewer than S; S beyond every class are left out.

        Raises:
          ConfigError: no class has 5 training images.
        """
        found = self.extract(params)
        largest = np.bincount(found.train_labels).max()
        if largest < SHOTS[0]:
            rule = f"few-shot accuracy needs {SHOTS[0]} labelled training images of a class"
            raise ConfigError("eval.train_images", len(found.train), rule)
        out: dict[str, float] = {}
        hits: dict[str, Array] = {}
        for shots in SHOTS:
            if shots > largest:
                continue
            rngs = [np.random.default_rng([self.seed, number]) for number in range(DRAWS)]
            drawn = [draw(found.train_labels, shots, rng) for rng in rngs]
            right = np.array([_hits(found, index) for index in drawn])
            hits[f"{shots}shot"], hits[f"{shots}shot_l2_1024"] = right[:, 0], right[:, 1]
            scores = right.mean(axis=2)
            out[f"{shots}shot"] = float(scores[:, 0].mean())
            out[f"{shots}shot_spread"] = float(scores[:, 0].std(ddof=1))
            out[f"{shots}shot_l2_1024"] = float(scores[:, 1].mean())
            out[f"{shots}shot_images"] = len(drawn[0])
        return Measured(out, hits)


def _hits(found: Features, index: Array) -> tuple[Array, Array]:
    """Held-out images that a draw got right, bool [m]: with the chosen l2, with the fixed one."""
    x, held_out = standardise(found.train[index], found.held_out)
    names, labels = np.unique(found.train_labels[index], return_inverse=True)
    ridge = Ridge(x, np.eye(len(names))[labels])
    chosen = min(STRENGTHS, key=ridge.left_out)

    def right(l2: float) -> Array:
        return names[ridge.predict(held_out, l2).argmax(axis=1)] == found.held_out_labels

    return right(chosen), right(FIXED)
