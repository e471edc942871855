"""Words that name no prompt: near misses, unfinished runs, swapped arguments."""

import shutil

import pytest
from conftest import failed, learned_prompt, ran

from coopcli.cli.finding import check_prompt, holds_prompt, is_run
from coopcli.errors import UsageError
from coopcli.settings import to_toml


@pytest.fixture
def runs(tmp_path, mini, monkeypatch):
    """Two runs in coop-runs, one in another folder, one that is not done."""
    monkeypatch.chdir(tmp_path)
    for place in ("coop-runs/flowers-16shots", "coop-runs/birds-16shots", "mine/first"):
        learned_prompt(mini).save(tmp_path / place / "prompt.safetensors")
    (tmp_path / "mine" / "half").mkdir()
    (tmp_path / "mine" / "half" / "settings.toml").write_text(to_toml({"data": "photos", "model": "mini", "shots": 16}))


@pytest.mark.parametrize("word, near", [
    ("coop-runs/flower-16shots", "coop-runs/flowers-16shots"), ("flowers-16shots", "coop-runs/flowers-16shots"),
    ("coop-run/birds-16shots", "coop-runs/birds-16shots"), ("mine/frist", "mine/first"), ("mine/half2", "mine/half"),
    ("mine/frist/prompt.safetensors", "mine/first"),
])  # fmt: skip
def test_near_misses_are_named_and_not_looked_for_on_the_hub(coop, runs, word, near):
    for command in (
        ("eval", word, "."), ("interpret", word), ("predict", word, "x.png"), ("report", word), ("transfer", word, "."),
        ("transfer", "mine/first", word, "."),
    ):  # fmt: skip
        failed(coop(*command), 2, f'there is no "{word}"; did you mean', near)


def test_what_may_be_on_the_hub_passes(runs):
    for word in ("alice/flowers", "alice/flowers-16shots", "mine/something-else", "coop-runs/flowers-16shots", "nothing"):
        check_prompt(word)


def test_a_run_that_is_not_done_says_how_to_resume(coop, runs):
    for command in (
        ("eval", "mine/half", "."), ("interpret", "mine/half"), ("report", "mine/half"), ("export", "mine/half"),
        ("transfer", "mine/half", "."),
    ):  # fmt: skip
        failed(coop(*command), 2, '"mine/half" is not done', "coop fit --config mine/half/settings.toml -o mine/half")


def test_a_sweep_is_not_one_prompt(coop, runs, tmp_path):
    settings = to_toml({"data": "photos", "model": "mini", "shots": "1,2", "methods": "coop"})
    for name in ("grid", "half-grid"):
        (tmp_path / name / "cells" / "x").mkdir(parents=True)
        (tmp_path / name / "settings.toml").write_text(settings)
    (tmp_path / "grid" / "results.json").write_text("{}")
    for command in ("eval", "interpret", "export"):
        failed(coop(command, "grid"), 2, "grid", "those of a sweep are in its folder cells")
        failed(coop(command, "half-grid"), 2, '"half-grid" is not done (0 experiments done)', "run the same sweep again")
    failed(coop("report", "half-grid"), 2, '"half-grid" is not done')


def test_prompt_and_data_swapped(coop, runs, photos):
    for command in (("eval", photos, "mine/first"), ("predict", photos, "mine/first"), ("predict", photos, "x", "mine/first")):
        failed(coop(*command), 2, '"mine/first" is a learned prompt', "give the prompt first")


def test_a_run_folder_is_never_classified_as_images(coop, runs):
    failed(coop("predict", "mine/first", "coop-runs/birds-16shots"), 2, "is a run folder, not images")


def test_a_folder_of_runs_is_not_data(coop, runs):
    for folder in ("mine/first", "mine", "mine/half"):
        failed(coop("eval", "mine/first", folder), 1, f'"{folder}" holds what coop learned, not images')


def test_near_misses_of_images_are_named(coop, runs, photos):
    """Beside what is missing, whatever reads it: DATA, images, a file of them."""
    for command in (
        ("zeroshot", "fotos", "--model", "mini"),
        ("predict", "mine/first", "fotos"),
        ("eval", "mine/first", "./fotos"),
    ):
        failed(coop(*command), 2, 'did you mean "photos"?')
    failed(coop("predict", "mine/first", "photos/red/0.pgn"), 2, 'did you mean "photos/red/0.png"?')
    assert "did you mean" not in coop("predict", "mine/first", "quite-another")[2]


def test_predict_looks_at_the_prompt_first(coop, runs, photos):
    shutil.rmtree(photos)
    failed(coop("predict", "mine/frist", "no/image.png"), 2, "did you mean mine/first")


def test_eval_without_data_says_what_it_took(coop, runs, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    code, _, err = coop("eval", tmp_path / "mine" / "first")
    assert code == 0 and "no DATA given; taking the images of the current folder" in err
    code, _, err = coop("eval", tmp_path / "mine" / "first", photos)
    assert code == 0 and "no DATA given" not in err


def test_what_holds_a_prompt(runs, tmp_path, photos):
    assert all(map(holds_prompt, (tmp_path / "mine" / "first", tmp_path / "mine" / "first" / "prompt.safetensors")))
    assert not any(map(holds_prompt, (photos, photos / "red" / "0.png", tmp_path / "mine" / "half", tmp_path / "no")))
    assert is_run(tmp_path / "mine" / "half") and not is_run(photos)


def test_sorting_by_command(coop, runs, photos, tmp_path):
    for k in range(2):  # the second time, names are taken
        shutil.copytree(photos, tmp_path / "again", dirs_exist_ok=True)
        code, out, err = coop("predict", "mine/first", "again", "--move-to", "sorted")
        assert code == 0 and "moved 18 images" in err
        assert len(list((tmp_path / "sorted").rglob("*.png"))) == 18 * (k + 1)
        assert not list((tmp_path / "again").rglob("*.png"))
    ran(coop("predict", "mine/first", photos, "--link-to", "linked"))
    links = list((tmp_path / "linked").rglob("*.png"))
    assert len(links) == 18 and all(link.is_symlink() and link.exists() for link in links)
    code, out, err = coop("predict", "mine/first", photos, "--link-to", "none", "--threshold", "1")
    assert code == 0 and "linked 0 images" in err and "18 stay" in err
    assert out.count("none of these (") == 18  # the best guess stays in sight
    failed(coop("predict", "mine/first", photos, "--link-to", "a", "--move-to", "b"), 2, "choose one")


def test_a_missing_prompt_is_still_one_line(runs):
    with pytest.raises(UsageError, match="did you mean"):
        check_prompt("mine/firsst")
