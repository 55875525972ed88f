"""WebDataset tar shards with random access: headers are scanned once, then offsets are read."""

from collections.abc import Sequence
from typing import Any

from jepa_vl.config import ConfigError
from jepa_vl.data import storage
from jepa_vl.data.faults import BadSample, Fault, system_cause
from jepa_vl.data.records import parse_object, read_captions
from jepa_vl.data.tar_index import Keys, open_index
from jepa_vl.shapes import Array

_READ = 3  # image, json, txt: what a record is made of; classes are in the index
_GAP = 64 << 10  # bytes between the files of a sample that are read along rather than skipped


class TarSource:
    """Random access to the samples of a folder of ``*.tar`` files, in the order of the shards.

    A sample is all files of one shard that share path and base name up to the first dot: an image,
    its captions in ``.json`` or ``.txt``, and its class in ``.json`` or ``.cls``. The folder may be
    a URL. The index lies in a user cache folder, never beside the data.
    """

    def __init__(
        self, path: str, caption_keys: Sequence[str], label_key: str, key: str = "data.path"
    ):
        """Loads the index, or makes it.

        Args:
          path: folder of the shards, or one tar file.
          caption_keys: JSON keys of the captions; the first that is present counts.
          label_key: JSON key of the class name.
          key: configuration key that gave the path, for errors.

        Raises:
          ConfigError: names the path, and what is wrong there.
        """
        self.key, self.caption_keys = key, tuple(caption_keys)
        self.index = open_index(storage.expand(path), self.caption_keys, label_key, key)
        self.path = path

    @property
    def keys(self) -> Keys:
        """Of each sample."""
        return self.index.keys

    @property
    def key_hashes(self) -> Array:
        """uint64 [images], blake2b of the keys."""
        return self.index.hashes

    @property
    def labels(self) -> Array:
        """int32 [images], -1 for none."""
        return self.index.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, sorted."""
        return self.index.classes

    @property
    def captioned(self) -> int:
        """Number of images with a caption."""
        return self.index.captioned

    @property
    def json_keys(self) -> tuple[str, ...]:
        """JSON keys seen."""
        return self.index.json_keys

    @property
    def shards(self) -> Sequence[str]:
        """Names of the tar files."""
        return self.index.shards

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What the index left out."""
        return self.index.faults

    @property
    def fingerprint(self) -> str:
        """Of the names and sizes of the shards and of the keys."""
        return self.index.fingerprint

    @property
    def name(self) -> str:
        """Kind and last components of the path."""
        inside = storage.expand(self.path).rpartition("://")[2]
        return "tar/" + "/".join(inside.split("/")[-2:])

    def __len__(self) -> int:
        return len(self.index.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``image`` bytes, ``captions``, ``label`` and ``key``.

        Raises:
          BadSample: the shard is gone, cannot be read or has changed, or the JSON is none.
        """
        key = self.index.keys[index]
        shard = storage.join(self.index.root, self.index.shards[self.index.shard[index]])
        try:
            image, text, plain = self._read(shard, self.index.spans[index, :_READ].tolist(), key)
        except OSError as error:
            rule = f"{shard} cannot be read: {error.strerror or error}"
            raise BadSample(system_cause(error), self.key, key, rule) from error
        captions: list[str] = []
        if text is not None:
            where = f"{shard}: {key}.json"
            try:
                item = parse_object(text, self.key, where)
                captions = read_captions(item, self.caption_keys, self.key, where)
            except ConfigError as error:
                raise BadSample("json", self.key, key, f"{where}: {error.rule}") from error
        if not captions and plain is not None:
            captions = [plain.decode("utf-8", "replace").strip()]
        return {
            "image": image or b"",
            "captions": captions,
            "label": int(self.index.labels[index]),
            "key": key,
        }

    def _read(self, shard: str, spans: list[list[int]], key: str) -> list[bytes | None]:
        """The parts of a sample, None where absent; by one read where they lie together.

        The shard is opened anew: of ten thousand not all can stay open, and one that was replaced
        or removed is noticed.
        """
        present = [(offset, size) for offset, size in spans if size >= 0]
        low = min(offset for offset, _ in present)
        high = max(offset + size for offset, size in present)
        together = high - low <= sum(size for _, size in present) + _GAP
        with storage.Reader(shard) as reader:
            whole = reader.read(low, high - low) if together else b""
            parts = [
                None
                if size < 0
                else whole[offset - low : offset - low + size]
                if together
                else reader.read(offset, size)
                for offset, size in spans
            ]
        for (_, size), data in zip(spans, parts, strict=True):
            if data is not None and len(data) != size:
                rule = f"{shard} is shorter than when it was indexed"
                raise BadSample("truncated", self.key, key, rule)
        return parts
