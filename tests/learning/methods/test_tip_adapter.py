import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from few_shot_tasks import check_method, clustered, without_val

from coopcli.learning.methods import tip_adapter
from coopcli.learning.methods.tip_adapter import ALPHA, ALPHAS, BETA, BETAS, choose, learn, learn_f, mean_keys
from coopcli.learning.training import drawn_views


def slow_logits(task, images, keys, alpha, beta, skip_own=False):
    """The formula, one key at a time; `skip_own` leaves out the key of the image itself."""
    logits = task.backbone.logit_scale * images @ task.text.T
    for i in range(len(images)):
        for j, label in enumerate(task.labels.tolist()):
            if not (skip_own and i == j):
                logits[i, label] += alpha * math.exp(-beta * (1 - float(images[i] @ keys[j])))
    return logits


def test_the_cache_as_it_is(mini, tmp_path):
    task, images, labels = clustered(mini)
    head = check_method(learn, task, images, labels, tmp_path, at_least=0.9)
    assert head.training["parameters"] == 0 and head.training["alpha_and_beta_chosen_on"] == "validation images"
    keys = torch.stack([F.normalize(sum(views) / len(views), dim=0) for views in task.views])
    assert torch.allclose(head.keys, keys, atol=1e-6) and torch.equal(head.values, task.labels)
    expected = slow_logits(task, images, keys, head.alpha, head.beta)
    assert torch.allclose(head.logits(images), expected, rtol=1e-4, atol=1e-3)


def test_the_keys_learn(mini, tmp_path):
    task, images, labels = clustered(mini)
    head = check_method(learn_f, task, images, labels, tmp_path, at_least=0.9)
    assert head.training["parameters"] == task.views.shape[0] * 16
    moved = (head.keys - mean_keys(task.views)).abs().max()
    assert 1e-3 < moved < tip_adapter.EPOCHS * tip_adapter.LR * 1.5  # AdamW goes about its rate a step


def test_training_lowers_the_loss_on_the_views(mini):
    task = without_val(clustered(mini, shots=1)[0])  # so that alpha and beta stay as they were
    before, after = learn(task), learn_f(task)
    assert (before.alpha, before.beta) == (after.alpha, after.beta)
    views, labels = task.views.flatten(0, 1), task.labels.repeat_interleave(task.views.shape[1])
    assert F.cross_entropy(after.logits(views), labels) < F.cross_entropy(before.logits(views), labels)


def test_the_keys_as_the_authors_train_them(mini):
    """The same keys with PyTorch's own cosine, stepped after every batch (one an epoch here)."""
    task = without_val(clustered(mini, shots=1)[0])
    keys = torch.nn.Parameter(mean_keys(task.views))
    optimizer = torch.optim.AdamW([keys], lr=1e-3, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    views, order = drawn_views(task.views, task.seed), torch.Generator().manual_seed(task.seed)
    for epoch in range(20):
        batch = torch.randperm(4, generator=order)
        x = views(epoch)[batch]
        cached = (-(5.5 - 5.5 * x @ keys.T)).exp() @ F.one_hot(task.labels, 4).float()
        loss = F.cross_entropy(mini.logit_scale * x @ task.text.T + 1.0 * cached, task.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert (learn_f(task).keys - keys).abs().max() < 1e-5


@pytest.mark.parametrize("with_val", [True, False])
def test_the_choice_is_the_best_of_all_pairs(mini, monkeypatch, with_val):
    task, _, _ = clustered(mini, classes=3, shots=3, val_shots=3, seed=5)
    task = replace(
        task, val=F.normalize(task.val + 0.3 * torch.randn(9, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    )
    task = task if with_val else without_val(task)
    monkeypatch.setattr(tip_adapter, "ALPHAS", ALPHAS[::8])
    monkeypatch.setattr(tip_adapter, "BETAS", BETAS[::12])
    keys = mean_keys(task.views)
    images, labels = (task.val, task.val_labels) if with_val else (task.train, task.labels)
    worth = {}
    for alpha in ALPHAS[::8]:
        for beta in BETAS[::12]:
            logits = slow_logits(task, images, keys, alpha, beta, skip_own=not with_val)
            right = int((logits.argmax(-1) == labels).sum())
            worth[alpha, beta] = (right, -float(F.cross_entropy(logits, labels)))
    choice = choose(task, keys)
    assert (choice.alpha, choice.beta) == max(worth, key=worth.get)


def test_without_validation_images(mini):
    task, images, labels = clustered(mini)
    head = learn(without_val(task))
    assert head.training["alpha_and_beta_chosen_on"] == "train images, each without its own key"
    assert (head.logits(images).argmax(-1) == labels).float().mean() > 0.9
    for method in (learn, learn_f):
        head = method(without_val(clustered(mini, shots=1)[0]))
        assert (head.alpha, head.beta) == (ALPHA, BETA)
        assert head.training["alpha_and_beta_chosen_on"].startswith("nothing")
