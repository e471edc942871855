from dataclasses import replace

import oracle
import pytest
import torch
import torch.nn.functional as F

from coopcli.clip.prompts import ContextSettings, context_prompts, random_context
from coopcli.errors import CoopError
from coopcli.learning.recipe import Recipe, fast_recipe, learning_rate
from coopcli.learning.training import TrainingState, TrainingTask, drawn_views, train_context

NAMES = ["star", "red ring", "annual crop"]


def some_features(n, views=1, seed=5):
    return F.normalize(torch.randn(n, views, 24, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", [False, True])
def test_three_steps_agree_with_sgd_by_hand(tiny_model, tiny_encoder, tokenizer, position, csc):
    how = ContextSettings(4, position, csc)
    start = random_context(how, len(NAMES), tiny_encoder.width, seed=2)
    features, labels = some_features(6), torch.tensor([0, 1, 2, 2, 1, 0])
    # One batch an epoch, so that three epochs are three steps over the same images, whatever their order.
    scale, prompts = float(tiny_model.logit_scale.exp()), context_prompts(tokenizer, how, NAMES)
    task = TrainingTask(prompts, drawn_views(features, 1), labels, scale, Recipe(epochs=3, batch_size=32), seed=1)
    learned = train_context(tiny_encoder, task, TrainingState(start)).context
    expected = oracle.sgd(
        tiny_model, tokenizer, NAMES, start, position, [(features[:, 0], labels)] * 3, oracle.learning_rates(3)
    )
    assert (learned - start).norm() > 0
    assert float(((learned - start) - (expected - start)).norm() / (expected - start).norm()) < 1e-4


@pytest.mark.parametrize(("position", "csc"), [("end", False), ("middle", True)])
@pytest.mark.parametrize("chunk", [0, 2])
def test_kept_close_agrees_with_sgd_by_hand(tiny_model, tiny_encoder, tokenizer, position, csc, chunk):
    """KgCoOp: cross-entropy and the distance to the hand-written class features, which are those of the stock tower."""
    how = ContextSettings(4, position, csc)
    start = random_context(how, len(NAMES), tiny_encoder.width, seed=2)
    features, labels = some_features(6), torch.tensor([0, 1, 2, 2, 1, 0])
    scale, prompts = float(tiny_model.logit_scale.exp()), context_prompts(tokenizer, how, NAMES)
    recipe = Recipe(epochs=3, batch_size=32, keep_close=8.0)
    near = oracle.template_features(tiny_model, tokenizer, "a photo of a {}.", NAMES)
    task = TrainingTask(prompts, drawn_views(features, 1), labels, scale, recipe, 1, chunk, near)
    learned = train_context(tiny_encoder, task, TrainingState(start)).context
    batches, rates = [(features[:, 0], labels)] * 3, oracle.learning_rates(3)
    moved = []
    for weight in (8.0, 4.0):
        end = oracle.sgd(tiny_model, tokenizer, NAMES, start, position, batches, rates, "a photo of a {}.", weight)
        moved.append(end - start)
    assert float(((learned - start) - moved[0]).norm() / moved[0].norm()) < 1e-4
    assert float(((learned - start) - moved[1]).norm() / moved[1].norm()) > 1e-2


def test_adam_over_all_images_agrees_with_adam_by_hand(tiny_model, tiny_encoder, tokenizer):
    how, labels = ContextSettings(4), torch.tensor([0, 1, 2, 2, 1, 0])
    start, features = random_context(how, len(NAMES), tiny_encoder.width, seed=2), some_features(6)[:, 0]
    recipe = replace(fast_recipe(), epochs=4, warmup_epochs=2)
    scale = float(tiny_model.logit_scale.exp())
    prompts = context_prompts(tokenizer, how, NAMES)
    task = TrainingTask(prompts, lambda epoch: features, labels, scale, recipe, 1)
    learned = train_context(tiny_encoder, task, TrainingState(start)).context
    expected, mean, square = start.clone(), 0.0, 0.0
    for step in range(1, 5):
        expected.requires_grad_()
        text = oracle.text_features(tiny_model, tokenizer, NAMES, expected)
        (gradient,) = torch.autograd.grad(F.cross_entropy(scale * features @ text.T, labels), expected)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        moved = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        expected = expected.detach() - learning_rate(recipe, step - 1) * moved
    assert float(((learned - start) - (expected - start)).norm() / (expected - start).norm()) < 1e-3


def test_every_epoch_draws_one_view_of_each_image():
    features = torch.arange(20).view(5, 4, 1)  # feature 4 i + v is view v of image i
    of_epoch = drawn_views(features, seed=3)
    epochs = [of_epoch(epoch)[:, 0] for epoch in range(40)]
    assert all((drawn // 4).tolist() == [0, 1, 2, 3, 4] for drawn in epochs)
    assert {int(view) for drawn in epochs for view in drawn} == set(range(20))
    assert torch.equal(of_epoch(7), drawn_views(features, seed=3)(7))
    assert not all(torch.equal(a, drawn_views(features, seed=4)(epoch)[:, 0]) for epoch, a in enumerate(epochs))


@pytest.mark.parametrize("chunk", [1, 2])
def test_class_chunks_learn_the_same(tiny_encoder, tokenizer, chunk):
    how, labels = ContextSettings(4), torch.tensor([0, 1, 2, 2, 1, 0])
    start, features = random_context(how, len(NAMES), tiny_encoder.width, seed=2), some_features(6)[:, 0]
    prompts = context_prompts(tokenizer, how, NAMES)

    def learn(size):
        task = TrainingTask(prompts, lambda epoch: features, labels, 20.0, Recipe(epochs=3), 1, class_chunk=size)
        return train_context(tiny_encoder, task, TrainingState(start)).context

    assert float((learn(chunk) - learn(0)).norm() / (learn(0) - start).norm()) < 1e-4


def run(tiny_encoder, tokenizer, features, labels, seed=1, start_seed=2, **recipe):
    how = ContextSettings(2)
    start = TrainingState(random_context(how, len(NAMES), tiny_encoder.width, seed=start_seed))
    prompts = context_prompts(tokenizer, how, NAMES)
    task = TrainingTask(prompts, drawn_views(features, seed), labels, 20.0, Recipe(**recipe), seed)
    state = train_context(tiny_encoder, task, start)
    return state.context, state.log


@pytest.mark.same_bytes
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_ends_in_the_same_bytes(tiny_encoder, tokenizer, optimizer, stop):
    how, labels = ContextSettings(2), torch.arange(12) % 3
    prompts, features = context_prompts(tokenizer, how, NAMES), drawn_views(some_features(12, views=3), 1)
    recipe, states = Recipe(epochs=6, batch_size=4, optimizer=optimizer), []
    start = TrainingState(random_context(how, len(NAMES), tiny_encoder.width, seed=2))

    def learn(begin):
        return train_context(tiny_encoder, TrainingTask(prompts, features, labels, 20.0, recipe, 1), begin, states.append)

    whole = learn(start)
    resumed = learn(states[stop - 1])
    assert torch.equal(resumed.context, whole.context)
    assert resumed.log == whole.log
    assert all(torch.equal(resumed.optimizer[name], value) for name, value in whole.optimizer.items())
    assert not torch.equal(states[stop - 1].context, whole.context)


@pytest.mark.same_bytes
def test_same_seed_same_bytes_other_seed_other_bytes(tiny_encoder, tokenizer):
    features, labels = some_features(12, views=3), torch.arange(12) % 3
    one, again, other = (run(tiny_encoder, tokenizer, features, labels, seed, epochs=3, batch_size=4)[0] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_loss_falls_and_is_reported(tiny_encoder, tokenizer):
    labels = torch.arange(12) % 3
    features = F.normalize(F.one_hot(labels, 24).float() + 0.1 * some_features(12)[:, 0], dim=-1)[:, None]
    _, logs = run(tiny_encoder, tokenizer, features, labels, epochs=30, batch_size=4, lr=0.05)
    assert [log.epoch for log in logs] == list(range(30))
    assert logs[-1].loss < 0.7 * logs[0].loss


@pytest.mark.parametrize(("n", "batch", "steps"), [(10, 4, 2), (3, 4, 1), (4, 4, 1), (5, 4, 1)])
def test_short_last_batch_is_dropped_unless_it_is_the_only_one(tiny_encoder, tokenizer, monkeypatch, n, batch, steps):
    seen = []
    true_step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *a, **k: (seen.append(1), true_step(self, *a, **k))[1])
    run(tiny_encoder, tokenizer, some_features(n), torch.arange(n) % 3, epochs=1, batch_size=batch)
    assert len(seen) == steps


def test_a_loss_that_is_no_number_stops_the_run(tiny_encoder, tokenizer):
    with pytest.raises(CoopError, match="step 1 of epoch 1 of 2"):
        run(tiny_encoder, tokenizer, torch.full((4, 1, 24), float("nan")), torch.arange(4) % 3, epochs=2)


@pytest.mark.same_bytes
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_recomputation_changes_no_bit(tiny_encoder, tokenizer, csc, chunk):
    """What short memory asks for must not show in the result."""
    how, labels = ContextSettings(4, csc=csc), torch.tensor([0, 1, 2, 2, 1, 0])
    start, features = random_context(how, len(NAMES), tiny_encoder.width, seed=2), some_features(6)[:, 0]
    prompts = context_prompts(tokenizer, how, NAMES)
    task = TrainingTask(prompts, lambda epoch: features, labels, 20.0, Recipe(epochs=3), 1, class_chunk=chunk)
    plain, *others = (
        train_context(tiny_encoder, task, TrainingState(start), recompute=recompute)
        for recompute in ("nothing", "chunks", "layers")
    )
    assert not torch.equal(plain.context, start)
    for other in others:
        assert torch.equal(other.context, plain.context) and other.log == plain.log


@pytest.mark.same_bytes
@pytest.mark.parametrize("recompute", ["nothing", "chunks", "layers"])
def test_gradients_are_summed_from_the_last_chunk_to_the_first(tiny_encoder, tokenizer, recompute):
    names = [*NAMES, "moon", "a small green heart", "triangle", "sea lake"]
    prompts = context_prompts(tokenizer, ContextSettings(4), names)
    context = random_context(ContextSettings(4), len(names), tiny_encoder.width, seed=2)
    layouts = tiny_encoder.lay_out(prompts, 2)
    assert len(layouts) == 4
    whole = context.clone().requires_grad_()
    weights = torch.randn(len(names), 24, generator=torch.Generator().manual_seed(3))
    (tiny_encoder.encode_layouts(layouts, whole, recompute) * weights).sum().backward()
    total = None
    for number in reversed(range(4)):
        own = context.clone().requires_grad_()
        (tiny_encoder(layouts[number], own) * weights[2 * number : 2 * number + 2]).sum().backward()
        total = own.grad if total is None else total + own.grad
    assert torch.equal(whole.grad, total)


@pytest.mark.parametrize("lr", [1e9, 3e8])
def test_a_context_that_is_not_finite_is_refused(tiny_encoder, tokenizer, lr):
    """The loss of the last step is that before it: only the context shows what the step did."""
    reached = []
    how, labels = ContextSettings(2), torch.arange(4) % 3
    start = TrainingState(torch.full((2, tiny_encoder.width), 3e38) * torch.randn(2, tiny_encoder.width).sign())
    features = some_features(4)[:, 0]
    recipe = Recipe(epochs=2, lr=lr, warmup_lr=lr, weight_decay=1e9)
    task = TrainingTask(context_prompts(tokenizer, how, NAMES), lambda epoch: features, labels, 20.0, recipe, 1)
    with pytest.raises(CoopError, match="is not finite"):
        train_context(tiny_encoder, task, start, reached.append)
    assert reached == []
