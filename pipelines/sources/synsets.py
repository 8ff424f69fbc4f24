"""The list of image-level classes: ImageNet's 1000 synsets, or a list of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

from pipelines.sources.base import read_lines
from seg_models.names import did_you_mean


@dataclass(frozen=True)
class ClassList:
    """Synset ids (`n01440764`) and names, in the order of the class indices."""

    ids: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Class index by synset id."""
        return {synset: index for index, synset in enumerate(self.ids)}

    def nearest(self, text: str) -> str:
        """A hint at the synset nearest to a text, by id or by name; empty where none is near."""
        by_name = {name.lower(): synset for synset, name in zip(self.ids, self.names, strict=True)}
        if text.lower() in by_name:
            synset = by_name[text.lower()]
            return f" (did you mean {synset!r}, {text.lower()}?)"
        return did_you_mean(text, self.ids) or did_you_mean(text, self.names)

    def parse(self, text: str) -> int:
        """The class index behind an index or a synset id.

        Raises:
            ValueError: neither.
        """
        value = text.strip()
        if value in self.index:
            return self.index[value]
        if not value.isdecimal():
            raise ValueError(f"{value!r} is neither a class index nor a known synset{self.nearest(value)}")
        if int(value) >= len(self):
            raise ValueError(f"class index {value} is not in 0..{len(self) - 1}")
        return int(value)


def load_classes(uri: str | None) -> ClassList:
    """The classes of a file with one synset a line, optionally followed by its name; None: ImageNet's 1000.

    Raises:
        ValueError: the file is missing, empty, or lists a synset twice.
    """
    if uri is None:
        text = resources.files("pipelines.sources").joinpath("imagenet_synsets.txt").read_text("utf-8")
        lines = text.splitlines()
    else:
        lines = read_lines(uri, key="source.synsets")
    pairs = [line.split(maxsplit=1) for line in lines]
    ids = tuple(pair[0] for pair in pairs)
    if not ids or len(set(ids)) < len(ids):
        twice = sorted({synset for synset in ids if ids.count(synset) > 1})
        raise ValueError(f"source.synsets: {uri!r} " + (f"lists {twice[0]!r} twice" if twice else "is empty"))
    return ClassList(ids=ids, names=tuple(pair[-1].strip() for pair in pairs))
