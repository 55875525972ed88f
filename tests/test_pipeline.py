"""Promises of the pipeline: the content of a batch is a pure function of the step."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jepa_vl.config import Config, ConfigError, defaults, from_dict
from jepa_vl.data import captions, masking, pipeline, sources
from tests.shared import shared

ROOT = Path(__file__).parents[1]


def make_config(**values) -> Config:
    tree = defaults()
    tree.encoder.image_size, tree.encoder.patch_size = 32, 4
    tree.train.batch_size, tree.data.train_size, tree.data.workers = 8, 50, 0
    tree.data.threads, tree.masks.min_keep = 2, 5
    tree.update_from_flattened_dict(values)
    return from_dict(tree)


class Probe:
    """A source whose records tell where they were read."""

    classes, fingerprint, name = ("light", "jax"), "0" * 16, "probe"

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict:
        return {
            "image": np.full((40, 40, 3), index, np.uint8),
            "captions": [f"process {os.getpid()}"],
            "label": int(sys.modules.get("jax") is not None),
            "key": f"probe-{index}",
        }


def take(config: Config, source, count: int, start: int = 0, host: int = 0, hosts: int = 1):
    with pipeline.make_batches(config, source, start, host, hosts) as stream:
        return [next(stream) for _ in range(count)]


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        assert one[name].dtype == other[name].dtype


def world(config: Config) -> sources.Source:
    return sources.open_sources(config)[0]


def test_batches_have_the_promised_arrays():
    config = make_config()
    batch = take(config, world(config), 1)[0]
    plan = masking.plan_masks(config)
    shapes = {name: (array.shape, str(array.dtype)) for name, array in batch.items()}
    text = (8, config.text.captions, config.text.words)
    assert shapes == {
        "image": ((8, 32, 32, 3), "uint8"),
        "ctx_idx": ((8, plan.context_tokens), "int32"),
        "tgt_idx": ((8, 4, plan.target_tokens), "int32"),
        "word_ids": (text, "int32"),
        "word_mask": (text, "bool"),
        "caption_mask": (text[:2], "bool"),
        "label": ((8,), "int32"),
        "index": ((8,), "int64"),
        "position": ((8,), "int64"),
    }
    assert all(type(array) is np.ndarray for array in batch.values())


@pytest.mark.parametrize("mode", ["production", "reference"])
def test_any_step_can_be_sought_and_gives_the_same_batch(mode):
    config = make_config(**{"masks.mode": mode})
    source = world(config)
    batches = take(config, source, 9)
    for start in (1, 5, 8):
        assert_equal(take(config, source, 1, start)[0], batches[start])
    for step, batch in enumerate(batches):
        assert batch["position"].tolist() == list(range(8 * step, 8 * step + 8))


@pytest.mark.parametrize("mode", ["production", "reference"])
def test_hosts_read_interleaved_slices_of_the_same_global_batch(mode):
    config = make_config(**{"masks.mode": mode})
    source = world(config)
    whole = take(config, source, 3, start=2)
    for hosts in (2, 4):
        parts = [take(config, source, 3, 2, host, hosts) for host in range(hosts)]
        for step, batch in enumerate(whole):
            joined = {
                name: np.stack([part[step][name] for part in parts], axis=1).reshape(array.shape)
                for name, array in batch.items()
            }
            assert_equal(joined, batch)


def test_the_number_of_workers_changes_nothing():
    alone = make_config()
    source = world(alone)
    batches = take(alone, source, 5, start=3)
    for workers in (1, 2):
        config = make_config(**{"data.workers": workers, "data.prefetch": 1})
        for one, other in zip(take(config, source, 5, start=3), batches, strict=True):
            assert_equal(one, other)
    for threads in (1, 5):
        config = make_config(**{"data.threads": threads})
        assert_equal(take(config, source, 1, start=3)[0], batches[0])


def test_workers_and_hosts_together_read_real_shards_as_one_process_does():
    tar = {"data.kind": "tar", "data.path": str(shared("data/rsicd/train"))}
    alone, config = make_config(**tar), make_config(**tar, **{"data.workers": 2})
    source = world(alone)
    whole = take(alone, source, 2, start=100)
    part = take(config, source, 2, 100, host=1, hosts=2)
    for one, other in zip(part, whole, strict=True):
        assert_equal(one, {name: array[1::2] for name, array in other.items()})


def test_each_epoch_reads_every_image_once_in_another_order_with_other_crops():
    config = make_config(**{"data.train_size": 48})
    batches = take(config, world(config), 12)
    index = np.concatenate([batch["index"] for batch in batches]).reshape(2, 48)
    assert sorted(index[0]) == sorted(index[1]) == list(range(48))
    assert (index[0] != index[1]).any()
    images = np.concatenate([batch["image"] for batch in batches])
    first, second = images[:48][np.argsort(index[0])], images[48:][np.argsort(index[1])]
    assert all((one != other).any() for one, other in zip(first, second, strict=True))
    other = take(make_config(seed=1, **{"data.train_size": 48}), world(config), 6)
    assert (np.concatenate([batch["index"] for batch in other]) != index[0]).any()


def test_without_text_the_crops_and_masks_stay_and_the_text_arrays_go():
    config = make_config()
    source = world(config)
    with_text = take(config, source, 1)[0]
    for value in ({"objective": "ijepa"}, {"conditioner.kind": "none"}):
        without = take(make_config(**value), source, 1)[0]
        assert not {"word_ids", "word_mask", "caption_mask"} & without.keys()
        assert_equal(without, {name: with_text[name] for name in without})


def test_reference_masks_are_cut_over_the_global_batch_and_padded():
    config = make_config(**{"masks.mode": "reference"})
    plan = masking.plan_masks(config)
    lengths = set()
    for batch in take(config, world(config), 6):
        assert batch["ctx_idx"].shape == (8, plan.context_tokens)
        sizes = batch["ctx_valid"].sum(axis=1)
        assert (sizes == sizes[0]).all()  # K_c of the batch
        assert (batch["tgt_valid"].sum(axis=2) == batch["tgt_valid"][0, 0].sum()).all()
        lengths.add(int(sizes[0]))
    assert len(lengths) > 1


def test_seeking_costs_milliseconds():
    config = make_config(**{"data.train_size": 1_000_000})
    source = world(config)
    take(config, source, 1)  # imports
    start = time.perf_counter()
    stream = pipeline.make_batches(config, source, 10**7)
    cost = time.perf_counter() - start
    assert next(stream)["position"][0] == 8 * 10**7
    stream.close()
    assert cost < 0.1


def test_importing_the_pipeline_and_opening_sources_does_not_import_jax():
    program = (
        "import sys, jepa_vl.data.pipeline as p, jepa_vl.data.sources as s;"
        "from jepa_vl.config import defaults, from_dict;"
        "s.open_sources(from_dict(defaults()));"
        "assert 'jax' not in sys.modules and 'grain' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_workers_do_not_import_jax():
    batches = take(make_config(**{"data.workers": 2}), Probe(), 4)
    assert not any(batch["label"].any() for batch in batches)
    text = make_config().text
    here = captions.build(text).encode_all([f"process {os.getpid()}"])["word_ids"]
    assert not any((batch["word_ids"] == here).all(axis=(1, 2)).any() for batch in batches)


SCRIPT = """
import sys
import jax  # the parent holds it, as a trainer does
from jepa_vl.data import pipeline, sources
from tests.test_pipeline import make_config, world
print("program")
config = make_config(**{"data.workers": int(sys.argv[1])})
stream = pipeline.make_batches(config, world(config), 0)
batches = [next(stream) for _ in range(3)]
if sys.argv[2] == "close":
    stream.close()
if sys.argv[2] == "hang":
    print("ready", flush=True)
    sys.stdin.read()
"""


def start_script(tmp_path: Path, *args: str) -> subprocess.Popen:
    path = tmp_path / "program.py"
    path.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, str(path), *args], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env
    )


@pytest.mark.parametrize(("workers", "end"), [("2", "close"), ("1", "exit"), ("0", "exit")])
def test_a_program_without_main_guard_ends_silently(tmp_path, workers, end):
    process = start_script(tmp_path, workers, end)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "program\n", "")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists processes by /proc")
def test_workers_of_a_killed_trainer_end(tmp_path):
    process = start_script(tmp_path, "1", "hang")
    assert process.stdout and process.stdin
    assert [process.stdout.readline() for _ in range(2)] == ["program\n", "ready\n"]
    children = [
        child
        for tid in os.listdir(f"/proc/{process.pid}/task")
        for child in map(int, Path(f"/proc/{process.pid}/task/{tid}/children").read_text().split())
    ]
    assert children
    process.send_signal(signal.SIGKILL)
    process.wait()  # not communicate: a worker left behind would hold the pipes open
    deadline = time.monotonic() + 20
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [child for child in children if alive(child)]
    for child in left:
        os.kill(child, signal.SIGKILL)
    assert not left


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_batch_that_hosts_do_not_divide_is_refused():
    config = make_config()
    with pytest.raises(ConfigError, match=r"train\.batch_size"):
        pipeline.make_batches(config, world(config), 0, host=0, hosts=3)


def test_a_stream_that_is_closed_has_ended():
    config = make_config()
    stream = pipeline.make_batches(config, world(config), 0)
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []


def test_resuming_on_other_data_or_in_another_order_is_refused_with_a_diff():
    config = make_config()
    saved = pipeline.describe(config, world(config))
    pipeline.check_resume(saved, pipeline.describe(config, world(config)))
    changed = make_config(seed=3, **{"data.train_size": 60})
    with pytest.raises(ConfigError) as caught:
        pipeline.check_resume(saved, pipeline.describe(changed, world(changed)))
    message = str(caught.value)
    assert "seed: 0 -> 3" in message and "images: 50 -> 60" in message
    assert "fingerprint" in message and "global_batch" not in message


@pytest.mark.parametrize("mode", ["production", "reference"])
def test_evaluation_batches_are_repeatable_full_and_independent_of_the_batch_size(mode):
    config = make_config(**{"masks.mode": mode})
    source = world(config)
    indices = np.array([4, 40, 3, 3, 11])
    batches = list(pipeline.eval_batches(config, source, indices, 2))
    again = list(pipeline.eval_batches(config, source, indices, 2))
    for one, other in zip(batches, again, strict=True):
        assert_equal(one, other)
    assert [batch["valid"].tolist() for batch in batches] == [[True] * 2, [True] * 2, [True, False]]
    assert [batch["index"].tolist() for batch in batches] == [[4, 40], [3, 3], [11, 11]]
    whole = next(pipeline.eval_batches(config, source, indices, 5))
    joined = {name: np.concatenate([b[name] for b in batches])[:5] for name in whole}
    assert_equal(joined, whole)
    expected = {"image", "ctx_idx", "tgt_idx", "word_ids", "word_mask", "caption_mask", "label"}
    assert expected | {"index", "valid"} <= whole.keys()
    np.testing.assert_array_equal(whole["image"][0], source[4]["image"])
    assert list(pipeline.eval_batches(config, source, [], 2)) == []
