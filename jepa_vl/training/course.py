"""How far a run has left its plan: rewinds, images passed over, a lower learning rate."""

import dataclasses
from typing import Any

from jepa_vl.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Course:
    """Written into each checkpoint, so that a resumed run keeps it.

    Attributes:
      rewinds: how often the run returned to an earlier checkpoint.
      skipped: batches that the order of the data is ahead of the steps: step s trains on batch
        s + skipped.
      lr_scale: of the learning rate's schedule.
    """

    rewinds: int = 0
    skipped: int = 0
    lr_scale: float = 1.0

    @classmethod
    def of(cls, meta: dict[str, Any]) -> "Course":
        """As a checkpoint tells it; those before there were rewinds do not."""
        return cls(**meta.get("course", {}))

    def rewound(self, failed: int, back_to: int, lr_scale: float = 1.0) -> "Course":
        """After a return: the data goes on behind the images of the step that failed."""
        skipped = self.skipped + failed - back_to
        return Course(self.rewinds + 1, skipped, self.lr_scale * lr_scale)

    def rebatched(self, old: int, new: int) -> "Course":
        """The same images passed over, in batches of another size.

        Raises:
          ConfigError: they are no whole number of these.
        """
        if self.skipped * old % new:
            rule = f"rewinds have passed over {self.skipped * old} images, no multiple of it"
            raise ConfigError("train.batch_size", new, rule)
        return dataclasses.replace(self, skipped=self.skipped * old // new)
