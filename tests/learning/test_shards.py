import functools
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import write_picture
from hypothesis import given
from hypothesis import strategies as st
from jobs import torchrun
from learning.shards_job import VARIANTS, learn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from coopcli.clip.prompts import ContextSettings, context_prompts, random_context
from coopcli.learning.shards import ClassShards, add_neighbours, cut

NAMES = ["annual crop", "annual grass", "moon", "moon rock", "red ring", "ring", "star"]
JOB = Path(__file__).parent / "shards_job.py"

a_prompt = st.lists(st.integers(-4, 9), min_size=1, max_size=6).map(tuple)


@given(st.lists(a_prompt, min_size=1, max_size=40), st.integers(0, 50), st.booleans())
def test_chunks_hold_every_class_once_and_equal_prompts_together(prompts, size, tree):
    chunks = cut(prompts, size, tree)
    assert sorted(k for chunk in chunks for k in chunk.classes) == list(range(len(prompts)))
    assert 1 <= len(chunks) <= (-(-len(prompts) // size) if size else 1)
    if len(chunks) > 1:
        owners = {}
        for number, chunk in enumerate(chunks):
            own = [prompts[k] for k in chunk.classes]
            prefixes = {prompt[:end] for prompt in own for end in range(1, len(prompt) + 1)}
            assert chunk.rows == (len(prefixes) if tree else sum(map(len, set(own))))
            assert all(owners.setdefault(prompt, number) == number for prompt in own)


def test_chunks_are_of_about_equal_rows(tokenizer):
    names = [f"{a} {b}" for a in ("a", "the old", "a very small and quite old") for b in NAMES * 3]
    chunks = cut(context_prompts(tokenizer, ContextSettings(4), list(dict.fromkeys(names))), 3)
    rows = [chunk.rows for chunk in chunks]
    assert len(chunks) == 7 and max(rows) < 1.5 * sum(rows) / len(rows)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 99))
def test_sums_have_the_same_bits_whoever_has_which_part(n, processes, seed):
    values = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    leaves = {(0, place): values[place] for place in range(n)}
    (alone,) = add_neighbours(leaves, n).values()
    cuts = sorted(random.Random(seed).choices(range(n + 1), k=processes - 1))
    told = {}
    for begin, end in zip([0, *cuts], [*cuts, n], strict=True):
        told |= add_neighbours({(0, place): values[place] for place in range(begin, end)}, n)
    (together,) = add_neighbours(told, n).values()
    assert torch.equal(alone, together)
    assert torch.allclose(alone, values.sum(), atol=1e-5)


@pytest.mark.parametrize("recompute", ["nothing", "chunks", "layers"])
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize(("size", "weight"), [(1, 0), (2, 0), (3, 8.0), (6, 0)])
def test_loss_accuracy_and_gradient_are_those_of_the_whole(tiny_encoder, tokenizer, csc, size, weight, recompute):
    how = ContextSettings(4, "middle", csc)
    prompts = context_prompts(tokenizer, how, NAMES)
    context = random_context(how, len(NAMES), tiny_encoder.width, seed=2)
    generator = torch.Generator().manual_seed(1)
    images = 10 * F.normalize(torch.randn(9, 24, generator=generator), dim=-1)
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 6, 6, 0])
    expected = context.clone().requires_grad_()
    text = tiny_encoder.encode(prompts, expected)
    logits, hand_written = images @ text.T, F.normalize(torch.randn(len(NAMES), 24, generator=generator), dim=-1)
    whole = F.cross_entropy(logits, labels) + weight * (text - hand_written).square().sum(-1).mean()
    whole.backward()
    shards = ClassShards(tiny_encoder, prompts, size, context)
    assert shards.n_chunks > 1
    learned = torch.nn.Parameter(shards.own(context))
    loss, right = shards.backward(learned, images, labels, recompute, (hand_written, weight) if weight else None)
    assert torch.allclose(loss, whole, rtol=1e-5)
    assert float(right) == pytest.approx(float((logits.argmax(-1) == labels).float().mean()))
    assert float((shards.whole(learned.grad) - expected.grad).norm() / expected.grad.norm()) < 1e-5


class Widest(TorchDispatchMode):
    """The most columns that all tensors [rows, ...] of so many rows had together at any time."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.most, self.alive = rows, 0, WeakTensorKeyDictionary()

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        made = operation(*given, **(named or {}))
        for tensor in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and len(tensor) == self.rows:
                self.alive[tensor] = tensor.shape[1]
        self.most = max(self.most, sum(self.alive.values()))
        return made


def test_logits_of_all_classes_are_never_in_memory_together(tiny_encoder, tokenizer):
    """A batch of all images of 21,841 classes would have 1.9 GB of them."""
    names = [
        f"{first} {second}" for first in ("red", "blue", "green", "old", "new") for second in ("ring", "star", "moon", "sun")
    ]
    how = ContextSettings(2)
    context = random_context(how, len(names), tiny_encoder.width, seed=2)
    shards = ClassShards(tiny_encoder, context_prompts(tokenizer, how, names), 2, context)
    assert shards.n_chunks == 10 and max(part.stop - part.start for part in shards.ranges) <= 3
    images = F.normalize(torch.randn(91, 24, generator=torch.Generator().manual_seed(1)), dim=-1)
    with Widest(len(images)) as widest:
        shards.backward(torch.nn.Parameter(context.clone()), images, torch.arange(91) % len(names), "chunks")
    assert 2 <= widest.most <= 12


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded") / "photos"
    for k, name in enumerate(NAMES):
        for i in range(3):
            write_picture(folder / name / f"{i}.png", (30 * k, 250 - 30 * k, 99), seed=10 * k + i)
    return folder


@pytest.fixture(scope="module")
def alone(photos):
    """What one process learns: the bytes of each file."""

    @functools.cache
    def of(optimizer):
        learn(photos, photos.parent, optimizer=optimizer)
        return contents(photos.parent)

    return of


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.*") if path.suffix != ".checkpoint"}


@pytest.mark.parametrize("size", [2, 4])
def test_many_processes_learn_the_same_bytes_as_one_and_resume_what_one_began(photos, alone, tmp_path, size):
    if size == 2:
        learn(photos, tmp_path, stop=2)  # in one process; goes on in two
        assert not contents(tmp_path)
    job = torchrun(size, JOB, photos, tmp_path)
    assert job.returncode == 0, job.stderr
    expected = alone("sgd")
    assert len(expected) == 2 * len(VARIANTS) and contents(tmp_path) == expected


@pytest.mark.same_bytes
def test_one_process_goes_on_with_what_it_began(photos, alone, tmp_path):
    learn(photos, tmp_path, stop=3, optimizer="adam")
    learn(photos, tmp_path, optimizer="adam")
    assert contents(tmp_path) == alone("adam") and contents(tmp_path) != alone("sgd")
