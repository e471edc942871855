"""Export a learned classifier as one ONNX file, for machines without PyTorch: image tower, class features and softmax."""

from __future__ import annotations

import json
import logging
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CoopError
from ..version import __version__

if TYPE_CHECKING:
    from .classifier import Classifier

INPUT, OUTPUT = "pixels", "probabilities"
MAX_BYTES = 2**31 - 2**20  # of weights; a protobuf message holds at most 2 GiB
PICTURES = 8  # random images to check a file with
TOLERANCE = 1e-3  # between probabilities; in practice they agree to 1e-6
# How an image becomes pixels; rescaling and normalisation are part of the graph.
PREPROCESSING_KEYS = ("do_resize", "size", "resample", "do_center_crop", "crop_size")


class _Network(nn.Module):
    """Pixels uint8 [n, s, s, 3] -> probabilities [n, K]."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.clip, self.head, self.weights = classifier.clip, classifier.head, classifier.clip.model
        self.to_probabilities = classifier.to_probabilities

    def forward(self, pixels: Tensor) -> Tensor:
        return self.to_probabilities(self.head.logits(self.clip.image_tower(pixels.permute(0, 3, 1, 2))))


def onnx_bytes(classifier: Classifier) -> bytes:
    """Make the content of an ONNX file: `pixels` uint8 [n, s, s, 3] in, `probabilities` float32 [n, K] out, for any n.

    Its metadata hold the class names (`class_names`, a JSON list) and how an image becomes pixels (`preprocessing`, in
    the words of a preprocessor_config.json; what that says of rescaling and normalisation is part of the graph), and
    whether to turn it by its EXIF orientation before (`exif`, true or false).
    Raises CoopError where the exporter is not installed, and for an image tower beyond 2 GB.
    """
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise CoopError(f'the package {package} is not installed; exporting needs: pip install "coopcli[export]"')
    clip = classifier.clip
    example = torch.zeros(2, clip.image_size, clip.image_size, 3, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about packages that are not needed here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Network(classifier).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("n")}},
        )
    assert program is not None  # None is for exports by TorchScript
    weights = sum(value.const_value.nbytes for value in program.model.graph.initializers.values() if value.const_value)
    if weights > MAX_BYTES:
        raise CoopError(f"the image tower takes {weights / 1e9:.1f} GB, and an ONNX file holds 2 GB")
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info):  # where in which source file each came from
        del part.metadata_props[:]
    settings = clip.image_processor.to_dict()
    metadata = {
        "class_names": list(classifier.head.class_names),
        "preprocessing": {key: settings[key] for key in PREPROCESSING_KEYS if key in settings},
        "model": clip.name,
        "fingerprint": clip.fingerprint,
        "exif": clip.exif,
        "coop_version": __version__,
    }
    for key, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=dict)
        proto.metadata_props.add(key=key, value=text)
    return proto.SerializeToString(deterministic=True)


def difference(content: bytes, classifier: Classifier) -> float | None:
    """Compute the largest difference between the probabilities of onnxruntime and of PyTorch for random images.

    None where onnxruntime is not installed. Raises CoopError when it is more than TOLERANCE.
    """
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    size = classifier.clip.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (PICTURES, size, size, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = _Network(classifier)(torch.from_numpy(pixels)).numpy()
    largest = float(np.abs(session.run([OUTPUT], {INPUT: pixels})[0] - expected).max())
    if not largest <= TOLERANCE:
        raise CoopError(f"onnxruntime's probabilities differ from PyTorch's by {largest:.2g}; nothing is written")
    return largest
