"""A small dataset for TensorFlow Datasets: scenes of shapes_world, captions as COCO's nest."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jepa_vl.data.shapes_world import ShapesWorld

CLASSES = ShapesWorld.classes[::-1]  # in another order than their names'


class ShapesTfds(tfds.core.GeneratorBasedBuilder):
    """Prepared offline; named shapes_tfds."""

    VERSION = tfds.core.Version("1.0.0")
    COUNTS = {"train": 24, "validation": 8}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "image/filename": tfds.features.Text(),
            "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
            "label": tfds.features.ClassLabel(names=CLASSES),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self.COUNTS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        world = ShapesWorld(0, self.COUNTS[split], 32, {"validation": "val"}.get(split, split))
        for index in range(len(world)):
            record, file = world[index], io.BytesIO()
            Image.fromarray(record["image"]).save(file, "PNG")
            file.seek(0)
            yield (
                index,
                {
                    "image": file,
                    "image/filename": record["key"],
                    "captions": [{"id": index, "text": text} for text in record["captions"]],
                    "label": world.classes[record["label"]],
                },
            )


def prepare(data_dir: Path, file_format: str = "array_record") -> Path:
    """Writes the dataset below the folder."""
    tfds.disable_progress_bar()
    ShapesTfds(data_dir=str(data_dir), file_format=file_format).download_and_prepare()
    return data_dir
