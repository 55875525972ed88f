"""Which images an export is compared on: given ones, the run's held-out ones, or drawn scenes."""

import shutil

import numpy as np
import pytest

from jepa_vl.cli import export_images
from jepa_vl.cli.main import main
from jepa_vl.data.shapes_world import ShapesWorld
from jepa_vl.data.transforms import centre_crop
from jepa_vl.training import checkpoint
from tests import exports
from tests.image_sets import picture
from tests.test_cli import refused

pytestmark = pytest.mark.usefixtures("quick_module")


def fill(folder, count, blue=0):
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"{i:02d}.jpg").write_bytes(picture((9 * i, 255 - 9 * i, blue), size=(40, 50)))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A run on images of two classes, of which twelve are held out, and a folder of others."""
    root = tmp_path_factory.mktemp("images")
    for part in ("train", "val"):
        for label in "ab":
            fill(root / part / label, 6, blue=200)
    fill(root / "others" / "deep", 3)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint, "checksums", exports.by_numpy)
        how = {"data.kind": "class_folder", "data.path": str(root / "train")}
        exports.save_run(root / "run", **how)
    return root


def leave(run, out, *words):
    """The card of an export."""
    argv = ["export", "--workdir", str(run), "--format", "safetensors", "--out", str(out)]
    assert main([*argv, *words]) == 0
    return (out / "README.md").read_text()


def test_held_out_images_of_the_run_given_ones_and_scenes_in_this_order(places, tmp_path, capsys):
    own = "8 of the held-out images of class_folder/"
    assert own in leave(places / "run", tmp_path / "own")
    assert own in capsys.readouterr().out
    words = ("--images", str(places / "others"))
    given = "3 of the images of the folder others"
    assert given in leave(places / "run", tmp_path / "given", *words)
    assert given in capsys.readouterr().out
    moved = shutil.copytree(places / "run", tmp_path / "moved")
    meta = moved / "checkpoints" / "6" / "meta" / "metadata"
    meta.write_text(meta.read_text().replace(str(places / "train"), str(tmp_path / "gone")))
    card = leave(moved, tmp_path / "scenes")
    assert (
        "8 of the drawn scenes (the built-in shapes_world), as the run's own images could not be"
        in card
    )
    told = capsys.readouterr()
    assert (
        "8 of the drawn scenes" in told.out
        and "the run's images cannot be read: data.path" in told.err
    )
    line = next(line for line in card.splitlines() if "largest difference" in line)
    assert float(line.split("|")[2]) < 1e-5


def test_the_pixels_are_those_that_the_words_name(places):
    config = exports.config()
    shown = export_images.choose(config, str(places / "others"))
    files = sorted((places / "others" / "deep").iterdir())
    expected = np.stack([centre_crop(file.read_bytes(), 32) for file in files])
    np.testing.assert_array_equal(shown.images, expected)
    assert shown.indices == [0, 1, 2] and shown.words.startswith("3 of the images")
    scenes = export_images.choose(config, None)
    np.testing.assert_array_equal(scenes.images[5], ShapesWorld(0, 8, 32, "val")[5]["image"])
    many = export_images.choose(config, None, lambda: ShapesWorld(3, 100, 32, "val"))
    assert many.indices[0] == 0 and many.indices[-1] == 99 and len(many.images) == 8


def test_images_that_cannot_be_read_are_passed_over_and_none_is_refused(places, tmp_path, capsys):
    fill(tmp_path / "some", 2)
    (tmp_path / "some" / "00.jpg").write_bytes(b"no image")
    shown = export_images.choose(exports.config(), str(tmp_path / "some"))
    assert shown.words == "1 of the images of the folder some" and shown.indices == [1]
    (tmp_path / "some" / "01.jpg").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    argv = ["export", "--workdir", str(places / "run"), "--format", "safetensors"]
    for name, rule in (
        ("some", "none of its images"),
        ("empty", "no image lies"),
        ("no", "no such"),
    ):
        words = ("--out", str(tmp_path / "out"), "--images", str(tmp_path / name))
        assert f"--images = '{tmp_path / name}': {rule}" in refused(capsys, *argv, *words)
    assert not (tmp_path / "out").exists()
