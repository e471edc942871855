"""Sweep with every method, transfer, ensemble, export, report and push on tiny random models of every family beside CLIP."""

import json
from importlib.util import find_spec

import pytest
from conftest import ran
from families import FAMILIES, folder_of_family
from hub_server import ask_only, serving

from coopcli.learning.methods import METHODS
from coopcli.learning.recipe import Recipe
from coopcli.names import short_name

LENGTH = ["--context-length", "4"]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return folder_of_family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("coopcli.experiments.experiment.paper_recipe", lambda shots, n_classes: Recipe(epochs=3))


def told(result):
    return json.loads(ran(result))


def test_every_method_of_a_sweep_and_what_reads_its_files(coop, folder, split_photos, photos, tmp_path):
    """Each method's file is read again and gives the accuracy that the sweep has written down."""
    methods = [method for method in METHODS if method != "linear-probe" or find_spec("sklearn")]
    wanted = ["--methods", ",".join(methods), "--shots", "2", "--seeds", "1", "--views", "2", "--templates", "cifar10",
              "--jobs", "1"]  # fmt: skip
    swept = told(coop("sweep", split_photos, "--model", folder, *wanted, *LENGTH, "--no-plot", "-o", "sweep", "--json"))
    kept = []
    for row in swept["results"]:
        assert (row["note"] == "") == (row["method"] != "fine-tune") and row["top1"] is not None
        if METHODS[row["method"]].hand_written:
            continue
        (cell,) = (tmp_path / "sweep" / "cells").glob(f"{row['method']}-{short_name(folder)}-2shots*")
        kept.append(cell)
        assert told(coop("eval", cell, split_photos, "--json"))["top1"] == pytest.approx(row["top1"])
    ensemble = told(coop("ensemble", split_photos, "--model", folder, "--templates", "cifar10", "--json"))
    assert [ensemble["top1"]] == [row["top1"] for row in swept["results"] if row["method"] == "ensemble"]
    moved = told(coop("transfer", *kept, photos, split_photos, "--no-plot", "--json"))
    assert len(moved["results"]) >= 2 * len(kept)


def test_report_export_and_push_of_a_fit(coop, folder, split_photos, tmp_path, monkeypatch):
    quick = ["--shots", "1", "--epochs", "2", "--views", "2", *LENGTH]
    ran(coop("fit", split_photos, "--model", folder, *quick, "-o", "run"))
    assert told(coop("report", "run", "--json"))["notes"] == []
    if find_spec("onnx") and find_spec("onnxscript") and find_spec("onnxruntime"):
        exported = told(coop("export", "run", "-o", "classifier.onnx", "--json"))
        assert exported["difference"] < 1e-5
    with serving() as hub:
        ask_only(hub, monkeypatch, tmp_path)
        monkeypatch.setenv("HF_TOKEN", "hf_alice")
        told(coop("push", "run", "alice/tiny", "--json"))
        assert told(coop("eval", "alice/tiny", split_photos, "--json"))["n"] == 9
