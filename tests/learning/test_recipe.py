import oracle
import pytest

from coopcli.errors import UsageError
from coopcli.learning.recipe import Recipe, fast_recipe, learning_rate, paper_epochs


@pytest.mark.parametrize("epochs", [1, 2, 50, 100, 200])
def test_schedule_is_the_papers(epochs):
    rates = [learning_rate(Recipe(epochs=epochs), epoch) for epoch in range(epochs)]
    assert rates == pytest.approx(oracle.learning_rates(epochs), rel=1e-12)


def test_fast_recipe_ramps_up():
    rates = [learning_rate(fast_recipe(), epoch) for epoch in range(200)]
    assert rates[:40] == pytest.approx([0.01 * (i + 1) / 40 for i in range(40)])
    assert rates[39] == rates[40] == max(rates) and rates[40:] == sorted(rates[40:], reverse=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": -1},
        {"views": -1},
        {"lr": float("nan")},
        {"momentum": -0.1},
        {"optimizer": "foo"},
        {"lr": float("inf")},
        {"weight_decay": float("inf")},
        {"warmup_lr": float("inf")},
        {"warmup_lr": float("nan")},
        {"epochs": 10**5000},
        {"views": 10**12},
        {"lr": -float("inf")},
    ],
)
def test_what_is_no_recipe(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_epochs_are_the_papers():
    assert [paper_epochs(shots, 100) for shots in (1, 2, 4, 8, 16, None)] == [50, 100, 100, 200, 200, 200]
    assert paper_epochs(16, 1000) == 50
