"""`coop eval`: on other data, other classes and other models."""

import json
import shutil

from conftest import failed, ran, write_picture

from coopcli.clip.hf_clip import MINI_FOLDER

QUICK = ["--model", "mini", "--epochs", "2", "--views", "2"]


def test_prompt_on_other_and_fewer_classes(coop, photos, tmp_path):
    (tmp_path / "names").write_text("red\tcrimson\n")
    ran(coop("fit", photos, "--shots", "2", *QUICK, "--classnames", "names", "-o", "run"))
    assert "crimson" in json.loads(ran(coop("eval", "run", photos, "--json")))["per_class"]
    for colour in ("yellow", "blue"):
        write_picture(tmp_path / "other" / colour / "0.png")
    assert set(json.loads(ran(coop("eval", "run", "other", "--json")))["per_class"]) == {"yellow", "blue"}
    write_picture(tmp_path / "fewer" / "red" / "0.png")
    write_picture(tmp_path / "fewer" / "blue" / "0.png")
    code, out, err = coop("eval", "run", "fewer", "--json")
    assert (code, set(json.loads(out)["per_class"])) == (0, {"crimson", "blue"})
    assert "2 of the prompt's 3 classes" in err


def test_class_specific_prompt_on_other_classes(coop, photos, tmp_path):
    ran(coop("fit", photos, "--shots", "2", *QUICK, "--csc", "-o", "run"))
    for colour in ("yellow", "blue"):
        write_picture(tmp_path / "other" / colour / "0.png")
    failed(coop("eval", "run", "other"), 1, "class-specific", '"yellow"', "without --csc")


def test_prompt_with_another_model(coop, photos, tmp_path):

    ran(coop("fit", photos, "--shots", "2", *QUICK, "-o", "run"))
    shutil.copytree(MINI_FOLDER, tmp_path / "same")
    ran(coop("eval", "run", photos, "--model", "same"))
    settings = json.loads((tmp_path / "same" / "preprocessor_config.json").read_text())
    (tmp_path / "same" / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0, 0, 0]}))
    failed(coop("eval", "run", photos, "--model", "same"), 1, '"mini"', '"same"', "another model")
