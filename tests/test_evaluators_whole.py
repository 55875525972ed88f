"""Every kind of evaluator, and of data, on the whole way from images to numbers."""

import functools

import jax
import numpy as np
import pytest

from jepa_vl import objectives, sharding
from jepa_vl.cli.eval_session import with_data
from jepa_vl.config import ConfigError
from jepa_vl.evaluators import subject
from jepa_vl.schema import MeshConfig
from jepa_vl.training import state as train_state
from tests import image_sets, test_mask_folder, test_vqa
from tests.tiny import tiny

FEW = {"eval.probe_steps": 2, "eval.crops": 0, "eval.decoder_steps": 2, "eval.decoder_layers": 1,
       "eval.beam": 1}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "cache"))


def written(kind, folder):
    """A small data set of a kind, and the split to ask for."""
    if kind == "class_folder":
        for item in image_sets.some(24):
            place = folder / str(item.label)
            place.mkdir(exist_ok=True, parents=True)
            (place / item.key).write_bytes(item.image)
    elif kind == "mask_folder":
        test_mask_folder.write(folder)
    elif kind == "coco_captions":
        test_vqa.captions(folder)
    elif kind == "vqa":
        test_vqa.questions(folder, 8)
    else:
        image_sets.WRITERS[kind](folder, image_sets.some(24))
    return test_vqa.SPLIT if kind in ("coco_captions", "vqa") else ""


TASKS = {
    **dict.fromkeys(("tar", "array_record", "parquet", "folder", "class_folder"), "knn"),
    "mask_folder": "segmentation", "coco_captions": "captioning", "vqa": "vqa",
}  # fmt: skip


COSTLY = ("coco_captions", "vqa")  # a decoder is compiled


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if k in COSTLY else ()) for k in TASKS]
)
def test_pixels_are_evaluated_on_data_of_every_kind(kind, tmp_path, quick_compilation, monkeypatch):
    monkeypatch.setattr("jepa_vl.evaluators.decoding.LENGTH", 6)
    split, folder = written(kind, tmp_path / "data"), tmp_path / "data"
    made = with_data(tiny(objective="ijepa", **FEW), f"{kind}:{folder}")
    config = tiny(
        objective="ijepa",
        **{"data.kind": kind, "data.path": made.data.path, "data.split": split,
           "data.holdout": 0.4, **FEW},
    )  # fmt: skip
    images = subject.Images(config)
    task = TASKS[kind]
    measured, protocol = subject.pixels(config, images, subject.local_mesh()).measure(task)
    assert measured.scores and all(np.isfinite(value) for value in measured.scores.values())
    assert protocol["train"]["fingerprint"] and protocol["held_out"]["images"] > 0


@functools.cache
def trained():
    config = tiny(**{"encoder.depth": 2})
    objective = objectives.build(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    state = train_state.create(config, objective, train_state.batch_spec(config), mesh)
    return objective.encoder, jax.device_get(state.target)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["lidar", "attentive_one", "finetune"])
def test_numbers_depend_neither_on_the_batch_nor_on_the_devices(task, quick_compilation):
    """Those of other tasks are held to it beside their own tests; the last batches are ragged."""
    encoder, params = trained()
    found = []
    for size, devices in ((7, 1), (64, 1), (8, 8)):
        how = {**FEW, "encoder.depth": 2, "eval.batch_size": size, "eval.probe_batch": 16}
        config = tiny(**{**how, "eval.train_images": 45, "eval.val_images": 30})
        mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
        model, images = subject.Model(encoder, {}), subject.Images(config)
        placed = sharding.place(params, mesh)
        bench = subject.Bench(config, model, images, mesh)
        measured, protocol = bench.subject("encoder", subject.Weights(placed, None, "w")).measure(
            task
        )
        found.append((measured, protocol))
    (first, protocol), *others = found
    for other, told in others:
        assert other.scores == pytest.approx(first.scores, rel=1e-4) and told == protocol
        for name, right in first.hits.items():
            np.testing.assert_array_equal(other.hits[name], right)


def test_data_that_cannot_serve_a_task_are_one_line(tmp_path):
    folder = tmp_path / "bare"
    image_sets.write_folder(folder, [item._replace(label=None) for item in image_sets.some(12)])
    how = {"data.kind": "folder", "data.path": str(folder), "data.holdout": 0.4}
    config = tiny(objective="ijepa", **how)
    floor = subject.pixels(config, subject.Images(config), subject.local_mesh())
    for task, rule in (("knn", "has a label"), ("segmentation", "needs masks"), ("vqa", "alone")):
        with pytest.raises(ConfigError, match=rule) as error:
            floor.measure(task)
        assert "\n" not in str(error.value)
