"""The law that is fitted: L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al., 2203.15556)."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jepa_vl.config import ConfigError
from jepa_vl.shapes import Array

FEWEST = 6  # points for five parameters
DIFFERENT = 3  # sizes, and amounts of data


class Points(NamedTuple):
    """Runs that have ended, one row a measurement.

    Attributes:
      size: float64 [n], parameters (or whatever size is counted in), above 0.
      data: float64 [n], images or tokens seen, above 0.
      loss: float64 [n], what the law predicts, above 0.
      run: int64 [n], rows of one run have one number; they are resampled together.
      weight: float64 [n], 1 / variance of the loss, up to a factor.
      compute: float64 [n], FLOPs, or size * data where nothing better is known.
    """

    size: Array
    data: Array
    loss: Array
    run: Array
    weight: Array
    compute: Array

    def keep(self, rows: Array) -> "Points":
        """Those of a mask or of indices; runs are numbered anew."""
        kept = Points(*(x[rows] for x in self))
        return kept._replace(run=_numbered(kept.run))


class Law(NamedTuple):
    """Its five parameters, float64; arrays of them are as many laws."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def __call__(self, size: Array | float, data: Array | float) -> Array:
        """The loss of a size after so much data; float64, shapes broadcast."""
        return self.E + self.A * np.power(size, -self.alpha) + self.B * np.power(data, -self.beta)

    @property
    def exponent(self) -> float:
        """a of N* ~ C^a, where C is proportional to N * D: beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    def best_size(self, product: Array | float) -> Array:
        """Size of least loss where size * data is ``product`` (Hoffmann et al., Eq. 4)."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        return ratio ** (1 / (self.alpha + self.beta)) * np.power(product, self.exponent)


NAMES = Law._fields


def _numbered(run: Array) -> Array:
    """The same names, or numbers, from 0 on without a gap."""
    return np.unique(run, return_inverse=True)[1]


def points(
    size: Array,
    data: Array,
    loss: Array,
    run: Array | None = None,
    weight: Array | None = None,
    compute: Array | None = None,
) -> Points:
    """Checked columns, float64 [n]; each row is a run of its own unless ``run`` says otherwise.

    Without ``compute`` it is size * data, which is right up to a factor where FLOPs are 6 N D.

    Raises:
      ConfigError: a number is not finite or not above 0, columns differ in length, or there are
        fewer than 6 rows, or fewer than 3 sizes or amounts of data.
    """
    columns = {"size": size, "data": data, "loss": loss}
    for name, given in (("weight", weight), ("compute", compute)):
        if given is not None:
            columns[name] = given
    arrays = {name: np.asarray(x, np.float64) for name, x in columns.items()}
    count = len(arrays["loss"])
    for name, x in arrays.items():
        bad = np.flatnonzero(~(np.isfinite(x) & (x > 0)))
        if len(bad):
            raise ConfigError(f"{name} of row {bad[0] + 1}", float(x[bad[0]]), "a number above 0")
        if x.shape != (count,):
            raise ConfigError(name, x.shape, f"one number for each of the {count} rows")
    if count < FEWEST:
        raise ConfigError("rows", count, f"at least {FEWEST}, for five parameters")
    for name in ("size", "data"):
        different = len(np.unique(arrays[name]))
        if different < DIFFERENT:
            raise ConfigError(f"different values of {name}", different, f"at least {DIFFERENT}")
    runs = np.arange(count) if run is None else _numbered(run)
    size, data = arrays["size"], arrays["data"]
    weights = arrays.get("weight", np.ones(count))
    return Points(size, data, arrays["loss"], runs, weights, arrays.get("compute", size * data))


def read_csv(path: Path, size: str, data: str, loss: str, run: str = "") -> Points:
    """The named columns of a table with a header.

    Args:
      path: of the file.
      size, data, loss: names of columns.
      run: name of the column that tells runs apart; "": each row is a run.

    Raises:
      ConfigError: there is no such file or column, or a cell is no number above 0.
    """
    import csv

    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError("--csv", str(path), f"a table to read: {error}") from error
    if not rows:
        raise ConfigError("--csv", str(path), "a header and at least one row")
    for option, name in (("--size", size), ("--data", data), ("--loss", loss), ("--run", run)):
        if name and name not in rows[0]:
            raise ConfigError(option, name, f"a column of {path}: {', '.join(rows[0])}")

    def numbers(name: str) -> Array:
        out = np.empty(len(rows))
        for i, row in enumerate(rows):
            try:
                out[i] = float(row[name])
            except (TypeError, ValueError) as error:
                place = f"{name} in line {i + 2} of {path}"
                raise ConfigError(place, row[name], "a number") from error
        return out

    runs = np.array([row[run] for row in rows]) if run else None
    return points(numbers(size), numbers(data), numbers(loss), runs)
