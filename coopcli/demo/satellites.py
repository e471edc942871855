"""Real photographs for the demo: 10 classes of EuroSAT's satellite pictures, 16 to learn from and 40 to test on of each.

They are 64 x 64 pixels, from the official train and test splits, under the MIT licence that lies beside them.
Source: Helber et al., EuroSAT, IEEE JSTARS 2019.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

ARCHIVE = Path(__file__).with_name("satellites.tar.xz")
TEMPLATE = "a centered satellite photo of {}."  # the CoOp paper's for EuroSAT
TRAIN, TEST = 16, 40  # pictures per class


def unpack_satellites(folder: Path) -> None:
    """Write the pictures as `folder/{train,test}/<class>/*.jpg`, and their licence as `folder/LICENSE.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
