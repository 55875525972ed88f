"""The linear probe in minutes: logistic regression on cached pooled features."""

from typing import Any

import numpy as np
from scipy.optimize import minimize

from jepa_vl.config import Config, ConfigError
from jepa_vl.evaluators import progress
from jepa_vl.evaluators.base import Extract, Measured, Measures, accuracy, register
from jepa_vl.evaluators.features import standardise
from jepa_vl.shapes import Array, PyTree

# DINOv2's range of C (dinov2/eval/log_regression.py), in decades instead of quarters of them.
STRENGTHS = tuple(10.0**power for power in range(-6, 6))
HELD = 0.1  # share of the training part on which C is chosen
# Largest gradient and number of iterations at which L-BFGS ends. Features of poor encoders are
# ill-conditioned (1e8 was measured): there the weakest L2 would take thousands of iterations, and
# accuracies have long been the same.
ROUGH, EXACT = (1e-4, 300), (1e-6, 1000)


def objective(
    weights: Array, x: Array, labels: Array, classes: int, c: float
) -> tuple[float, Array]:
    """Cross-entropy plus L2 on all weights but the biases, over the number of rows.

    Args:
      weights: float64 [(X + 1) * classes]; the last row of the matrix holds the biases.
      x: float64 [n, X].
      labels: int [n], in [0, classes).
      classes: number of classes.
      c: inverse strength, as scikit-learn's: the sum of cross-entropies + |W|^2 / (2 c).

    Returns:
      The value and its gradient, shaped as ``weights``.
    """
    matrix = weights.reshape(-1, classes)
    w, rows = matrix[:-1], np.arange(len(x))
    logits = x @ w + matrix[-1]
    logits -= logits.max(axis=1, keepdims=True)
    exponentials = np.exp(logits)
    total = exponentials.sum(axis=1, keepdims=True)
    value = np.sum(np.log(total[:, 0]) - logits[rows, labels]) + np.sum(w * w) / (2 * c)
    error = exponentials / total
    error[rows, labels] -= 1.0
    gradient = np.concatenate([x.T @ error + w / c, error.sum(axis=0, keepdims=True)])
    return float(value) / len(x), gradient.ravel() / len(x)


def fit(
    x: Array,
    labels: Array,
    classes: int,
    c: float,
    start: Array | None = None,
    end: tuple[float, int] = EXACT,
) -> Array:
    """The minimum of :func:`objective` by L-BFGS: float64 [(X + 1) * classes].

    Args:
      x, labels, classes, c: as of :func:`objective`.
      start: shaped as the result; zeros by default.
      end: ROUGH or EXACT.
    """
    start = np.zeros((x.shape[1] + 1) * classes) if start is None else start
    tolerance, most = end
    options: Any = {"maxiter": most, "maxfun": 2 * most, "gtol": tolerance, "ftol": 1e-12}
    how: dict[str, Any] = {"jac": True, "method": "L-BFGS-B", "options": options}
    how["callback"] = lambda _: progress.beat()
    return minimize(objective, start, (x, labels, classes, c), **how).x


def predict(weights: Array, x: Array, classes: int) -> Array:
    """The likeliest class of each row of x, float [n, X] -> int [n]."""
    matrix = weights.reshape(-1, classes)
    return np.argmax(x @ matrix[:-1] + matrix[-1], axis=1)


def hold(labels: Array, seed: int) -> Array:
    """bool [n]: a tenth of each class, at least one image, but none of a class of one.

    Args:
      labels: int [n].
      seed: of the draw.
    """
    rng, held = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            held[members[: max(1, round(HELD * len(members)))]] = True
    return held


def choose(x: Array, labels: Array, classes: int, seed: int) -> tuple[float, float]:
    """The C of the highest accuracy on a tenth that is held out of (x, labels).

    Of several the smallest, hence the strongest L2. Each fit starts where that of the next stronger
    L2 ended.

    Args:
      x: float64 [n, X]; labels: int [n], in [0, classes).
      classes: number of classes.
      seed: of the draw.

    Returns:
      C and that accuracy.

    Raises:
      ConfigError: no class has two images.
    """
    held = hold(labels, seed)
    if not held.any():
        raise ConfigError("eval.train_images", len(x), "a linear probe needs two images of a class")
    best, weights = (0.0, -1.0), None
    for c in STRENGTHS:
        weights = fit(x[~held], labels[~held], classes, c, weights, ROUGH)
        found = accuracy(predict(weights, x[held], classes), labels[held])
        if found > best[1]:
            best = c, found
    return best


@register("fast")
class Fast(Measures):
    """Multinomial logistic regression; the strength of L2 is chosen within the training part."""

    def __init__(self, config: Config, extract: Extract):
        """Of the configuration only the seed is read."""
        self.extract, self.seed = extract, config.seed
        self.protocol = {
            "head": "multinomial logistic regression, L-BFGS, float64",
            "normalisation": "mean and standard deviation of the training part",
            "C": [STRENGTHS[0], STRENGTHS[-1], len(STRENGTHS)],
            "chosen_on": f"{HELD:.0%} of the training part, stratified; then refitted on all of it",
        }

    def measure(self, params: PyTree) -> Measured:
        """``accuracy``; ``C``, the inverse strength chosen, and ``accuracy_chosen_on`` there.

        Raises:
          ConfigError: no class has two training images.
        """
        found = self.extract(params)
        x, held_out = standardise(found.train, found.held_out)
        names, labels = np.unique(found.train_labels, return_inverse=True)
        c, inner = choose(x, labels, len(names), self.seed)
        weights = fit(x, labels, len(names), c)
        right = names[predict(weights, held_out, len(names))] == found.held_out_labels
        scores = {"accuracy": float(right.mean()), "C": c, "accuracy_chosen_on": inner}
        return Measured(scores, {"accuracy": right[None]})
