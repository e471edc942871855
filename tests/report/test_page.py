import html
import json
import re
import shutil
import statistics
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COLOURS, failed, ran, write_picture

from coopcli.cli.app import app
from coopcli.experiments.grid import Cell, Result, Variant
from coopcli.experiments.plots import LINE_COLOURS
from coopcli.experiments.run_folder import read_run
from coopcli.experiments.summary import summary
from coopcli.experiments.sweep_folder import write_results
from coopcli.learned.scores import Evaluation, Metrics, score
from coopcli.report.look import Look, Mistake
from coopcli.report.page import class_rows, confusion_picture, confusions, groups_of, render, training_charts

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)> {{ 7 * 7 }} \u202etxt.&amp;"
VOID = {"meta", "img", "br", "line", "polyline", "polygon", "circle"}


class Page(HTMLParser):
    """A page's elements with their attributes, and its texts; raises for elements that are not closed as they were opened."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.texts.append(" ".join(data.split()))

    def of(self, tag, kind=None):
        return [attrs for name, attrs in self.elements if name == tag and kind in (None, *attrs.get("class", "").split())]

    @property
    def charts(self):
        return [attrs for attrs in self.of("svg") if attrs.get("role") == "img"]


def check_keeps_to_itself(text):
    """Nothing on the page runs, and nothing is fetched."""
    page = Page(text)
    assert {tag for tag, _ in page.elements}.isdisjoint(("script", "link", "iframe", "object", "embed", "base", "form", "a"))
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("srcset", "href", "xlink:href")]
        assert re.match("data:image/", attributes.get("src", "data:image/"))
        assert "url(" not in attributes.get("style", "") and attributes.get("http-equiv") != "refresh"
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert "url(" not in style and "@import" not in style
    return page


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of the same fit, with test images of which some lie in the wrong folder."""
    root = tmp_path_factory.mktemp("report")
    for split, count in (("train", 3), ("test", 6)):
        for k, name in enumerate(COLOURS):
            for i in range(count):
                shown = list(COLOURS)[(k + 1) % 3] if split == "test" and i < 2 else name
                write_picture(
                    root / "toy" / split / name / f"{i}.png", COLOURS[shown], seed=100 * (split == "test") + 10 * k + i
                )
    for seed in (1, 2):
        app(["fit", str(root / "toy"), "--shots", "3", "--model", "mini", "--epochs", "30", "--views", "2", "--no-cache",
             "--recipe", "fast", "--context-length", "4", "--seed", str(seed), "-o", str(root / f"run{seed}")],
            standalone_mode=False)  # fmt: skip
    return root


@pytest.fixture
def run(runs):
    return read_run(runs / "run1")


def test_one_run(coop, runs):
    told = json.loads(ran(coop("report", runs / "run1", "--json")))
    path = Path(told["report"])
    assert path.resolve() == (runs / "run1" / "report.html").resolve() and told["notes"] == []
    page = check_keeps_to_itself(path.read_text("utf-8"))
    metrics = json.loads((runs / "run1" / "metrics.json").read_text())
    learned, hand_written = metrics["learned"], metrics["hand_written"]
    shares = (f"{100 * found['top1']:.1f}" for found in (learned, hand_written))
    origin = (metrics["few_shot_sha256"], metrics["command_line"], metrics["fingerprint"], metrics["versions"]["torch"])
    for text in (*shares, *origin, "context-length", "run1"):
        assert text in page.texts
    gain = 100 * (learned["top1"] - hand_written["top1"])
    assert f"{gain:+.1f}".replace("-", "−") in page.texts
    assert len(page.of("td", "right")) + len(page.of("td", "wrong")) == sum(map(bool, np.array(learned["confusion"]).flat))
    assert [found["style"] for found in page.of("i", "bar")] == [
        f"width: {100 * share:.1f}%" for share in sorted(learned["per_class"].values())
    ]
    assert len(page.charts) == 2 and len(page.of("polyline", "line")) == 2
    n_wrong = learned["n"] - round(learned["top1"] * learned["n"])
    pictures = page.of("img")
    assert 6 <= n_wrong <= 12 and len(pictures) == n_wrong and len(page.of("li", "hit")) >= 1
    assert {found["alt"] for found in pictures} >= {f"test/{name}/{i}.png" for name in COLOURS for i in (0, 1)}
    assert len(page.of("span", "token")) == 4 * 5


def test_the_same_page_again(coop, runs):
    for name in ("a.html", "b.html"):
        ran(coop("report", runs / "run1", "-o", name))
    assert Path("a.html").read_bytes() == Path("b.html").read_bytes()


def test_seeds_side_by_side(coop, runs):
    ran(coop("report", runs / "run1", runs / "run2"))
    page = check_keeps_to_itself((runs / "report.html").read_text("utf-8"))
    top1 = [read_run(runs / name).learned.metrics.top1 for name in ("run1", "run2")]
    mean, deviation = statistics.mean(top1), statistics.stdev(top1)
    assert f"{100 * mean:.1f} ± {100 * deviation:.1f}" in page.texts
    assert "2 runs side by side" in page.texts and page.texts.count("Worst mistakes") == 2
    assert len(page.of("i", "dot")) == 2 * 3 and len(page.of("details", "run")) == 2
    assert len(page.of("polyline", "line")) == 2 * 2


def test_without_the_images(coop, runs, tmp_path):
    shutil.copytree(runs / "run1", tmp_path / "run1")
    settings = (tmp_path / "run1" / "settings.toml").read_text().replace(str(runs / "toy"), str(tmp_path / "gone"))
    (tmp_path / "run1" / "settings.toml").write_text(settings)
    code, _, err = coop("report", "run1", "-o", "page.html")
    assert code == 0 and "Worst mistakes are left out" in err and "gone" in err
    page = check_keeps_to_itself(Path("page.html").read_text("utf-8"))
    assert not page.of("img") and page.of("span", "token")
    (note,) = [text for text in page.texts if "left out" in text]
    assert str(tmp_path / "gone") in note


def test_without_the_model(coop, runs):
    code, _, err = coop("report", runs / "run1", "-o", "page.html", "--model", "no-such-folder")
    assert code == 0 and "Nearest tokens and worst mistakes are left out" in err
    page = check_keeps_to_itself(Path("page.html").read_text("utf-8"))
    assert not page.of("img") and not page.of("span", "token") and page.of("td", "right")


def test_other_images_are_told(coop, runs, tmp_path):
    shutil.copytree(runs / "toy", tmp_path / "toy")
    (tmp_path / "toy" / "test" / "red" / "0.png").unlink()
    shutil.copytree(runs / "run1", tmp_path / "run1")
    settings = (tmp_path / "run1" / "settings.toml").read_text().replace(str(runs / "toy"), str(tmp_path / "toy"))
    (tmp_path / "run1" / "settings.toml").write_text(settings)
    told = json.loads(ran(coop("report", "run1", "--json", "-o", "page.html")))
    assert any("17 now give" in note and "18 gave" in note for note in told["notes"])
    (tmp_path / "run1" / "settings.toml").write_text(settings.replace("data = ", "# data = "))
    told = json.loads(ran(coop("report", "run1", "--json", "-o", "page.html")))
    assert any("do not say which data" in note for note in told["notes"])


@pytest.mark.parametrize("classes", ["all", "base"])
def test_a_sweep(coop, runs, tmp_path, classes):
    cells = [Cell("zeroshot", "mini")]
    cells += [Cell("coop", "mini", shots, seed, Variant()) for shots in (1, 16) for seed in (1, 2)]
    new = {"new": 0.5, "harmonic": 0.4} if classes == "base" else {}
    results = [Result(cell, 0.611 + 0.07 * k, 0.2, **new, seconds=1.0) for k, cell in enumerate(cells)]
    results.append(Result(Cell("lp++", "mini", 1, 1), note="left out: too few images"))
    write_results(tmp_path / "s", "toy", {"data": "toy", "classes": classes}, results, plot=False)
    ran(coop("report", "s", runs / "run1", "-o", "page.html"))
    page = check_keeps_to_itself(Path("page.html").read_text("utf-8"))
    for line in summary(results):
        assert str(line.top1 or "–") in page.texts
    assert {"2 runs side by side", "left out: too few images", "lp++", "toy"} <= set(page.texts)
    figures = 3 if classes == "base" else 1
    assert len(page.charts) == 2 + figures and len(page.of("polyline", "level")) == len(page.of("polygon", "band")) == figures
    ran(coop("report", "s"))
    page = check_keeps_to_itself(Path("s/report.html").read_text("utf-8"))
    assert "Runs" not in page.texts and page.texts.count("s") == 2  # title and heading


def test_every_line_has_a_colour_of_its_own(coop, runs, tmp_path):
    """Colours of the legend once repeated after 8, those of the lines after 10."""
    methods = ("zeroshot", "ensemble", "coop", "linear-probe", "lp++", "tip-adapter", "tip-adapter-f", "text-bias")
    methods += ("text-transform", "fine-tune", *(f"other-{n}" for n in range(5)))
    shots = {method: [0] if method in ("zeroshot", "ensemble") else [1, 2] for method in methods}
    cells = [Cell(method, "mini", n) for method in methods for n in shots[method]]
    results = [Result(cell, 0.5 + 0.01 * k, 0.2) for k, cell in enumerate(cells)]
    write_results(tmp_path / "s", "toy", {}, results, plot=False)
    ran(coop("report", "s"))
    text = Path("s/report.html").read_text("utf-8")
    page = check_keeps_to_itself(text)
    look = r'<g style="color: (.*?)"><title>(.*?)</title>.*?<polyline class="line(?: level)?" points="[^"]*"(.*?)/>'
    drawn = {html.unescape(label): (colour, dash) for colour, label, dash in re.findall(look, text, re.DOTALL)}
    key = r'<li><svg class="key"[^>]*style="color: (.*?)"><line class="line(?: level)?" [^>]*?y2="4"(.*?)/></svg>(.*?)</li>'
    legend = {html.unescape(label): (colour, dash) for colour, dash, label in re.findall(key, text)}
    assert legend == drawn and list(drawn) == list(methods)
    assert len(set(drawn.values())) == len(methods) == 15
    assert len({colour for colour, _ in list(drawn.values())[:10]}) == 10
    for light, dark in LINE_COLOURS:
        assert f": {light};" in text and f": {dark};" in text
    assert len(page.of("svg", "key")) == 15


def hostile(run):
    """The run with texts that would do harm as HTML, wherever a text may come from a file."""
    names = (HOSTILE, f"{HOSTILE}2", "")
    prompt = replace(
        run.prompt, class_names=names, model=HOSTILE, training=run.prompt.training | {"data": HOSTILE, "init": HOSTILE}
    )
    texts = dict.fromkeys(("command_line", "machine", "fingerprint", "few_shot_sha256", "seed", "peak_memory"), HOSTILE)
    return replace(
        run,
        folder=Path(HOSTILE.replace("/", "")),
        prompt=prompt,
        settings={HOSTILE: HOSTILE, "template": HOSTILE, "resolved": {HOSTILE: [HOSTILE]}},
        learned=replace(run.learned, class_names=names),
        hand_written=replace(run.hand_written, class_names=names),
        about={**texts, "versions": {HOSTILE: HOSTILE}},
    )


def test_hostile_texts_only_show(run):
    mistake = Mistake(HOSTILE, "data:image/jpeg;base64,AAAA", HOSTILE, 0.1, ((HOSTILE, 0.9), ("b", 0.1)))
    look = Look({HOSTILE: []}, (mistake,), 1, (HOSTILE,))
    bad = hostile(run)
    for runs, looks in (([bad], [look]), ([bad, run], [look, Look()])):
        text = render(runs, looks)
        page = check_keeps_to_itself(text)
        assert "\u202e" not in text and "<script>alert" not in text
        shown = HOSTILE.replace("\u202e", "\\u202e")
        assert shown in page.texts and len(page.of("img")) == 1


def test_a_run_without_test_images(run):
    page = check_keeps_to_itself(render([replace(run, learned=None, hand_written=None)], [Look()]))
    assert "no image was left to test on" in page.texts and not page.of("table", "heat")
    check_keeps_to_itself(render([replace(run, learned=None, hand_written=None), run], [Look(), Look()]))
    check_keeps_to_itself(render([replace(run, log=(), hand_written=None)], [Look()]))


def evaluation(confusion):
    counts = np.array(confusion)
    totals = counts.sum(1)
    per_class = [counts[k, k] / totals[k] if totals[k] else None for k in range(len(counts))]
    names = tuple(f"c{k}" for k in range(len(counts)))
    there = [share for share in per_class if share is not None]
    metrics = Metrics(int(totals.sum()), counts.trace() / totals.sum(), sum(there) / len(there), per_class, confusion)
    return Evaluation(names, (), [], [], metrics)


def test_classes_worst_first_and_the_most_frequent_confusions(run):
    first, second = evaluation([[3, 1, 0], [0, 0, 0], [2, 0, 2]]), evaluation([[1, 3, 0], [0, 0, 0], [0, 0, 4]])
    rows = class_rows([replace(run, learned=first, hand_written=None), replace(run, learned=second, hand_written=first)])
    assert [(row.name, row.images, row.mean, row.hand_written) for row in rows] == [("c0", 4, 0.5, 0.75), ("c2", 4, 0.75, 0.5)]
    assert rows[0].shares == [(0, 0.75), (1, 0.25)]
    assert confusions(first, 5) == [("c2", "c0", 2, 0.5), ("c0", "c1", 1, 0.25)] and confusions(first, 1) == [
        ("c2", "c0", 2, 0.5)
    ]
    assert class_rows([replace(run, learned=first), run]) == []


def test_many_classes_are_a_picture(run):
    counts = np.full((40, 40), 1) + np.diag([60] * 40)
    many = evaluation(counts.tolist())
    page = check_keeps_to_itself(render([replace(run, learned=many, hand_written=many)], [Look()]))
    assert page.of("img", "matrix")[0]["src"] == confusion_picture(many)
    assert not page.of("table", "heat") and "The other 10 classes" in page.texts


def test_of_very_many_classes_the_worst_are_listed(run):
    """21,841 classes, as in ImageNet-21k: no class in its thousands, and no matrix."""
    labels = torch.arange(21_841).repeat(2)
    predicted = torch.where((labels % 7 == 0) & (torch.arange(len(labels)) < 21_841), (labels + 1) % 21_841, labels)
    metrics = score(labels, predicted, 21_841)
    many = Evaluation(tuple(f"c{k}" for k in range(21_841)), (), [], [], metrics)
    text = render([replace(run, learned=many, hand_written=many)], [Look()])
    page = check_keeps_to_itself(text)
    assert "The next 970 classes" in page.texts and any(line.startswith("20,841 classes that do") for line in page.texts)
    assert "c6993" in page.texts and "c7000" not in page.texts and len(text) < 1_500_000


def test_runs_are_grouped_by_all_but_their_seed(runs, run):
    other = read_run(runs / "run2")
    shots = replace(other, prompt=replace(other.prompt, training=other.prompt.training | {"shots": 1}))
    assert [group.places for group in groups_of([run, shots, other, run])] == [[0, 2, 3], [1]]


def test_runs_of_other_test_images_are_not_averaged(run):
    confusion = run.learned.metrics.confusion
    more = evaluation([[count + (i == j) for j, count in enumerate(row)] for i, row in enumerate(confusion)])
    other = replace(run, learned=replace(more, class_names=run.learned.class_names))
    assert [group.places for group in groups_of([run, other, run])] == [[0, 2], [1]]
    assert [group.title.rpartition(", ")[2] for group in groups_of([run, other])] == ["18 test images", "21 test images"]
    assert class_rows([run, other]) == [] != class_rows([run, run])


def test_the_first_epochs_do_not_set_the_loss_axis(run):
    log = [replace(run.log[0], epoch=k, epochs=100, loss=90.0 if k < 2 else 1.0 + 1 / k) for k in range(100)]
    loss, _ = training_charts([replace(run, log=tuple(log))], ["a"])
    assert float(loss.y_ticks[-1][1]) <= 2
    places = [float(pair.split(",")[1]) for pair in loss.lines[0].faint.split()]
    assert min(places) == loss.top and max(places) < loss.bottom
    short, _ = training_charts([replace(run, log=tuple(log[:1]))], ["a"])
    assert float(short.y_ticks[-1][1]) >= 90


def luminance(colour):
    """Relative luminance by WCAG 2 of linear RGB."""
    return sum(weight * min(max(part, 0), 1) for weight, part in zip((0.2126, 0.7152, 0.0722), colour, strict=True))


def linear(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.array([part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts])


def mixed(colour, ground, share):
    """CSS's color-mix(in oklab, colour share, ground), linear RGB."""
    to_lms = np.array([
        [0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ])  # fmt: skip
    first, second = (np.cbrt(to_lms @ linear(c)) for c in (colour, ground))  # oklab is linear in these
    return np.linalg.inv(to_lms) @ (share * first + (1 - share) * second) ** 3


def test_digits_are_readable_on_every_cell_colour(run):
    style = render([run], [Look()])
    themes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        value = dict(re.findall(r"--([a-z]+): ([^;]+);", theme))
        most = 0.08 + float(value["most"].rstrip("%")) / 100
        for share in np.linspace(0.08, most, 9):
            for colour in (value["accent"], value["warn"]):
                cell, ink = luminance(mixed(colour, value["track"], share)), luminance(linear(value["ink"]))
                contrast = (max(cell, ink) + 0.05) / (min(cell, ink) + 0.05)
                assert contrast >= 4.5, (colour, share, contrast)
    shares = [
        float(found["style"].removeprefix("--s: ")) for kind in ("right", "wrong") for found in Page(style).of("td", kind)
    ]
    assert shares and all(0 < share <= 1 for share in shares)


def test_what_is_no_run(coop, runs, tmp_path):
    failed(coop("report", tmp_path / "nowhere"), 2, "nowhere")
    failed(coop("report", runs / "toy"), 2, "prompt.safetensors")
    failed(coop("report", runs / "run1", "-o", runs / "toy"), 1, "cannot be written")


# ------------------------------------------------------------------------------------------------ in a real browser

WRAPPER = """<!DOCTYPE html><meta name="color-scheme" content="light dark"><body><iframe style="width: 360px; height: 3000px"
srcdoc="{page}"></iframe><script>onload = () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const wide = [...page.querySelectorAll("section, .card, figure, h1, p, dl, ul, pre")].filter(
    (found) => found.getBoundingClientRect().right > root.clientWidth);
  const told = {{ width: root.clientWidth, needed: root.scrollWidth, wide: wide.length, ink: getComputedStyle(page.body).color,
    background: getComputedStyle(page.body).backgroundColor,
    unseen: [...page.images].filter((found) => !found.naturalWidth).length,
    images: page.images.length, letters: Math.min(...[...page.querySelectorAll("small, .hint, td, span")].map(
      (found) => parseFloat(getComputedStyle(found).fontSize))) }};
  document.body.replaceChildren(JSON.stringify(told)); }};</script>"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """The elements of a page after Chromium has opened it."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if not browser:
        pytest.skip("no Chromium is installed to open the page in")

    def dump(path, *options):
        profile = tmp_path_factory.mktemp("profile")
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}", *options,
            "--dump-dom", path.as_uri(),
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return dump


def test_in_chromium(browse, coop, runs, tmp_path):
    ran(coop("report", runs / "run1", runs / "run2", "-o", "page.html"))
    text = (tmp_path / "page.html").read_text("utf-8")
    page, shown = Page(text), Page(browse(tmp_path / "page.html"))
    for tag in ("img", "svg", "table", "section", "details", "li", "polyline"):
        assert len(shown.of(tag)) == len(page.of(tag)) > 0
    (tmp_path / "phone.html").write_text(WRAPPER.format(page=html.escape(text)))
    told = {}
    for mode, options in (
        ("dark", ["--blink-settings=preferredColorScheme=0"]),
        ("light", ["--blink-settings=preferredColorScheme=1"]),
    ):
        (body,) = re.findall(r"<body>(\{.*?\})</body>", browse(tmp_path / "phone.html", *options))
        told[mode] = json.loads(body)
        assert told[mode]["needed"] <= told[mode]["width"] <= 360 and told[mode]["wide"] == 0
        assert told[mode]["unseen"] == 0 < told[mode]["images"] and told[mode]["letters"] >= 12

    def brightness(colour):
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    assert brightness(told["dark"]["background"]) < 60 and brightness(told["dark"]["ink"]) > 200
    assert brightness(told["light"]["background"]) > 200 and brightness(told["light"]["ink"]) < 60
