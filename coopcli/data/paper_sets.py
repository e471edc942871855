"""The eleven data sets of the paper: where their images lie, and where to get what is missing.

The folders are those of the reference's DATASETS.md; the numbers of images are those of its published splits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UsageError

INSTRUCTIONS = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


@dataclass(frozen=True)
class PaperSet:
    """A data set of the paper.

    `folder` and `images`, within it, are the reference's names; `sizes` are the train, val and test images of the official
    split; `source` is where the images come from. `other_names` are what people also call it.
    """

    name: str
    folder: str
    images: str
    n_classes: int
    sizes: tuple[int, int, int]
    source: str
    other_names: tuple[str, ...] = ()

    @property
    def split_file(self) -> str:
        """Name of the official split file; of FGVCAircraft, that which coop makes."""
        return f"split_zhou_{self.name}.json"


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
CALTECH, PETS, CARS, FLOWERS, FOOD, AIRCRAFT, SUN, DTD, EUROSAT, UCF, IMAGENET = PAPER_SETS = (
    PaperSet("Caltech101", "caltech-101", "101_ObjectCategories", 100, (4128, 1649, 2465),
             "https://data.caltech.edu/records/mzrjq-6wc02"),
    PaperSet("OxfordPets", "oxford_pets", "images", 37, (2944, 736, 3669), f"{_OXFORD}/pets", ("pets",)),
    PaperSet("StanfordCars", "stanford_cars", "", 196, (6509, 1635, 8041),
             "https://ai.stanford.edu/~jkrause/cars/car_dataset.html", ("cars",)),
    PaperSet("OxfordFlowers", "oxford_flowers", "jpg", 102, (4093, 1633, 2463), f"{_OXFORD}/flowers/102",
             ("flowers", "flowers102", "oxfordflowers102")),
    PaperSet("Food101", "food-101", "images", 101, (50500, 20200, 30300),
             "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101", ("food",)),
    PaperSet("FGVCAircraft", "fgvc_aircraft", "images", 100, (3334, 3333, 3333), f"{_OXFORD}/fgvc-aircraft", ("aircraft",)),
    PaperSet("SUN397", "sun397", "SUN397", 397, (15880, 3970, 19850), "https://vision.princeton.edu/projects/2010/SUN",
             ("sun",)),
    PaperSet("DescribableTextures", "dtd", "images", 47, (2820, 1128, 1692), f"{_OXFORD}/dtd", ("dtd", "textures")),
    PaperSet("EuroSAT", "eurosat", "2750", 10, (13500, 5400, 8100), "https://github.com/phelber/EuroSAT"),
    PaperSet("UCF101", "ucf101", "UCF-101-midframes", 101, (7639, 1898, 3783), INSTRUCTIONS, ("ucf",)),
    PaperSet("ImageNet", "imagenet", "images", 1000, (1281167, 0, 50000), "https://image-net.org"),
)  # fmt: skip


def find_paper_set(name: str) -> PaperSet | None:
    """The data set that people call so, in any spelling: EuroSAT, oxford_pets, dtd; None for any other name."""
    key = _key(name)
    return next((one for one in PAPER_SETS if key in map(_key, (one.name, one.folder, *one.other_names))), None)


def paper_set(name: str) -> PaperSet:
    """The data set that people call so. Raises UsageError, with the names, for any other."""
    if known := find_paper_set(name):
        return known
    raise UsageError(f'"{name}" is not a data set of the paper; those are {", ".join(one.name for one in PAPER_SETS)}')


def _key(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())
