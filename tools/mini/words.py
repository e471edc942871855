"""What the photographs show, in words: every class of every set, its synonyms and its kinds, and words with no pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mini.pictures import FIRST
from mini.wordnet import WordNet

FOOD_KINDS = ["dish", "food"]


@dataclass
class Things:
    """All classes of all sets in one table."""

    names: list[list[str]]  # names of each class, the usual one first
    kinds: list[list[str]]  # its kinds in WordNet, the nearest first
    first: dict[str, int]  # where each set's classes begin

    @cached_property
    def members(self) -> dict[str, list[int]]:
        """The classes that each word is true of: those named so and those of that kind."""
        members: dict[str, list[int]] = {}
        for i, (names, kinds) in enumerate(zip(self.names, self.kinds, strict=True)):
            for word in {*names, *kinds}:
                members.setdefault(word, []).append(i)
        return members


def read_things(arrays: Path, sets: list[str], wordnet: WordNet, synonyms: dict[str, list[str]]) -> Things:
    """Build the table. `synonyms` gives more names to ImageNet's classes, which have one in their file names."""
    names: list[list[str]] = []
    kinds: list[list[str]] = []
    first: dict[str, int] = {}
    for name in sets:
        first[name] = len(names)
        for given in json.loads((arrays / f"{name}.json").read_text()):
            words = synonyms.get(given[0].lower(), given) if name in FIRST else given
            words = [word.lower() for word in [given[0], *words]]
            found = wordnet.kinds(words)
            if name == "food" and "food" not in found:
                found = FOOD_KINDS
            names.append(list(dict.fromkeys(words)))
            kinds.append(found)
    return Things(names, kinds, first)


def read_synonyms(words_file: Path) -> dict[str, list[str]]:
    """Tiny-ImageNet's words.txt: the synonyms of every WordNet noun, found by each of them."""
    lines = [line.split("\t")[1].lower().split(", ") for line in words_file.read_text().splitlines()]
    table: dict[str, list[str]] = {}
    for words in lines:
        for word in words:
            if len(words) > len(table.get(word, [])):
                table[word] = words
    return table


def unseen_words(wordnet: WordNet, things: Things, prototypes: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Nouns with no pictures, and for each the mean feature of the seen classes of its nearest kind.

    A ketch is a sailing vessel, as the seen yawl and schooner are: the text tower learns to put it there. Only kinds with 1
    to 12 seen classes tell enough.
    """
    seen = {word for names in things.names for word in names}
    words, features = [], []
    for word in wordnet.index:
        text = word.replace("_", " ")
        if text in seen or not text.replace(" ", "").isalpha() or len(text) < 3:
            continue
        for kind in wordnet.kinds([text], limit=3):
            members = things.members.get(kind, [])
            if 0 < len(members) <= 12:
                words.append(text)
                feature = prototypes[members].mean(0)
                features.append(feature / max(float(np.linalg.norm(feature)), 1e-6))
                break
    return words, np.array(features, np.float32)
