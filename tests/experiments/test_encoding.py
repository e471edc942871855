import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet
import pytest
import torch
from conftest import COLOURS, failed, ran, write_picture
from data.test_streams import write_tar
from jobs import TORCHRUN, ends_with_us, environment

from coopcli.clip.cache import FeatureCache
from coopcli.clip.image_features import image_features
from coopcli.data.dataset import ImageItem
from coopcli.data.load import load_data
from coopcli.experiments import encoding


def table(folder, shard=0):
    return pyarrow.parquet.read_table(folder / "metadata" / f"metadata_{shard}.parquet").to_pydict()


@pytest.fixture
def encoded(coop, photos, tmp_path):
    """A folder of features; the photos themselves are then gone."""
    ran(coop("encode", photos, "--model", "mini", "-o", "features"))
    photos.rename(tmp_path / "elsewhere")
    return tmp_path / "features"


def test_shards_hold_the_features_of_every_image_as_other_programs_read_them(mini, coop, photos, tmp_path):
    (photos / "red" / "2.png").write_bytes(b"no image")
    out = ran(coop("encode", photos, "--model", "mini", "-o", "features", "--json"))
    assert json.loads(out) == {"command": "encode", "folder": "features", "shards": 1, "images": 18, "unreadable": 1}
    features, rows = np.load(tmp_path / "features" / "img_emb" / "img_emb_0.npy"), table(tmp_path / "features")
    items = load_data(str(photos)).splits["all"]
    assert rows["path"] == [item.name for item in items] and rows["label"] == [item.name.split("/")[0] for item in items]
    assert [bool(error) for error in rows["error"]] == [item.name == "red/2.png" for item in items]
    good = [row for row, item in enumerate(items) if item.name != "red/2.png"]
    expected = image_features(mini, [items[row] for row in good], FeatureCache(None))
    assert features.dtype == np.float32 and np.array_equal(features[good], expected.numpy())
    assert not features[rows["path"].index("red/2.png")].any()
    assert {path.name for path in (tmp_path / "features").iterdir()} == {"features.json", "img_emb", "metadata"}
    failed(coop("encode", photos, "--model", "mini", "-o", "more", "--on-error", "fail"), 1, "red/2.png")


@pytest.mark.parametrize(
    "words", [("eval", "run", "DATA"), ("zeroshot", "DATA", "--model", "mini"), ("predict", "run", "DATA")]
)
def test_commands_give_the_same_from_features_as_from_images(coop, photos, tmp_path, words):
    ran(coop("fit", photos, "--model", "mini", "--shots", "1", "--views", "1", "--epochs", "1", "-o", "run", "--seed", "3"))
    ran(coop("encode", photos, "--model", "mini", "-o", "features"))

    def numbers(data):
        out = ran(coop(*[str(data) if word == "DATA" else word for word in words], "--json", "--no-cache"))
        if words[0] == "predict":
            rows = [json.loads(line) for line in out.splitlines()]
            return [(row["image"].removeprefix(f"{photos}/"), row["class"], row["probability"]) for row in rows]
        return {key: value for key, value in json.loads(out).items() if key not in ("command_line", "peak_memory")}

    expected = numbers(photos)
    photos.rename(tmp_path / "elsewhere")
    assert numbers(tmp_path / "features") == expected


def test_fit_and_sweep_learn_from_features_without_the_images(coop, encoded):
    code, _, err = coop("fit", encoded, "--model", "mini", "--shots", "2", "--epochs", "3", "-o", "run", "--json")
    assert code == 0 and "training uses no augmented views" in err
    run = json.loads((encoded.parent / "run" / "fewshot.json").read_text())
    assert len(run["train"]) == 6 and all(len(key) == 32 for key in run["train_contents"])
    grid = ["--methods", "zeroshot,coop,linear-probe", "--shots", "1", "--seeds", "1", "--recipe", "fast", "--no-plot"]
    out = json.loads(ran(coop("sweep", encoded, "--model", "mini", *grid, "--jobs", "1", "-o", "sweep", "--json")))
    assert [row["note"] for row in out["results"]] == [""] * 3
    failed(coop("fit", encoded, "--model", "mini", "--shots", "2", "--views", "16"), 2, "no pixels", "use --views 1")
    failed(coop("fit", encoded, "--model", "mini", "--shots", "2", "--views", "online"), 2, "no pixels", "use --views 1")


def test_what_needs_another_model_or_whole_shards_is_refused(coop, encoded, copy_of_mini):
    config = copy_of_mini / "preprocessor_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"image_mean": [0.1, 0.1, 0.1]}))
    failed(coop("zeroshot", encoded, "--model", copy_of_mini), 2, "are of another model")
    failed(coop("encode", encoded.parent / "elsewhere", "--model", copy_of_mini, "-o", encoded), 2, "fingerprint", "--output")
    features = encoded / "img_emb" / "img_emb_0.npy"
    whole = features.read_bytes()
    for damaged in (b"nonsense", whole[:-1], whole.replace(b"<f4", b"<f8"), whole + b"0", b"", whole[:60]):
        features.write_bytes(damaged)
        failed(coop("zeroshot", encoded, "--model", "mini"), 1, "img_emb_0.npy", "encode again")
    (encoded / "img_emb" / "img_emb_0.npy").unlink()
    failed(coop("zeroshot", encoded, "--model", "mini"), 1, "1 of 1 shards are missing")
    (encoded / "features.json").write_text("{}")
    failed(coop("zeroshot", encoded, "--model", "mini"), 1, "features.json", "not what coop encode wrote")


def test_half_precision_takes_half_the_space_and_is_normalised_again(mini, coop, photos, tmp_path):
    ran(coop("encode", photos, "--model", "mini", "-o", "half", "--features", "float16"))
    assert np.load(tmp_path / "half" / "img_emb" / "img_emb_0.npy").dtype == np.float16
    rough = image_features(mini, load_data(str(tmp_path / "half")).splits["all"], FeatureCache(None))
    exact = image_features(mini, load_data(str(photos)).splits["all"], FeatureCache(None))
    assert torch.allclose(rough, exact, atol=1e-3) and torch.allclose(rough.norm(dim=-1), torch.ones(18), atol=1e-6)


def test_tars_become_a_shard_each(mini, coop, photos, tmp_path):
    for number, name in enumerate(COLOURS):
        files = {}
        for i in range(2):
            files |= {f"{name}{i}.png": (photos / name / f"{i}.png").read_bytes(), f"{name}{i}.cls": str(number).encode()}
        write_tar(tmp_path / f"{number}.tar", files)
    (tmp_path / "features").mkdir()
    out = ran(coop("encode", f"{tmp_path}/*.tar", "--model", "mini", "-o", "features"))
    assert out == "6 images in 3 shards: features\n"
    data = load_data(str(tmp_path / "features"))
    assert data.class_names == ("0", "1", "2") and [item.label for item in data.splits["all"]] == [0, 0, 1, 1, 2, 2]
    expected = image_features(
        mini, [item for item in load_data(str(photos)).splits["all"] if item.name == "green/1.png"], FeatureCache(None)
    )
    assert torch.equal(image_features(mini, data.splits["all"], FeatureCache(None))[3], expected[0])
    write_tar(tmp_path / "3.tar", {})
    failed(coop("encode", f"{tmp_path}/*.tar", "--model", "mini", "-o", "features"), 2, "listed, shards", "--output")


def test_memory_does_not_grow_with_the_images_of_a_shard(mini, tmp_path, monkeypatch):
    """Of 1,200 images listed by an iterator, never are more than a few hundred on their way."""
    content, alive, most = (write_picture(tmp_path / "x.png"), (tmp_path / "x.png").read_bytes())[1], set(), []

    class Tracked(encoding._Once):
        def __init__(self, content):
            super().__init__(content)
            alive.add(id(self))
            most.append(len(alive))

        def __call__(self):
            alive.discard(id(self))
            return super().__call__()

    def images(shard):
        return ((ImageItem(f"{n}.png", 0, Tracked(content)), None) for n in range(1200))

    monkeypatch.setattr(type(mini), "encode_images", lambda self, pixels, *_: torch.ones(len(pixels), self.feature_width))
    source = encoding.Source(1, images, {})
    counts = encoding.encode(tmp_path, source, mini, "float32")
    assert counts.images == 1200 and max(most) < 600


def start(words, folder, *launcher):
    command = [sys.executable, "-m", *(launcher or ("coopcli",)), *map(str, words)]
    with (folder / "said").open("a") as said:
        return subprocess.Popen(
            command, env=environment(), stdout=subprocess.DEVNULL, stderr=said, start_new_session=True, preexec_fn=ends_with_us
        )


def test_processes_share_the_shards_and_go_on_after_kill_9(mini, tmp_path, monkeypatch):
    for i in range(6):
        write_picture(tmp_path / "photos" / "red" / f"{i}.png", seed=i)
        write_picture(tmp_path / "photos" / "blue" / f"{i}.png", COLOURS["blue"], seed=i)
    for number in range(6):
        files = {f"{number}-{i}.png": (tmp_path / "photos" / "red" / f"{i}.png").read_bytes() for i in range(6)}
        write_tar(tmp_path / f"{number}.tar", files)
    words = ("encode", f"{tmp_path}/*.tar", "--model", "mini", "-o", tmp_path / "features")
    process = start(words, tmp_path)
    ends = time.monotonic() + 120
    while not list((tmp_path / "features").glob("img_emb/*.npy")) and time.monotonic() < ends:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").glob("img_emb/*.npy")}
    assert kept
    again = start(words, tmp_path, *TORCHRUN[2:], "2", "-m", "coopcli")
    assert again.wait(180) == 0, (tmp_path / "said").read_text()
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert sorted(path.name for path in (tmp_path / "features" / "img_emb").iterdir()) == [f"img_emb_{n}.npy" for n in range(6)]
    whole = [np.load(tmp_path / "features" / "img_emb" / f"img_emb_{n}.npy") for n in range(6)]
    assert all(np.array_equal(shard, whole[0]) for shard in whole)


def test_a_folder_of_something_else_is_not_touched(coop, photos, tmp_path):
    (tmp_path / "features" / "img_emb").mkdir(parents=True)
    failed(coop("encode", photos, "--model", "mini", "-o", "features"), 2, "holds img_emb or metadata of something else")
