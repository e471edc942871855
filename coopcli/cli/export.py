"""`coop export`: a learned classifier as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import line, print_json, relative, say, status


def export(
    prompt: options.PromptArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.onnx", show_default="classifier.onnx in the run folder",
                     help="File to write."),
    ] = None,
    classnames: options.ClassListOption = None,
    model: options.SameModelOption = None,
    pickles: options.PicklesOption = False,
    no_cache: options.NoCacheOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """Write a learned prompt with its image tower as one ONNX file, for machines without PyTorch.

    Its input is `pixels`, uint8 [n, s, s, 3], resized and cropped RGB images; its output `probabilities`, float32 [n, K].
    Its metadata hold the class names and the preprocessing; examples/predict_without_torch.py reads them. Where
    onnxruntime is installed, its answer to random pictures is compared with PyTorch's. Needs the extra `export`.
    """
    from ..data.classnames import read_choices
    from ..files import write_atomically
    from ..learned.classifier import Classifier
    from ..learned.export import difference, onnx_bytes
    from ..learned.prompt import load_learned
    from .setup import find_prompt, open_backbone, open_cache

    file = find_prompt(prompt)
    learned = load_learned(file)
    # A prompt of the hub has no run folder here.
    folder = (file if file.is_dir() else file.parent) if Path(prompt).exists() else Path()
    path = output or folder / "classifier.onnx"
    names = read_choices(classnames) if classnames else learned.class_names
    source, revision = (model, None) if model else (learned.model, learned.revision)
    cache = open_cache(no_cache)
    backbone = open_backbone(source, revision, "cpu", "float32", pickles, cache)
    classifier = Classifier(learned, backbone, names, cache)
    with status("exporting"):
        content = onnx_bytes(classifier)
        off = difference(content, classifier)
    write_atomically(path, content)
    if off is None:
        say("note: onnxruntime is not installed here; the file was not compared with PyTorch")
    if json:
        about = {"command": "export", "prompt": prompt, "model": backbone.name, "output": str(relative(path))}
        print_json(about | {"bytes": len(content), "class_names": names, "difference": off})
        return
    compared = "" if off is None else f", within {off:.0e} of PyTorch's probabilities"
    line(f"{relative(path)}: {len(names)} classes, {len(content) / 1e6:.1f} MB{compared}")
