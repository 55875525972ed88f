"""Long captions as sentences: each one then counts as a caption.

TC-JEPA describes its images with a captioning model, asked for short and for detailed answers, and
takes each sentence of an answer as a caption; N of them are drawn.
"""

import hashlib
from typing import Any

import sentencex

from jepa_vl.data.segments import Wrapped


def split(text: str) -> list[str]:
    """The sentences of a caption, in their order, without the space around them.

    sentencex (Wikimedia) decides by punctuation of any script, the full stops of Chinese and
    Japanese among it, and by a list of English abbreviations; a line always ends a sentence.
    """
    segment = sentencex.segment  # pyright: ignore[reportAttributeAccessIssue]  (compiled)
    parts = (part.strip() for line in text.splitlines() for part in segment("en", line))
    return [part for part in parts if part]


class Sentences(Wrapped):
    """A source whose captions are the sentences of another's captions."""

    def __init__(self, source: Any):
        """Takes a :class:`sources.Source`."""
        self.source = source
        labels = getattr(source, "labels", None)
        if labels is not None:
            self.labels = labels

    @property
    def keys(self) -> Any:
        """Unchanged."""
        return self.source.keys

    @property
    def classes(self) -> tuple[str, ...]:
        """Unchanged."""
        return self.source.classes

    @property
    def fingerprint(self) -> str:
        """Of the source, and that it is split."""
        return hashlib.sha256(f"sentences {self.source.fingerprint}".encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """Unchanged."""
        return self.source.name

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.source[index]
        return {**record, "captions": [part for text in record["captions"] for part in split(text)]}
