"""`coop zeroshot`: classify with one hand-written prompt per class."""

from __future__ import annotations

from . import handwritten, options
from .options import Classes, Device, Dtype


def zeroshot(
    data: options.DataArgument = ".",
    template: options.TemplateOption = None,
    model: options.ModelOption = options.DEFAULT_MODEL,
    revision: options.RevisionOption = None,
    images: options.ImagesOption = None,
    classnames: options.ClassnamesOption = None,
    classes: options.ClassesOption = Classes.all,
    split: options.SplitOption = None,
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
    from ..templates import DEFAULT_TEMPLATE

    templates = template or [DEFAULT_TEMPLATE]
    if len(templates) > 1:
        from ..errors import UsageError

        raise UsageError("coop zeroshot takes one --template; coop ensemble averages several")
    handwritten.run(
        "zeroshot",
        templates,
        data,
        model,
        revision,
        images,
        classnames,
        classes,
        split,
        predictions,
        device,
        dtype,
        pickles,
        no_cache,
        json,
    )
