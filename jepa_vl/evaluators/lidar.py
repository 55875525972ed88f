"""LiDAR: how many directions of the features tell images apart, whatever the crop? No labels."""

from jepa_vl.config import Config
from jepa_vl.evaluators import spectral
from jepa_vl.evaluators.base import VIEWS, Measured, Measures, ViewsOf, register
from jepa_vl.evaluators.features import Q
from jepa_vl.shapes import PyTree

DELTA, EPS = 1e-4, 1e-7  # the paper's


@register("lidar")
class Lidar(Measures):
    """LiDAR of pooled features, random crops as views; compare equal n, q and delta alone.

    The paper counts n = 1000 and q = 50, and for I-JEPA views that masks make. Ours are the crops
    of training, as not every objective has masks.
    """

    reads = VIEWS

    def __init__(self, config: Config, views: ViewsOf):
        """Needs nothing of the configuration: what the views are is said where they are made."""
        del config
        self.views = views
        self.protocol = {"n": 0, "q": Q, "delta": DELTA, "eps": EPS}
        self.protocol |= {"normalisation": "none", "transform": "random crops, as in training"}

    def measure(self, params: PyTree) -> Measured:
        """``lidar``; ``n`` of the protocol becomes the number of images that could be read."""
        views = self.views(params)
        self.protocol["n"] = len(views)
        return Measured({"lidar": spectral.lidar(views, DELTA, EPS)}, {})
