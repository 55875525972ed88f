"""From a caption to tokens, each knowing which word it belongs to."""

import functools
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jepa_vl.config import ConfigError
from jepa_vl.pretrained import fingerprint, locate, read_json
from jepa_vl.schema import TextConfig

FIRST_PIECE = 2  # of hashed pieces: 0 pads, 1 is kept free for a special token
PIECE_LENGTH = 8  # letters; longer words are several pieces, the later ones marked with "##"
PATH = "text.path"
VOCABULARIES = ("tokenizer.json", "vocab.txt", "spiece.model")
FILE = "tokenizer.json"  # beside cached embeddings


class Token(NamedTuple):
    """A piece of a caption.

    Attributes:
      id: row of the embedding table.
      piece: as the vocabulary spells it.
      word: index into :func:`words` of the caption; None for special tokens and punctuation.
    """

    id: int
    piece: str
    word: int | None


class Tokenizer(Protocol):
    """Caption -> at most S tokens. Picklable."""

    def __call__(self, text: str, /) -> list[Token]:
        """Tokens in their order."""
        ...

    def ids(self, text: str, /) -> list[int]:
        """Their ids alone, which is all that training reads, sooner."""
        ...

    def ordinary_ids(self) -> list[int]:
        """Sorted ids of the vocabulary, without padding and special tokens."""
        ...


def words(text: str) -> list[str]:
    """Splits a caption into lower-case words, in any script."""
    return [word.lower() for word in re.findall(r"\w+", text)]


def has_word(text: str) -> bool:
    """Does :func:`words` find any?"""
    return re.search(r"\w", text) is not None


class HashedTokenizer:
    """Words cut every few letters and hashed: no vocabulary file is needed."""

    def __init__(self, config: TextConfig):
        self.length, self.vocabulary = config.words, config.vocabulary

    def __call__(self, text: str) -> list[Token]:
        """Ids from 2 on."""
        return [
            Token(number, piece, index)
            for index, word in enumerate(words(text))
            for number, piece in zip(*_hashed(word, self.vocabulary), strict=True)
        ][: self.length]

    def ids(self, text: str) -> list[int]:
        """The same ones."""
        out: list[int] = []
        for word in words(text):
            out += _hashed(word, self.vocabulary)[0]
        return out[: self.length]

    def ordinary_ids(self) -> list[int]:
        """All from 2 on."""
        return list(range(FIRST_PIECE, self.vocabulary))


@functools.lru_cache(maxsize=2**16)  # the same few thousand words come again and again
def _hashed(word: str, vocabulary: int) -> tuple[list[int], list[str]]:
    pieces = [word[start : start + PIECE_LENGTH] for start in range(0, len(word), PIECE_LENGTH)]
    pieces = [("##" if place else "") + piece for place, piece in enumerate(pieces)]
    rows = vocabulary - FIRST_PIECE
    return [FIRST_PIECE + zlib.crc32(piece.encode()) % rows for piece in pieces], pieces


class PretrainedTokenizer:
    """The tokenizer that a pretrained tower was trained with, special tokens included.

    Long captions lose words, not the special tokens at their end.
    """

    def __init__(self, spec: str, length: int):
        """Takes the JSON of a ``tokenizers.Tokenizer``; S is ``length``."""
        import tokenizers

        self.spec, self.length = spec, length
        self._fast: Any = tokenizers.Tokenizer.from_str(spec)
        self._fast.no_padding()
        self._fast.enable_truncation(length)

    def __getstate__(self) -> dict[str, Any]:
        return {"spec": self.spec, "length": self.length}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __call__(self, text: str) -> list[Token]:
        """Each token's word is the one it shares most letters with."""
        spans = [match.span() for match in re.finditer(r"\w+", text)]
        found = self._fast.encode(text)
        return [
            Token(number, piece, _covered(span, spans))
            for number, piece, span in zip(found.ids, found.tokens, found.offsets, strict=True)
        ]

    def ids(self, text: str) -> list[int]:
        """The same ones."""
        return self._fast.encode(text).ids

    def ordinary_ids(self) -> list[int]:
        """All that the tokenizer does not list as special."""
        added = self._fast.get_added_tokens_decoder()
        special = {number for number, token in added.items() if token.special}
        return sorted(set(self._fast.get_vocab().values()) - special)


def _covered(span: tuple[int, int], spans: list[tuple[int, int]]) -> int | None:
    shared = [min(span[1], end) - max(span[0], start) for start, end in spans]
    return shared.index(max(shared)) if max(shared, default=0) > 0 else None


def _pretrained(config: TextConfig) -> PretrainedTokenizer:
    folder = locate(config.path, PATH)
    if not any((folder / name).is_file() for name in VOCABULARIES):
        # transformers would go on with an empty vocabulary.
        raise ConfigError(PATH, config.path, f"holds no tokenizer: {', '.join(VOCABULARIES)}")
    from transformers import AutoTokenizer  # seconds, and torch where that is installed

    try:
        fast: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        spec = fast.backend_tokenizer.to_str()
    except Exception as error:  # of many kinds, by the tokenizer's class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(PATH, config.path, f"holds no fast tokenizer: {reason}") from error
    rows = read_json(folder, "config.json", PATH)["vocab_size"]
    if len(fast) > rows:  # ids beyond the table would be read as its last row
        rule = f"its tokenizer has {len(fast)} tokens, its word embedding {rows} rows"
        raise ConfigError(PATH, config.path, rule)
    return PretrainedTokenizer(spec, config.words)


def _cached(config: TextConfig) -> PretrainedTokenizer:
    file = Path(locate(config.path, PATH)) / FILE
    return PretrainedTokenizer(file.read_text(encoding="utf-8"), config.words)


TOKENIZERS = {
    "hashed": HashedTokenizer,
    "t5": _pretrained,
    "bert": _pretrained,
    "gte": _pretrained,
    "cached": _cached,
}


def build(config: TextConfig) -> Tokenizer:
    """The tokenizer of a resolved configuration.

    Raises:
      ConfigError: there is none at ``text.path``.
    """
    return TOKENIZERS[config.kind](config)


def describe(config: TextConfig) -> dict[str, str]:
    """What captions as arrays depend on beside the configuration: the content of ``text.path``."""
    return {"text": fingerprint(config.path, PATH)} if config.path else {}
