"""COCO's captions json and VQA's as sources; answers on frozen features by VQA's rule."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from jepa_vl import sharding
from jepa_vl.config import ConfigError
from jepa_vl.data import coco_json, sources
from jepa_vl.evaluators import decoding, vqa
from jepa_vl.evaluators.network import Network
from jepa_vl.schema import MeshConfig
from tests.image_sets import picture
from tests.test_captioning import Colours
from tests.tiny import tiny

SPLIT = "val2014"
TONES = ("black", "dark", "light", "white")


@pytest.fixture(autouse=True)
def short_questions(monkeypatch):
    """Of what these tests pay for, most is the length that questions are padded to."""
    monkeypatch.setattr(decoding, "LENGTH", 6)


def images(root, count):
    (root / SPLIT).mkdir(parents=True)
    for i in range(count):
        tone = (60 * (i % 4),) * 3
        (root / SPLIT / f"COCO_{SPLIT}_{i:012d}.jpg").write_bytes(picture(tone))


def dump(root, name, value):
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / name).write_text(json.dumps(value))


def captions(root, count=6):
    images(root, count)
    rows = [{"image_id": i, "id": 2 * i + j, "caption": f" picture {i} {j}\n"}
            for i in range(count - 1) for j in range(2)]  # fmt: skip
    listed = [{"id": i, "file_name": f"{i}.jpg"} for i in range(count)]
    dump(root, f"captions_{SPLIT}.json", {"images": listed, "annotations": rows[::-1]})
    return str(root)


def questions(root, count=24):
    """Two questions an image: what tone it has, and one whose answer is always yes."""
    images(root, count)
    asked, told = [], []
    for i in range(count):
        for j, (text, answer) in enumerate((("What tone?", TONES[i % 4]), ("Is it?", "yes"))):
            number = 10 * i + j
            asked.append({"image_id": i, "question_id": number, "question": text})
            said = [{"answer": answer}] * 8 + [{"answer": "maybe"}] * 2
            told.append({"image_id": i, "question_id": number, "answers": said})
    dump(root, f"v2_OpenEnded_mscoco_{SPLIT}_questions.json", {"questions": asked})
    dump(root, f"v2_mscoco_{SPLIT}_annotations.json", {"annotations": told[::-1]})
    return str(root)


def test_captions_json_gives_all_captions_of_the_images_that_have_some(tmp_path):
    found = coco_json.CocoCaptions(captions(tmp_path), SPLIT)
    assert len(found) == found.captioned == 5 and list(found.keys) == list("01234")
    assert sorted(found[3]["captions"]) == ["picture 3 0", "picture 3 1"]
    assert found[3]["image"] == (tmp_path / SPLIT / f"COCO_{SPLIT}_{3:012d}.jpg").read_bytes()
    config = tiny(**{"data.kind": "coco_captions", "data.path": str(tmp_path), "data.split": SPLIT})
    assert sum(map(len, sources.open_sources(config))) == 5


def test_questions_are_records_and_those_of_an_image_stay_together(tmp_path):
    path = questions(tmp_path)
    found = coco_json.Vqa(path, SPLIT)
    record = found[2]
    assert (record["captions"], record["key"]) == (["What tone?"], "1/10")
    assert record["answers"] == ["dark"] * 8 + ["maybe"] * 2
    config = tiny(**{"data.kind": "vqa", "data.path": path, "data.split": SPLIT,
                     "data.holdout": 0.5})  # fmt: skip
    sides = [{str(key).split("/")[0] for key in part.keys} for part in sources.open_sources(config)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda root: (root / "annotations" / f"captions_{SPLIT}.json").unlink(), "holds one"),
        (lambda root: dump(root, f"captions_{SPLIT}.json", {"images": []}), "a list 'annotations'"),
        (lambda root: dump(root, f"captions_b_{SPLIT}.json", {}), "holds one"),
        (lambda root: dump(root, f"captions_{SPLIT}.json", {"images": [{}], "annotations": []}),
         "'id'"),
        (lambda root: (root / SPLIT / f"COCO_{SPLIT}_{1:012d}.jpg").unlink(), "image 1 is in none"),
        (lambda root: dump(root, f"captions_{SPLIT}.json", {"images": [], "annotations": []}),
         "lists nothing"),
        (lambda root: (root / "annotations" / f"captions_{SPLIT}.json").write_text("{"), "no JSON"),
    ],
)  # fmt: skip
def test_bad_json_gets_one_clear_line(tmp_path, spoil, rule):
    path = captions(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=rule) as error:
        coco_json.CocoCaptions(path, SPLIT)
    assert "\n" not in str(error.value)


def test_agreement_is_the_mean_over_ten_subsets_of_nine():
    for count in range(11):
        said = ["Yes."] * count + ["no"] * (10 - count)
        subsets = itertools.combinations(said, 9)
        expected = np.mean([min(1.0, subset.count("Yes.") / 3) for subset in subsets])
        assert vqa.agreement("yes", said) == pytest.approx(expected)
    assert vqa.normalise("The two Dogs!") == vqa.normalise("2 dogs")
    assert vqa.commonest(["red", "Blue", "blue!", "green"]) == "blue"


def measured(path, tells=True, size=7, devices=1, **changed):
    config = tiny(**{"data.kind": "vqa", "data.path": path, "data.split": SPLIT,
                     "data.holdout": 0.4, "eval.decoder_layers": 1, "eval.decoder_steps": 60,
                     **changed})  # fmt: skip
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=size))
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    return vqa.Vqa(config, Network(config, Colours(tells), mesh, *sources.open_sources(config)))


def test_an_encoder_that_tells_all_answers_all_and_the_same_on_any_batch_and_mesh(
    tmp_path, quick_compilation
):
    path = questions(tmp_path)
    task = measured(path)
    found = task.measure({})
    assert found.scores == {"accuracy": 1.0, "exact_match": 1.0}
    assert 0.3 < found.baselines["commonest"]["exact_match"] < 0.7
    assert found.baselines["another_image"]["accuracy"] < 0.9
    other = measured(path, size=16, devices=8).measure({})
    assert other.scores == found.scores and other.baselines == found.baselines
    assert task.protocol["held_out"]["images"] == found.hits["exact_match"].shape[1]


def test_other_data_are_refused_in_one_line():
    config = tiny()
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(ConfigError, match="'vqa' alone") as error:
        vqa.Vqa(config, Network(config, Colours(), mesh, *sources.open_sources(config)))
    assert "\n" not in str(error.value)
