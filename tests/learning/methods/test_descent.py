import pytest
import torch
import torch.nn.functional as F
from few_shot_tasks import clustered

from coopcli.errors import CoopError
from coopcli.learning.methods.descent import descend_as_paper, descend_on_views
from coopcli.learning.recipe import Recipe
from coopcli.learning.training import drawn_views


def test_descent_step_by_step(mini):
    """The same weights by hand: views, batches and rates of each step, and SGD without momentum."""
    task, _, _ = clustered(mini, classes=3, shots=4)  # 12 images: two batches of 5, two left out
    learned = torch.nn.Parameter(torch.zeros(3, 16))
    rates = []

    def rate(epochs_gone):
        rates.append(epochs_gone)
        return 0.1 / (1 + epochs_gone)

    descend_on_views(task, lambda images: images @ learned.T, torch.optim.SGD([learned], lr=9.0), rate, epochs=3, batch_size=5)
    assert rates == [0, 0.5, 1, 1.5, 2, 2.5]

    by_hand, order, views = torch.zeros(3, 16), torch.Generator().manual_seed(task.seed), drawn_views(task.views, task.seed)
    for epoch in range(3):
        shuffled = torch.randperm(12, generator=order)
        for part in (0, 1):
            batch = shuffled[5 * part : 5 * part + 5]
            images = views(epoch)[batch]
            error = (images @ by_hand.T).softmax(-1) - F.one_hot(task.labels[batch], 3)
            by_hand -= 0.1 / (1 + epoch + part / 2) * error.T @ images / 5
    assert torch.allclose(learned, by_hand, atol=1e-6)


def test_fewer_images_than_a_batch_are_one_batch(mini):
    task, _, _ = clustered(mini, classes=2, shots=2)
    learned, steps = torch.nn.Parameter(torch.zeros(2, 16)), []
    optimizer = torch.optim.SGD([learned], lr=0.1)
    descend_on_views(
        task, lambda images: (steps.append(len(images)), images @ learned.T)[1], optimizer, lambda epoch: 0.1, 3, 32
    )
    assert steps == [4, 4, 4]


def test_the_papers_sgd(mini):
    """One image batch, two epochs: warm-up rate, then the full one, with momentum and weight decay."""
    task, _, _ = clustered(mini, classes=2, shots=2)
    learned, x = torch.nn.Parameter(torch.ones(2, 16)), drawn_views(task.views, task.seed)
    recipe = Recipe(epochs=2, lr=0.5, batch_size=4, warmup_lr=0.1, momentum=0.9, weight_decay=0.01)
    descend_as_paper(task, lambda images: images @ learned.T, learned, recipe)
    w, velocity = torch.ones(2, 16), torch.zeros(2, 16)
    for epoch, rate in ((0, 0.1), (1, 0.5)):
        error = (x(epoch) @ w.T).softmax(-1) - F.one_hot(task.labels, 2)
        velocity = 0.9 * velocity + error.T @ x(epoch) / 4 + 0.01 * w
        w = w - rate * velocity
    assert torch.allclose(learned, w, atol=1e-5)


def test_a_loss_that_is_no_number(mini):
    task, _, _ = clustered(mini, classes=2, shots=2)
    learned = torch.nn.Parameter(torch.full((2, 16), torch.inf))
    with pytest.raises(CoopError, match="not finite in epoch 1 of 2"):
        descend_as_paper(task, lambda images: images @ learned.T, learned, Recipe(epochs=2))
