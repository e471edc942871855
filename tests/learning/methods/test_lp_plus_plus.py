from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from few_shot_tasks import check_method, clustered, without_val

from coopcli.learning.methods import lp_plus_plus
from coopcli.learning.methods.lp_plus_plus import learn


def by_autograd(task, iterations):
    """The same descent with gradients from autograd and SGD's own momentum, in float64."""
    x, text, labels = task.train.double(), task.text.double(), task.labels
    classes, n = len(text), len(x)
    w = torch.stack([x[labels == k].sum(0) for k in range(classes)]).requires_grad_()
    alpha = torch.stack([(x[labels == k] @ text[k]).mean() for k in range(classes)]).mean() * 250
    alpha = torch.full((classes,), float(alpha), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=4 * n / float(torch.linalg.eigvalsh(x.T @ x)[-1]), momentum=0.9)
    alpha_rate = n / (4 * max(float((x @ text[k]).square().sum()) for k in range(classes)))
    every = []
    for iteration in range(iterations):
        optimizer.zero_grad()
        logits = torch.stack([x @ (w[k] + alpha[k] * text[k]) for k in range(classes)], dim=1)
        F.cross_entropy(logits, labels).backward()  # alpha's gradient adds up
        optimizer.step()
        if (iteration + 1) % 10 == 0:
            alpha.data -= alpha_rate * alpha.grad
            alpha.grad = None
        every.append((w + alpha[:, None] * text).detach().clone())
    return every


def test_learning(mini, tmp_path):
    head = check_method(learn, *clustered(mini, val_shots=4), tmp_path, at_least=0.9)
    assert head.training["parameters"] == 4 * 16 + 4 and head.training["iterations_chosen_on"] == "validation images"


@pytest.mark.parametrize("iterations", [1, 9, 10, 11, 40])
def test_descent_by_autograd(mini, monkeypatch, iterations):
    monkeypatch.setattr(lp_plus_plus, "ITERATIONS", iterations)
    task = without_val(clustered(mini, classes=3, shots=5)[0])
    expected = by_autograd(task, iterations)[-1]
    assert torch.allclose(learn(task).weights.double(), expected, rtol=1e-4, atol=1e-3)


def test_the_last_iteration_that_is_best_on_validation_images(mini):
    task, _, _ = clustered(mini, classes=3, shots=5, val_shots=8)
    noise = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    task = replace(task, val=F.normalize(task.val + 0.5 * noise, dim=-1))
    every = by_autograd(task, 300)
    right = [int(((task.val.double() @ w.T).argmax(-1) == task.val_labels).sum()) for w in every]
    last_best = max(range(300), key=lambda i: (right[i], i))
    head = learn(task)
    assert head.training["iterations"] == last_best + 1
    assert torch.allclose(head.weights.double(), every[last_best], rtol=1e-3, atol=1e-2)


def test_without_validation_images(mini):
    task, images, labels = clustered(mini)
    head = learn(without_val(task))
    assert head.training["iterations"] == 300
    assert (head.logits(images).argmax(-1) == labels).float().mean() > 0.9


def test_a_class_without_images(mini):
    task, images, labels = clustered(mini, misleading=False)
    kept = task.labels != 3
    head = learn(without_val(replace(task, train=task.train[kept], labels=task.labels[kept], views=task.views[kept])))
    assert head.weights.isfinite().all()
    assert ((head.logits(images).argmax(-1) == labels)[labels != 3]).float().mean() > 0.9
