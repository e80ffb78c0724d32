"""Pairs of files to compare tools on, and which class each belongs to, with the goal that we set ourselves for it."""

import re
from dataclasses import dataclass
from pathlib import Path

WORST = 1.0  # on no pair are we to need more bytes than the best peer


@dataclass(frozen=True)
class Class:
    """A kind of update.

    Attributes:
        goal: What the best peer needs, divided by what we are to need, in the mean of the class.
        layer: Whether its files are container layers, which are to be applied faster than models.
    """

    title: str
    goal: float
    layer: bool = False


HEAD = Class("head only", 1.15)
FINE = Class("small and medium fine-tune, fp32", 1.5)
LONG = Class("long fine-tune, fp32", 1.25)
HALF = Class("fine-tune, fp16 and bf16", 1.45)
INT8 = Class("small and medium fine-tune, int8", 1.15)
INT8_LONG = Class("long fine-tune, int8", 1.7)
REEXPORT = Class("re-export", 1.05)
SCRATCH = Class("retrained from scratch", 1.08)
PYTHON = Class("Python application layer", 1.3, layer=True)
NATIVE = Class("native-code layer", 1.1, layer=True)
SYSTEM = Class("system layer", 1.05, layer=True)
OTHER_LAYER = Class("other layer", WORST, layer=True)
OTHER = Class("other", WORST)

CLASSES = (HEAD, FINE, LONG, HALF, INT8, INT8_LONG, REEXPORT, SCRATCH, PYTHON, NATIVE, SYSTEM, OTHER_LAYER, OTHER)
LAYER_SUFFIXES = (".tar", ".tar.gz", ".tgz")
# What a pair's name says about it, from the strongest word to the weakest.
NAMED = (
    ("system", SYSTEM),
    ("native", NATIVE),
    ("layer", PYTHON),
    ("reexport", REEXPORT),
    ("scratch|retrained", SCRATCH),
    ("head", HEAD),
)


@dataclass(frozen=True)
class Pair:
    """Two versions of one file."""

    name: str
    old: Path
    new: Path
    kind: Class

    @property
    def suffix(self) -> str:
        return suffix_of(self.new)


def suffix_of(path: Path) -> str:
    """What follows `.old` or `.new` in a file's name: `.onnx`, `.tar.gz`, or nothing."""
    return re.sub(r"^.*\.(?:old|new)(?=\.|$)", "", path.name)


def class_of(name: str, suffix: str) -> Class:
    """What kind of update a pair is, as far as its name says; by its suffix otherwise."""
    words = name.lower()
    for pattern, kind in NAMED:
        if re.search(pattern, words):
            return kind
    if suffix in LAYER_SUFFIXES:
        return OTHER_LAYER
    size = re.search("small|medium|long|arch|lora", words)
    if size is None:
        return OTHER
    if "int8" in words:
        return INT8_LONG if size[0] == "long" else INT8
    if re.search("fp16|bf16", words):
        return HALF
    return LONG if size[0] == "long" else FINE


def find_pairs(folder: Path) -> list[Pair]:
    """Every `NAME.old.*` that has its `NAME.new.*`, in the order of their names."""
    found = []
    for old in sorted(folder.iterdir()):
        at = re.match(r"(?P<name>[^.].*)\.old(?P<suffix>(?:\..+)?)$", old.name)
        if at is None or not old.is_file():
            continue
        new = folder / f"{at['name']}.new{at['suffix']}"
        if new.is_file():
            found.append(Pair(at["name"], old, new, class_of(at["name"], at["suffix"])))
    return found
