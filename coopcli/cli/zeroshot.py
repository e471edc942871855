"""`coop zeroshot`: classify with one hand-written prompt per class."""

from __future__ import annotations

from . import handwritten, options
from .options import Classes, Device, Dtype, OnError


def zeroshot(
    data: options.DataArgument = ".",
    template: options.TemplateOption = None,
    model: options.ModelOption = options.DEFAULT_MODEL,
    revision: options.RevisionOption = None,
    images: options.ImagesOption = None,
    classnames: options.ClassnamesOption = None,
    image_column: options.ImageColumnOption = None,
    label_column: options.LabelColumnOption = None,
    max_pixels: options.MaxPixelsOption = None,
    classes: options.ClassesOption = Classes.all,
    split: options.SplitOption = None,
    on_error: options.OnErrorOption = OnError.skip,
    predictions: options.PredictionsOption = None,
    device: options.DeviceOption = Device.auto,
    dtype: options.DtypeOption = Dtype.float32,
    pickles: options.PicklesOption = False,
    no_cache: options.NoCacheOption = False,
    json: options.JsonOption = False,
) -> None:
    """Zero-shot accuracy of a hand-written prompt.

    No image is trained on: class names go into the template, and each image is given to the nearest class.
    """
    from ..clip.templates import DEFAULT_TEMPLATE

    templates = template or [DEFAULT_TEMPLATE]
    if len(templates) > 1:
        from ..errors import UsageError

        raise UsageError("coop zeroshot takes one --template; coop ensemble averages several")
    from ..data.fewshot import half
    from .setup import load_source

    dataset = half(load_source(data, images, classnames, image_column, label_column, max_pixels), classes.value)
    handwritten.run(
        "zeroshot", templates, dataset, split, on_error, model, revision, device, dtype, pickles, no_cache, predictions, json
    )
