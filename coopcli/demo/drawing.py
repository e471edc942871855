"""Drawn scenes with known attributes: one object in front of a background, as a picture.

`tools/train_mini.py` teaches the embedded CLIP on such pictures and their captions, and `coop demo` writes small labelled
image folders of others. A picture is computed from signed distances on a coordinate grid: NumPy is all it needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.97, 0.55, 0.08),
    "yellow": (0.97, 0.90, 0.20),
    "green": (0.15, 0.62, 0.22),
    "blue": (0.14, 0.28, 0.82),
    "purple": (0.50, 0.16, 0.66),
    "pink": (0.97, 0.60, 0.76),
    "brown": (0.45, 0.28, 0.14),
    "white": (0.96, 0.96, 0.96),
    "black": (0.06, 0.06, 0.06),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent")
TEXTURES = ("plain", "striped", "dotted", "checkered", "wavy", "crossed")
MARKS = {"striped": "stripes", "dotted": "dots", "checkered": "checks", "wavy": "waves", "crossed": "lines"}
SIZES = ("small", "large")
STYLES = ("clean", "blurry", "grainy", "dark", "bright", "pixelated")
NONE = "none"  # the mark colour of a plain object

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "texture": TEXTURES,
    "mark_colour": (*COLOURS, NONE),
    "size": SIZES,
    "background": tuple(COLOURS),
    "background_texture": TEXTURES,
    "style": STYLES,
}


@dataclass(frozen=True)
class Scene:
    """What one picture shows; every field is a value of `ATTRIBUTES`."""

    shape: str
    colour: str
    texture: str
    mark_colour: str
    size: str
    background: str
    background_texture: str
    style: str


def random_scene(rng: np.random.Generator, **fixed: str) -> Scene:
    """Draw a scene; keywords fix attributes.

    The three colours always differ and a plain object has no mark colour; about half of the backgrounds are plain and
    half of the pictures clean.
    """
    scene = {name: str(rng.choice(values)) for name, values in ATTRIBUTES.items()}
    if rng.random() < 0.5:
        scene["background_texture"] = "plain"
    if rng.random() < 0.5:
        scene["style"] = "clean"
    scene |= fixed
    if "mark_colour" in fixed and scene["texture"] == "plain":
        scene["texture"] = str(rng.choice(TEXTURES[1:]))
    taken = [fixed[name] for name in ("colour", "mark_colour", "background") if name in fixed]
    free = [colour for colour in rng.permutation(list(COLOURS)) if colour not in taken]
    for name in ("colour", "mark_colour", "background"):
        if name not in fixed:
            scene[name] = str(free.pop())
    if scene["texture"] == "plain":
        scene["mark_colour"] = NONE
    return Scene(**scene)


def _box(u: np.ndarray, v: np.ndarray, half_u: float, half_v: float) -> np.ndarray:
    return np.maximum(np.abs(u) - half_u, np.abs(v) - half_v)


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance (negative inside) to a shape of about unit radius; `v` points down."""
    radius = np.hypot(u, v)
    if shape == "circle":
        return radius - 0.9
    if shape == "square":
        return _box(u, v, 0.8, 0.8)
    if shape == "triangle":
        return np.maximum(v - 0.6, 0.866 * np.abs(u) - 0.5 * v - 0.5)
    if shape == "cross":
        return np.minimum(_box(u, v, 0.95, 0.32), _box(u, v, 0.32, 0.95))
    if shape == "ring":
        return np.abs(radius - 0.7) - 0.25
    if shape == "crescent":
        return np.maximum(radius - 0.95, 0.75 - np.hypot(u - 0.45, v))
    if shape == "heart":
        tip, lobe = (u + v) * 0.707, (v - u) * 0.707
        lobes = np.minimum(np.hypot(tip - 0.1, lobe + 0.45), np.hypot(tip + 0.45, lobe - 0.1)) - 0.55
        return np.minimum(lobes, _box(tip - 0.1, lobe - 0.1, 0.55, 0.55))
    # star: the line from an outer point (radius 1) to an inner one (radius 0.42), folded into one tenth turn
    angle = np.abs((np.arctan2(u, -v) / (2 * np.pi / 5) + 0.5) % 1 - 0.5) * (2 * np.pi / 5)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    inner_along, inner_across = 0.42 * np.cos(np.pi / 5), 0.42 * np.sin(np.pi / 5)
    normal = np.array([inner_across, 1 - inner_along])
    normal /= np.linalg.norm(normal)
    return (along - 1) * normal[0] + across * normal[1]


def _marks(texture: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Coverage in [0, 1] of a texture's marks; one period is one unit of `u` and `v`.

    Marks take about a third of the surface, so that it stays clear which colour is theirs.
    """
    if texture == "plain":
        return np.zeros_like(u)
    fu, fv = u % 1 - 0.5, v % 1 - 0.5
    edge = {
        "striped": np.abs(fu) - 0.18,
        "dotted": np.hypot(fu, fv) - 0.32,
        "checkered": 0.1 - fu * fv * 4,
        "wavy": np.abs((u + 0.3 * np.sin(2 * np.pi * v * 0.8)) % 1 - 0.5) - 0.16,
        "crossed": np.minimum(np.abs(fu), np.abs(fv)) - 0.09,
    }[texture]
    return np.clip(0.5 - edge * 6, 0, 1)


def _turned(u: np.ndarray, v: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    return u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)


def render(scene: Scene, rng: np.random.Generator, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene: the RGB picture, uint8 [size, size, 3], and the object's coverage of each pixel, 0..1 [size, size].

    Place, angle, shade, light and roughness are drawn from `rng`: two pictures of one scene differ.
    """

    def shade(name: str) -> np.ndarray:
        return np.clip(np.array(COLOURS[name]) + rng.normal(0, 0.035, 3), 0, 1)

    grid = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(grid, grid)
    rough = 0.01 if scene.style == "clean" else rng.uniform(0.0, 0.05)
    x = x + rough * np.sin(rng.uniform(4, 9) * y + rng.uniform(0, 6))
    y = y + rough * np.sin(rng.uniform(4, 9) * x + rng.uniform(0, 6))

    background = shade(scene.background)
    # The background's marks are a darker or lighter shade of its own colour, so its name stays true.
    lift = 0.22 if background.mean() < 0.45 else -0.2
    period = rng.uniform(0.3, 0.5)
    marks = _marks(scene.background_texture, *_turned(x / period + rng.random(), y / period, rng.uniform(0, np.pi)))
    picture = background + marks[..., None] * lift

    radius = rng.uniform(0.42, 0.52) if scene.size == "small" else rng.uniform(0.72, 0.88)
    reach = max(0.0, 0.95 - radius)
    centre = rng.uniform(-reach, reach, 2)
    u, v = _turned((x - centre[0]) / radius, (y - centre[1]) / radius, rng.uniform(-0.3, 0.3))
    inside = np.clip(0.5 - _distance(scene.shape, u, v) * radius * size / 2, 0, 1)[..., None]
    surface = np.broadcast_to(shade(scene.colour), picture.shape)
    if scene.mark_colour != NONE:
        period = rng.uniform(0.24, 0.34) / radius
        marks = _marks(scene.texture, *_turned(u / period + rng.random(), v / period, rng.uniform(0, np.pi)))[..., None]
        surface = surface * (1 - marks) + shade(scene.mark_colour) * marks
    picture = picture * (1 - inside) + surface * inside

    # Light falls off softly to one side.
    tilt = rng.normal(0, 0.06, 2)
    picture = picture * (1 + x * tilt[0] + y * tilt[1])[..., None]
    return _styled(np.clip(picture, 0, 1), scene.style, rng), inside[..., 0]


def _styled(picture: np.ndarray, style: str, rng: np.random.Generator) -> np.ndarray:
    """How the picture was taken, [size, size, 3] in [0, 1] -> uint8."""
    size = picture.shape[0]
    if style == "dark":
        picture = picture * rng.uniform(0.45, 0.65)
    elif style == "bright":
        picture = 1 - (1 - picture) * rng.uniform(0.5, 0.7)
    elif style == "grainy":
        picture = picture + rng.normal(0, rng.uniform(0.08, 0.16), picture.shape)
    picture = picture + rng.normal(0, 0.012, picture.shape)
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    if style in ("blurry", "pixelated"):
        small = int(size / rng.uniform(2.2, 3.2))
        kind = Image.Resampling.BICUBIC if style == "blurry" else Image.Resampling.NEAREST
        image = image.resize((small, small), Image.Resampling.BOX).resize((size, size), kind)
    return np.asarray(image)
