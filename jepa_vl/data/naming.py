"""Which words of a caption name a class of the masks: the class's name, its plural, a synonym."""

from collections.abc import Sequence

from jepa_vl.data.captions import words

RULE = (
    "a run of words that equals the class's name or a synonym, in lower case, its last word also "
    "in the plural (s, es, ies, or irregular); of overlapping names the longest counts"
)
# What people say for classes of COCO; other data sets share the words.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "person": (
        "man", "woman", "boy", "girl", "child", "kid", "baby", "guy", "lady", "adult", "people",
        "player", "skateboarder", "skier", "surfer", "snowboarder", "rider",
    ),
    "bicycle": ("bike",),
    "motorcycle": ("motorbike", "motor bike"),
    "airplane": ("plane", "aeroplane", "jet", "aircraft"),
    "aeroplane": ("airplane", "plane", "jet", "aircraft"),
    "couch": ("sofa",),
    "sofa": ("couch",),
    "tv": ("television", "monitor"),
    "cell phone": ("phone", "cellphone"),
    "dining table": ("table",),
    "donut": ("doughnut",),
    "refrigerator": ("fridge",),
    "teddy bear": ("teddy",),
    "potted plant": ("plant",),
    "cow": ("cattle",),
    "hair drier": ("hair dryer",),
    "sports ball": ("ball",),
    "laptop": ("laptop computer",),
}  # fmt: skip
IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "person": "persons", "knife": "knives",
    "mouse": "mice", "sheep": "sheep", "cattle": "cattle", "people": "people", "skis": "skis",
    "scissors": "scissors", "baby": "babies", "lady": "ladies",
}  # fmt: skip


def plural(word: str) -> str:
    """The plural of an English noun, by rule or from the list."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("y") and word[-2:-1] not in ("a", "e", "o", "u"):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")


def forms(name: str) -> set[tuple[str, ...]]:
    """All ways of saying a class's name, as words."""
    said = [words(text) for text in (name, *SYNONYMS.get(name, ()))]
    return {(*way[:-1], last) for way in said if way for last in (way[-1], plural(way[-1]))}


def named(text: str, classes: Sequence[str]) -> list[tuple[int, tuple[int, ...]]]:
    """The classes that a caption names: pairs of class number and places among its words.

    Args:
      text: the caption.
      classes: names by number; an empty one is never named.
    """
    said = words(text)
    ways = [(form, number) for number, name in enumerate(classes) if name for form in forms(name)]
    found, taken = [], set[int]()
    for form, number in sorted(ways, key=lambda way: (-len(way[0]), way[1])):
        for start in range(len(said) - len(form) + 1):
            places = tuple(range(start, start + len(form)))
            if tuple(said[start : start + len(form)]) == form and not taken & set(places):
                taken |= set(places)
                found.append((number, places))
    return sorted(found, key=lambda pair: pair[1])
