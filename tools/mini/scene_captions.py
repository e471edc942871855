"""Captions of drawn scenes in many phrasings, as the embedded CLIP learned them."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from coopcli.clip.templates import TEMPLATE_SETS
from coopcli.demo.drawing import ATTRIBUTES, MARKS, NONE, Scene

LEADS = ("a photo of", "a picture of", "an image of", "a drawing of", "art of", "a rendering of", "itap of",
         "a good photo of", "a bad photo of", "a cropped photo of", "there is", "this is", "look at", "a close-up photo of",
         "a painting of", "a sketch of", "a toy", "a centered photo of", "a view of", "a low resolution photo of")  # fmt: skip
# The ImageNet templates that state none of our attributes: words that CLIP has learned to look past.
_STATED = {word for values in ATTRIBUTES.values() for word in values} | {"close-up"}
PLAIN_TEMPLATES = tuple(text for text in TEMPLATE_SETS["imagenet"] if not _STATED & set(text.split()))
STYLE_LEADS = {
    "clean": ("a clean drawing of", "a clear picture of"),
    "blurry": ("a blurry photo of", "a blurry picture of"),
    "grainy": ("a grainy photo of", "a noisy picture of"),
    "dark": ("a dark photo of", "a dark picture of"),
    "bright": ("a bright photo of", "a bright picture of"),
    "pixelated": ("a pixelated photo of", "a pixelated picture of"),
}


def caption(scene: Scene, rng: np.random.Generator) -> tuple[str, frozenset[str]]:
    """Describe part of a scene in one of many phrasings.

    Returns the caption and the names of the attributes it states (at least one). As in captions from the web,
    a bare colour or texture is the object's; what lies behind it or on it is said in so many words.
    """

    def pick(*options: str) -> str:
        return options[rng.integers(len(options))]

    while True:
        said = {name for name, chance in _MENTION.items() if rng.random() < chance}
        if scene.mark_colour == NONE:
            said.discard("mark_colour")
        if "background_texture" in said and rng.random() < 0.5:
            said.add("background")
        if said:
            break

    words = [scene.size] if "size" in said else []
    adjectives = [getattr(scene, name) for name in ("colour", "texture") if name in said]
    words += adjectives if rng.random() < 0.7 else adjectives[::-1]
    words.append(scene.shape if "shape" in said else pick("shape", "object", "thing", "figure"))
    article = pick("a", "a", "a", "the", "one", "my")
    object_said = said & {"shape", "colour", "texture", "size"}
    if object_said == {"colour"} and rng.random() < 0.4:
        colour = scene.colour
        thing = pick(f"something {colour}", colour, f"{article} {colour} one", f"{article} {colour}")
    elif object_said == {"texture"} and rng.random() < 0.4:
        thing = pick(f"something {scene.texture}", scene.texture, f"{article} {scene.texture}", f"{scene.texture} texture")
    elif object_said == {"size"} and rng.random() < 0.3:
        thing = pick(f"something {scene.size}", scene.size, f"{article} {scene.size} one")
    else:
        thing = f"{article} {' '.join(words)}"

    if "mark_colour" in said:
        marks = MARKS[scene.texture]
        said.add("texture")
        named = marks
        if rng.random() < 0.5:  # a word for any marks: the texture stays unsaid unless an adjective told it
            named = pick("marks", "markings", "a pattern")
            if scene.texture not in words and scene.texture not in thing:
                said.discard("texture")
        with_marks = f"a {scene.mark_colour} pattern" if named == "a pattern" else f"{scene.mark_colour} {named}"
        if not object_said and rng.random() < 0.5:
            thing = pick(with_marks, f"{with_marks} on something", f"{with_marks} on {article} {words[-1]}")
        else:
            thing = pick(f"{thing} with {with_marks}", f"{thing} that has {with_marks}", f"{with_marks} on {thing}")

    if said & {"background", "background_texture"}:
        kind = [getattr(scene, name) for name in ("background_texture", "background") if name in said]
        ground = " ".join(kind)
        place = pick(f"a {ground} background", f"a {ground} background", f"a {ground} backdrop", f"a {ground} wall")
        if not object_said and "mark_colour" not in said and rng.random() < 0.6:
            thing = pick(place, f"something on {place}", f"the background is {ground}", f"{ground} background")
        else:
            thing = pick(f"{thing} on {place}", f"{thing} in front of {place}", f"{thing} against {place}",
                         f"{place} with {thing}", f"{thing}, the background is {ground}")  # fmt: skip

    if "style" in said:
        text = f"{pick(*STYLE_LEADS[scene.style])} {thing}"
    elif thing.startswith("a ") and rng.random() < 0.6:
        return pick(*PLAIN_TEMPLATES).format(thing[2:]), frozenset(said)
    else:
        text = f"{pick(*LEADS)} {thing}" if rng.random() < 0.75 else thing
    return text + pick(".", ".", ""), frozenset(said)


_MENTION = {
    "shape": 0.5,
    "colour": 0.45,
    "texture": 0.3,
    "mark_colour": 0.25,
    "size": 0.2,
    "background": 0.35,
    "background_texture": 0.12,
    "style": 0.12,
}


def attribute_ids(scene: Scene) -> list[int]:
    """The scene as one index per attribute, in the order of `ATTRIBUTES`."""
    return [ATTRIBUTES[name].index(value) for name, value in asdict(scene).items()]
