"""Promises of mixtures: fixed counts of each source, a fair mix everywhere, batches of the step."""

import itertools
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jepa_vl.cli import configs
from jepa_vl.cli.main import main
from jepa_vl.config import Config, ConfigError, resolve, to_dict
from jepa_vl.data import mixture, pipeline, sources
from jepa_vl.kinds import batch_counts, read_mixture
from tests import image_sets
from tests.image_sets import some
from tests.test_cli import TINY
from tests.tiny import tiny


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("JEPA_VL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def two(tmp_path) -> tuple[str, str]:
    """30 images in tar shards and 11 in a Parquet file, one at least of each held out."""
    items = [item._replace(label="bc"[i % 2]) for i, item in enumerate(some(11, "p"))]
    image_sets.write_tar(tmp_path / "big", some(30))
    image_sets.write_parquet(tmp_path / "small", items)
    return f"tar:{tmp_path}/big@0.7", f"parquet:{tmp_path}/small@0.3"


def mixed(texts: tuple[str, ...], **values) -> Config:
    return tiny(**{"data.kind": "mixture", "data.mixture": texts, **values})


def mixture_of(config: Config) -> mixture.Mixture:
    source = sources.open_sources(config)[0]
    assert isinstance(source, mixture.Mixture)
    return source


def take(config: Config, start: int, count: int, host: int = 0, hosts: int = 1) -> list:
    source = sources.open_sources(config)[0]
    with pipeline.make_batches(config, source, start, host, hosts) as stream:
        return list(itertools.islice(stream, count))


def same(one: pipeline.Batch, other: pipeline.Batch) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    ("weights", "batch", "counts"),
    [
        (("0.7", "0.3"), 10, [7, 3]),
        (("0.7", "0.3"), 64, [45, 19]),
        (("1", "1", "1"), 8, [3, 3, 2]),
        (("2", "1/3", "1"), 10, [6, 1, 3]),
        (("0.29", "0.71"), 100, [29, 71]),
    ],
)
def test_counts_are_the_weights_rounded_by_largest_remainders(weights, batch, counts):
    portions = read_mixture(tuple(f"tar:/{i}@{weight}" for i, weight in enumerate(weights)))
    assert batch_counts(portions, batch) == counts and sum(counts) == batch


@pytest.mark.parametrize("batch", [8, 24, 64, 96, 250, 1024])
@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.5, 0.5), (0.15, 0.5, 0.35)])
def test_every_host_and_micro_batch_has_a_fair_mix(batch, weights):
    portions = read_mixture(tuple(f"tar:/{i}@{weight}" for i, weight in enumerate(weights)))
    counts = np.array(batch_counts(portions, batch))
    slots = mixture.slots(tuple(counts.tolist()))
    one_hot = slots[:, None] == np.arange(len(counts))
    assert one_hot.sum(axis=0).tolist() == counts.tolist()
    for hosts in (h for h in range(1, min(batch, 65)) if batch % h == 0):
        of_hosts = [one_hot[host::hosts] for host in range(hosts)]
        stray = [np.abs(rows.sum(axis=0) - counts / hosts).max() for rows in of_hosts]
        assert max(stray) < 3
        # As the step splits the rows of all hosts, one host after the other.
        for parts in (p for p in (2, 4) if batch // hosts % p == 0):
            rows = np.concatenate(of_hosts)
            for part in range(parts):
                assert np.abs(rows[part::parts].sum(axis=0) - counts / parts).max() < 6


def test_each_batch_holds_the_fixed_count_and_each_source_has_epochs_of_its_own(two):
    config = mixed(two)
    source = mixture_of(config)
    assert source.shares == [("big", len(source) - 10, 6), ("small", 10, 2)]
    batches = take(config, 0, 15)
    slots = [tuple(batch["index"] >= len(source) - 10) for batch in batches]
    assert len(set(slots)) == 1 and sum(slots[0]) == 2
    order = np.concatenate([batch["index"] for batch in batches])
    big, small = order[order < len(source) - 10], order[order >= len(source) - 10]
    for drawn, length in ((big, len(source) - 10), (small, 10)):
        epochs = [drawn[i : i + length].tolist() for i in range(0, len(drawn), length)]
        assert len(epochs) > 2 and all(len(set(e)) == len(e) for e in epochs)
        assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


def test_the_batches_are_those_of_the_step_on_any_number_of_hosts(two):
    config = mixed(two)
    whole = take(config, 0, 13)
    for hosts in (2, 4):
        parts = [take(config, 0, 3, host, hosts) for host in range(hosts)]
        for step in range(3):
            for name, array in whole[step].items():
                for host in range(hosts):
                    np.testing.assert_array_equal(parts[host][step][name], array[host::hosts])
    # The first epoch of the small source ends in step 5, that of the large one before step 5.
    assert all(map(same, take(config, 9, 4), whole[9:]))
    far = take(config, 10**9, 1)[0]
    large = mixture_of(config).shares[0].images
    assert far["position"][0] == 8 * 10**9 and (far["index"] >= large).sum() == 2


def test_workers_give_the_same_batches(two):
    here = take(mixed(two), 7, 3)
    there = take(mixed(two, **{"data.workers": 2}), 7, 3)
    assert all(map(same, here, there))


def test_another_seed_is_another_order_and_the_same_slots(two):
    one, other = (take(mixed(two, seed=seed), 0, 1)[0]["index"] for seed in (0, 1))
    assert not np.array_equal(one, other)
    of_small = mixture_of(mixed(two)).shares[0].images
    np.testing.assert_array_equal(one >= of_small, other >= of_small)


def test_labels_are_joined_by_name_and_keys_stay_distinct(tmp_path, two):
    parts: Any = sources.open_sources(mixed(two))
    train, held_out = parts
    assert train.classes == held_out.classes == ("a", "b", "c")
    for part in parts:
        for i in range(len(part)):
            record = part[i]
            number = int(re.findall(r"\d+", record["key"])[-1])
            expected = ("bc" if record["key"].startswith("p") else "ab")[number % 2]
            assert part.classes[record["label"]] == expected
            assert part.labels[i] == record["label"] and part.keys[i] == record["key"]
    assert len({*train.keys, *held_out.keys}) == 41


def test_keys_that_two_sources_share_begin_with_the_name_of_the_source(tmp_path):
    texts = tuple(f"folder:{tmp_path}/{name}/train@1" for name in ("one", "two"))
    for name in ("one", "two"):
        image_sets.write_folder(tmp_path / name / "train", some(12))
        image_sets.write_folder(tmp_path / name / "val", some(3, "v"))
    train, held_out = sources.open_sources(mixed(texts))
    assert sorted(train.keys) == [f"{n}/{i:03d}.jpg" for n in ("one", "two") for i in range(12)]
    assert set(held_out.keys) == {f"{n}/v00{i}.jpg" for n in ("one", "two") for i in range(3)}
    assert [train[i]["key"] for i in range(24)] == list(train.keys)


def test_two_sources_of_one_name_are_numbered():
    portions = read_mixture(("tar:/a/x/train@1", "tar:/b/x@1", "shapes_world@1"))
    assert mixture.short_names(portions) == ["x-1", "x-2", "shapes_world"]


def test_the_first_held_out_images_are_of_all_sources(two):
    held_out = sources.open_sources(mixed(two, **{"data.holdout": 0.6}))[1]
    first = [str(key)[0] for key in held_out.keys[: len(held_out) // 2]]
    assert 2 <= first.count("p") <= len(first) // 2


def test_an_eval_path_is_of_the_first_kind_and_leaves_all_images_to_train_on(tmp_path, two):
    image_sets.write_tar(tmp_path / "test", some(4, "t"))
    train, held_out = sources.open_sources(mixed(two, **{"eval.path": str(tmp_path / "test")}))
    assert len(train) == 41 and sorted(held_out.keys) == [f"t00{i}" for i in range(4)]


def test_a_file_of_captions_joins_by_the_keys_of_the_mixture(tmp_path, two):
    file = tmp_path / "more.jsonl"
    lines = [{"key": key, "captions": ["added " + key]} for key in ("003", "p004.jpg")]
    file.write_text("\n".join(map(json.dumps, lines)))
    train, held_out = sources.open_sources(mixed(two, **{"data.captions_file": str(file)}))
    found = {
        r["key"]: r["captions"]
        for part in (train, held_out)
        for r in map(part.__getitem__, range(len(part)))
    }
    assert found["003"][-1] == "added 003" and found["p004.jpg"][-1] == "added p004.jpg"
    assert sum(len(texts) for texts in found.values()) == 2 * 41 + 2
    assert isinstance(train, mixture.Mixture) and len(train.shares) == 2


def test_the_fingerprint_changes_with_sources_and_counts(tmp_path, two):
    def print_of(*texts: str, **values) -> str:
        return sources.open_sources(mixed(texts, **values))[0].fingerprint

    big, small = two
    prints = [
        print_of(*two),
        print_of(small, big),
        print_of(big, small.replace("@0.3", "@0.9")),
        print_of(*two, **{"train.batch_size": 16}),
    ]
    image_sets.write_tar(tmp_path / "other", some(31))
    prints.append(print_of(f"tar:{tmp_path}/other@0.7", small))
    assert len(set(prints)) == 5 and print_of(*two) == prints[0]
    saved = pipeline.describe(mixed(two), sources.open_sources(mixed(two))[0])
    now = mixed((big, small.replace("@0.3", "@0.9")))
    with pytest.raises(ConfigError, match="fingerprint"):
        pipeline.check_resume(saved, pipeline.describe(now, sources.open_sources(now)[0]))


def test_a_pickled_order_is_the_same(two):
    order = mixture_of(mixed(two)).order(3)
    copy = pickle.loads(pickle.dumps(order))
    positions = [0, 1, 77, 10**12]
    assert [copy[p] for p in positions] == [order[p] for p in positions]


def test_the_command_line_takes_sources_between_commas():
    words = ["--config.data.kind=mixture", "--config.data.mixture=tar:/a@0.7,shapes_world@0.3"]
    config = configs.load(TINY, configs.take_overrides(words)[1])
    assert config.data.mixture == ("tar:/a@0.7", "shapes_world@0.3")
    assert resolve(to_dict(config)) == config
    undo = [*words, "--config.data.mixture=", "--config.data.kind=shapes_world"]
    assert configs.load(TINY, configs.take_overrides(undo)[1]).data.mixture == ()
    names = ["--config.data.caption_keys=text,alt"]
    keys = configs.load(TINY, configs.take_overrides(names)[1]).data.caption_keys
    assert keys == ("text", "alt")


@pytest.mark.parametrize(
    ("values", "key", "word"),
    [
        ({"data.mixture": ()}, "data.mixture", "two sources or more"),
        ({"data.mixture": ("tar:/a@1",)}, "data.mixture", "two sources or more"),
        ({"data.mixture": ("tar:/a@1", "tar:/a@2")}, "data.mixture", "twice"),
        ({"data.mixture": ("tar:/a@1", "/b")}, "data.mixture", "KIND:PATH@WEIGHT"),
        ({"data.mixture": (("tar", "/a", 1), "tar:/b@1")}, "data.mixture", "KIND:PATH@WEIGHT"),
        ({"data.mixture": ("tar:/a@1", "parket:/b@1")}, "data.mixture", "'parquet'"),
        ({"data.mixture": ("tar:/a@1", "mixture:/b@1")}, "data.mixture", "one of"),
        ({"data.mixture": ("tar:/a@1", "tar@1")}, "data.mixture", "needs the folder"),
        ({"data.mixture": ("tar:/a@1", "shapes_world:/b@1")}, "data.mixture", "lies nowhere"),
        ({"data.mixture": ("tar:/a@1", "tar:/b@0")}, "data.mixture", "no number above 0"),
        ({"data.mixture": ("tar:/a@1", "tar:/b@-1")}, "data.mixture", "no number above 0"),
        ({"data.mixture": ("tar:/a@1", "tar:/b@nan")}, "data.mixture", "no number above 0"),
        ({"data.mixture": ("tar:/a@99", "tar:/b@1")}, "data.mixture", "rounded to none"),
        ({"data.path": "/c"}, "data.path", "paths stand in data.mixture"),
        ({"data.name": "coco"}, "data.name", "for tfds alone"),
        ({"data.kind": "shapes_world"}, "data.mixture", "for mixture alone"),
        (
            {"data.mixture": ("shapes_world@1", "tar:/a@1"), "eval.path": "/v"},
            "eval.path",
            "the first source",
        ),
    ],
)
def test_bad_mixtures_are_one_line_before_any_data_are_touched(values, key, word):
    with pytest.raises(ConfigError, match=word) as caught:
        tiny(**{"data.kind": "mixture", "data.mixture": ("tar:/a@1", "tar:/b@1"), **values})
    assert caught.value.key == key and "\n" not in str(caught.value)


def test_a_source_whose_captions_go_by_another_name_is_refused(tmp_path, two):
    columns = {"image": [i.image for i in some(4)], "said": [i.captions for i in some(4)]}
    image_sets.write_table(tmp_path / "odd/a.parquet", columns)
    odd = f"parquet:{tmp_path}/odd@1"
    with pytest.raises(ConfigError, match=r"odd no image has one .*said") as caught:
        sources.open_sources(mixed((two[0], odd)))
    assert caught.value.key == "data.caption_keys"
    assert len(sources.open_sources(mixed((two[0], odd), objective="ijepa"))[0].classes) == 2


def test_preview_shows_what_a_batch_holds_of_each_source(tmp_path, two, capsys):
    data = ["--config.data.kind=mixture", f"--config.data.mixture={','.join(two)}"]
    words = ["--config", TINY, "--what", "batch", "--out", str(tmp_path), *data]
    assert main(["preview", *words, "--config.train.steps=20"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^small +10 +2 +4\.00$", out, re.M)
    assert "mixture (6 of big, 2 of small)" in out


def test_a_mixture_can_be_converted_and_then_is_one_source(tmp_path, two, capsys):
    data = ["--config.data.kind=mixture", f"--config.data.mixture={','.join(two)}"]
    assert main(["data", "convert", "--config", TINY, *data, "--out", str(tmp_path / "out")]) == 0
    flags = capsys.readouterr().out.strip().splitlines()[-1].split()
    after = configs.load(TINY, configs.take_overrides([*data, *flags])[1])
    assert (after.data.kind, after.data.mixture) == ("array_record", ())
    before = [sorted(part.keys) for part in sources.open_sources(mixed(two))]
    assert [sorted(part.keys) for part in sources.open_sources(after)] == before
