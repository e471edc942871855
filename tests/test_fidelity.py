"""The same few-shot list, schedule, transforms, batches and first context as the reference: the same context in the end."""

import hashlib
import io
import random
from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from conftest import tiny_clip, write_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil

from coopcli.clip import pixels
from coopcli.clip.backbone import Backbone
from coopcli.clip.prompts import ContextSettings
from coopcli.data.load import load_data
from coopcli.learning.fit import fit
from coopcli.learning.recipe import learning_rate, paper_recipe

SIZE = 32
CLASSES = {"red star": (200, 30, 30), "green_ring": (30, 160, 60), "annual crop": (150, 140, 60), "sea": (30, 60, 200)}


def to_tensor(picture):
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)


@pytest.fixture(scope="module")
def backbone(tokenizer):
    process = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    model = tiny_clip(tokenizer)
    scale = float(model.logit_scale.exp())
    return Backbone("tiny", None, model, tokenizer, process, "f" * 32, torch.device("cpu"), "float32", scale)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for k, (name, colour) in enumerate(CLASSES.items()):
        for i in range(18):
            write_picture(folder / name / f"{i}.png", colour, (40 + i, 57 - 2 * i), seed=20 * k + i)
    return load_data(str(folder))


def the_same(backbone, data, monkeypatch, shots, how, epochs=2):
    """coop's context and the reference's after so many epochs, and the first one."""
    orders, shuffle = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *n, **o: (orders.append(shuffle(*n, **o)), orders[-1])[1])
    shape = (len(CLASSES), how.n_ctx, 64) if how.csc else (how.n_ctx, 64)
    # Ten times as long as a random first context: there the gradient is smaller, and weight decay shows beside it.
    start = 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(7))
    recipe = replace(paper_recipe(shots, len(CLASSES)), epochs=epochs, views=0)
    learned = fit(backbone, data, recipe, how, shots, seed=3, init=start)

    items = oracle.few_shot(data.splits["all"], shots, seed=3)
    assert [item.name for item in learned.data.train] == [item.name for item in items]
    labels = torch.tensor([item.label for item in items])
    seen = [(torch.stack([to_tensor(view(item, epoch)) for item in items]), labels) for epoch in range(epochs)]
    names = [name.replace("_", " ") for name in data.class_names]
    expected = oracle.train(backbone.model, backbone.tokenizer, names, start, how.position, seen, orders)
    return learned.prompt.context, expected, start


def view(item, epoch):
    """The view of an epoch, as coop draws it: how views are drawn is tested below."""
    content = item.read()
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return pixels._view(Image.open(io.BytesIO(content)), digest, epoch, SIZE)


def check_same(learned, expected, start):
    assert float((learned - expected).norm() / expected.norm()) < 1e-4
    # Nor is that so because the context hardly moves; without weight decay this would be 5e-4 and more.
    assert float((learned - expected).norm() / (expected - start).norm()) < 1e-4


@pytest.mark.parametrize("position", ["end", "middle"])
@pytest.mark.parametrize("csc", [False, True])
def test_two_epochs_of_forty_images_end_in_the_references_context(backbone, data, monkeypatch, position, csc):
    """One batch of 32 an epoch; 8 images are dropped."""
    check_same(*the_same(backbone, data, monkeypatch, 10, ContextSettings(4, position, csc)))


@pytest.mark.parametrize(("shots", "epochs"), [(3, 3), (17, 3)])
def test_so_do_epochs_of_one_short_batch_and_of_two(backbone, data, monkeypatch, shots, epochs):
    check_same(*the_same(backbone, data, monkeypatch, shots, ContextSettings(4), epochs))


@pytest.mark.parametrize("epochs", [1, 2, 50, 200])
def test_the_rates_are_those_of_the_references_schedulers(epochs):
    optimizer, scheduler = oracle.optimizer_and_scheduler([torch.nn.Parameter(torch.zeros(1))], epochs)
    recipe, rates = replace(paper_recipe(16, 4), epochs=epochs), []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [learning_rate(recipe, epoch) for epoch in range(epochs)] == pytest.approx(rates, rel=1e-9, abs=1e-15)


# ----------------------------------------------------------------------------------------------------------- transforms


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


class Given:
    """A generator that gives these numbers in [0, 1), as numpy's Generator would turn them into what it is asked for."""

    def __init__(self, numbers):
        self.numbers = iter(numbers)

    def random(self):
        return next(self.numbers)

    def uniform(self, low, high):
        return low + (high - low) * self.random()

    def integers(self, low, high):
        return low + int(self.random() * (high - low))


@settings(max_examples=150, derandomize=True)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32))
def test_a_random_crop_is_the_references_to_the_byte(width, height, seed):
    """Both map the same random numbers to the same picture; so their crops are distributed alike."""
    rng = random.Random(seed)
    numbers = [rng.random() for _ in range(30)]
    picture = noise(width, height, seed)
    draws = iter(numbers)
    expected = oracle.random_resized_crop(picture, SIZE, lambda: next(draws))
    assert pixels.random_resized_crop(picture, SIZE, Given(numbers)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(200, 200), (300, 180), (60, 400)])
def test_random_crops_are_distributed_as_the_references(size, monkeypatch):
    """With each side's own random numbers: share of the area, aspect, place and flip, by Kolmogorov and Smirnov."""
    boxes, crop = [], Image.Image.crop
    monkeypatch.setattr(Image.Image, "crop", lambda image, box: (boxes.append(box), crop(image, box))[1])
    # Left to right brighter: its direction tells whether it was flipped.
    ramp = np.linspace(0, 255, size[0]).astype(np.uint8)
    picture = Image.fromarray(np.broadcast_to(ramp[None, :, None], (*size[::-1], 3)).copy())

    def drawn(once):
        boxes.clear()
        rising = []
        for _ in range(1500):
            row = np.asarray(once()).astype(int)[4, :, 0]
            rising.append(row[-1] >= row[0])
        left, top, right, bottom = np.array(boxes, float).T
        w, h = right - left, bottom - top
        return {
            "area": w * h, "aspect": w / h, "left": left, "top": top, "right": right, "bottom": bottom,
            "flip": np.array(rising, float),
        }  # fmt: skip

    rng, python = np.random.default_rng(1), random.Random(2)
    mine = drawn(lambda: pixels.random_resized_crop(picture, 8, rng))
    theirs = drawn(lambda: oracle.random_resized_crop(picture, 8, python.random))
    for name, values in mine.items():
        at = np.union1d(values, theirs[name])
        shares = [np.searchsorted(np.sort(side), at, "right") / len(side) for side in (values, theirs[name])]
        assert np.abs(shares[0] - shares[1]).max() < 0.06, name  # at 1 in 10,000: 2.23 * sqrt(2 / 1500) = 0.08
    assert 0.45 < mine["flip"].mean() < 0.55


@pytest.mark.parametrize(
    "size",
    [(32, 32), (64, 64), (33, 32), (32, 35), (41, 57), (57, 41), (100, 75), (33, 100), (7, 5), (1, 1), (1, 50), (150, 3)],
)
def test_a_test_picture_is_the_references_to_the_byte(backbone, size):
    picture, held = noise(*size), io.BytesIO()
    picture.save(held, "PNG")
    (mine,) = pixels.prepare(backbone.preprocessing, held.getvalue(), "x", b"", [None])
    assert (mine == to_tensor(oracle.centre_crop(picture, SIZE)).numpy()).all()
