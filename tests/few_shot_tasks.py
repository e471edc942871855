"""Few-shot tasks made of random features: what the tests of the methods learn from."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from coopcli.learning.methods.task import FewShotTask

WIDTH, VIEWS = 16, 3


def clustered(backbone, classes=4, shots=4, val_shots=2, seed=0, misleading=True):
    """A task and its test images: a cluster of features for each class, and text features near to another class's.

    So hand-written prompts are wrong and the images tell. Without `misleading` the text features are right, but vague.
    """
    random = torch.Generator().manual_seed(seed)

    def near(centres, labels, noise):
        return F.normalize(centres[labels] + noise * torch.randn(len(labels), WIDTH, generator=random), dim=-1)

    centres = F.normalize(torch.randn(classes, WIDTH, generator=random), dim=-1)
    labels, val_labels, test_labels = (torch.arange(classes).repeat(n) for n in (shots, val_shots, 25))
    text = near(centres.roll(1, 0) if misleading else centres, torch.arange(classes), 0.1)
    views = torch.stack([near(centres, labels, 0.15) for _ in range(VIEWS)], dim=1)
    names = tuple(f"class {k}" for k in range(classes))
    task = FewShotTask(
        backbone, names, tuple(f"c{k}" for k in range(classes)), text, near(centres, labels, 0.12), views, labels,
        near(centres, val_labels, 0.12), val_labels, (), seed,
    )  # fmt: skip
    return task, near(centres, test_labels, 0.12), test_labels


def without_val(task):
    """The same task of a plain folder, which has no validation images."""
    return replace(task, val=task.val[:0], val_labels=task.val_labels[:0])


def check_method(learn, task, images, labels, folder, at_least):
    """What all methods have in common: the gain, the same bytes again, and the same answers from the file."""
    from coopcli.learned.prompt import load_learned
    from coopcli.learning.methods.task import accuracy

    hand_written = accuracy(images @ task.text.T, labels)
    head = learn(task)
    assert accuracy(head.logits(images), labels) >= max(at_least, hand_written)
    head.save(folder / "a" / "head.safetensors")
    torch.manual_seed(99)  # no method may depend on the global random numbers
    learn(task).save(folder / "b" / "head.safetensors")
    assert (folder / "a" / "head.safetensors").read_bytes() == (folder / "b" / "head.safetensors").read_bytes()
    loaded = load_learned(folder / "a")
    assert torch.equal(loaded.logits(images), head.logits(images))
    assert loaded.training == head.training and loaded.training["parameters"] >= 0 and loaded.training["trains"]
    return head
