"""What a mixture takes of each source, for people."""

from typing import Any

from jepa_vl.cli.columns import columns
from jepa_vl.config import Config


def measures(config: Config, source: Any) -> list[dict[str, Any]]:
    """For each source of a mixture: images, images a batch, and epochs in the run; else empty."""
    return [
        {
            "source": share.name,
            "images": share.images,
            "a_batch": share.count,
            "epochs": config.train.steps * share.count / share.images,
        }
        for share in getattr(source, "shares", ())
    ]


def table(config: Config, source: Any) -> list[str]:
    """The same as lines; none where the source is no mixture."""
    rows = [
        (x["source"], f"{x['images']:,}", str(x["a_batch"]), f"{x['epochs']:,.2f}")
        for x in measures(config, source)
    ]
    head = ("source", "images", f"of {config.train.batch_size} a batch", "epochs in the run")
    return columns([head, *rows], right=(1, 2, 3)) if rows else []
