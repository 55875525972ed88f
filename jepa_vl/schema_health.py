"""The keys of the alarm, which judges the diagnostics of a run."""

from dataclasses import dataclass

from jepa_vl.schema_key import key

SHORTEST_LULL = 1000  # steps; shorter runs than this may end in it
ACTIONS = ("warn", "keep", "stop", "rewind")
RULES = (
    "images", "pairs", "target", "runaway", "regularisers", "exploding", "std", "cosine",
    "targets", "rank", "dimensions", "predictor", "prediction", "held out", "captions",
    "dead words",
)  # fmt: skip


@dataclass(frozen=True)
class HealthConfig:
    """What happens when diagnostics (every ``log.diagnostics_every`` steps) tell of a collapse."""

    action: str = key(
        "warn",
        "of the alarm: warn, keep (this step's checkpoint, for good), stop (save and leave) or "
        "rewind (to the last checkpoint that was well, with a lower learning rate)",
    )
    patience: int = key(2, "diagnostics in a row that must be bad before the alarm is raised")
    lull: int = key(
        0,
        "steps for which the predictor may do no better than the mean target, as every run does at "
        "first; 0: half of the run, 1,000 or more",
    )
    data_images: int = key(
        512,
        "training images whose pixels and captions are looked at before the first step; 0: none; "
        "of fewer than 400 it cannot be told whether captions belong to their images",
    )
    mute: tuple = key(
        (),
        "rules that are not judged, of " + ", ".join(RULES),
    )
    rewind_lr: float = key(0.5, "rewind: factor on the learning rate from there on, below 1")
