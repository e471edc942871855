import json
import shutil

import pytest
from conftest import COLOURS, failed, ran, write_picture

from coopcli.data.fewshot import draw_few_shot
from coopcli.data.load import load_data
from coopcli.experiments.contents import Trained, data_digest, trained_on, write_few_shot
from coopcli.files import FEW_SHOT_FILE
from coopcli.learned.prompt import load_prompt

FIT = ["--model", "mini", "--shots", "2", "--epochs", "2", "--views", "2", "--context-length", "2", "--no-cache"]


def test_a_digest_is_of_names_labels_contents_and_class_names(photos):
    def digest(shots=2, seed=1):
        return data_digest(draw_few_shot(load_data(str(photos)), shots, seed))

    first = digest()
    assert digest() == first != digest(seed=2) != digest(3)
    content = (photos / "red" / "0.png").read_bytes()
    write_picture(photos / "red" / "0.png", (0, 0, 0))  # the same name
    assert digest() != first
    (photos / "red" / "0.png").write_bytes(content)
    assert digest() == first
    (photos / "red" / "6.png").write_bytes(content)  # one more
    assert digest() != first
    (photos / "red" / "6.png").unlink()
    (photos / "red").rename(photos / "rose")
    assert digest() != first
    (photos / "rose" / "0.png").write_bytes(b"no image")
    assert digest()


@pytest.fixture
def run(coop, photos):
    ran(coop("fit", photos, *FIT, "-o", "run"))
    return photos.parent / "run"


def test_eval_on_the_data_that_was_learned_from(coop, run, photos, tmp_path):
    told = json.loads(ran(coop("eval", run, photos, "--json", "--no-cache", "--predictions", "p.csv")))
    assert told["n"] == 18 and told["trained_on"]["images"] == 6
    drawn = set(json.loads((run / FEW_SHOT_FILE).read_text())["train"])
    rows = [line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines()[1:]]
    right = [row[-1] == "1" for row in rows if row[0] not in drawn]
    assert told["trained_on"]["without"]["n"] == len(right) == 12
    assert told["trained_on"]["without"]["top1"] == sum(right) / len(right)
    metrics = json.loads((run / "metrics.json").read_text())["learned"]
    assert told["trained_on"]["without"]["top1"] == metrics["top1"]  # what the fit itself was tested on
    _, _, err = coop("eval", run, photos, "--no-cache")
    assert "6 of these 18 images were trained on; without them: top-1" in err


def test_other_images_were_not_trained_on(coop, run, photos, tmp_path):
    """Not even under the same names."""
    for k, (name, colour) in enumerate(COLOURS.items()):
        for i in range(6):
            write_picture(tmp_path / "more" / "photos" / name / f"{i}.png", colour, seed=900 + 10 * k + i)
    told = json.loads(ran(coop("eval", run, tmp_path / "more" / "photos", "--json", "--no-cache")))
    assert told["trained_on"] == {"images": 0, "without": {key: told[key] for key in ("n", "top1", "macro")}}


@pytest.mark.parametrize("how", ["moved", "no list", "older list", "another run's list", "damaged list"])
def test_what_was_trained_on_is_known_by_several_ways(run, photos, how):
    drawn = json.loads((run / FEW_SHOT_FILE).read_text())
    lists = {
        "older list": {"train": drawn["train"], "val": []},
        "another run's list": {"train": ["x"], "val": [], "train_contents": ["y"]},
        "damaged list": [1],
    }
    expected = {f"{name}" for name in drawn["train"]}
    if how == "moved":
        for name in COLOURS:
            for path in (photos / name).iterdir():
                path.rename(path.with_name(f"moved-{path.name}"))
        expected = {name.replace("/", "/moved-") for name in expected}
    elif how == "no list":
        (run / FEW_SHOT_FILE).unlink()
    else:
        (run / FEW_SHOT_FILE).write_text(json.dumps(lists[how]))
    data = load_data(str(photos))
    items = data.split("all")
    places = trained_on(load_prompt(run), run / "prompt.safetensors", data).among(items)
    assert {items[place].name for place in places} == expected


def test_all_images_or_none(coop, run, photos, tmp_path):
    drawn = set(json.loads((run / FEW_SHOT_FILE).read_text())["train"])
    for name in drawn:
        (tmp_path / "only" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / name, tmp_path / "only" / name)
    told = json.loads(ran(coop("eval", run, tmp_path / "only", "--json", "--no-cache")))
    assert told["trained_on"] == {"images": 6, "without": None}
    assert Trained().among(load_data(str(photos)).split("all")) == set()


def test_transfer_counts_without_them(coop, run, photos, tmp_path):
    content = json.loads(ran(coop("transfer", run, photos, "--json", "--no-plot", "--no-cache", "-o", "t")))
    *by_hand, learned = content["results"]
    assert [row["images"] for row in by_hand] == [18, 18] and (learned["images"], learned["trained_on"]) == (12, 6)
    assert learned["top1"] == json.loads((run / "metrics.json").read_text())["learned"]["top1"]
    assert learned["note"] == "6 of 18 images were trained on and do not count"


def test_a_run_folder_is_for_the_images_that_it_learned_from(coop, run, photos):
    ran(coop("fit", photos, *FIT, "-o", "run"))  # the same again
    write_picture(photos / "red" / "0.png", (1, 2, 3))
    failed(coop("fit", photos, *FIT, "-o", "run"), 2, "run on other images", "--overwrite")
    before = (run / "settings.toml").read_bytes()
    ran(coop("fit", photos, *FIT, "-o", "run", "--overwrite"))
    assert (run / "settings.toml").read_bytes() != before and not (run / ".lock").exists()
    text = (run / "settings.toml").read_text()
    (run / "settings.toml").write_text("".join(line for line in text.splitlines(True) if "images-sha256" not in line))
    write_picture(photos / "red" / "1.png", (1, 2, 3))
    ran(coop("fit", photos, *FIT, "-o", "run"))  # of an older coop, which wrote no digest


def test_a_list_is_written_with_contents(photos, tmp_path):
    data = draw_few_shot(load_data(str(photos)), 1, 1)
    write_few_shot(tmp_path, data)
    content = json.loads((tmp_path / FEW_SHOT_FILE).read_text())
    assert content["train"] == [item.name for item in data.train] and content["val"] == []
    assert len(set(content["train_contents"])) == 3
