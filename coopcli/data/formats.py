"""Image formats that coop reads: an allow-list of Pillow's, and the file name endings of each.

Left out are the formats for which Pillow starts another program or asks the system (EPS: Ghostscript; WMF), which it
only recognises (HDF5, GRIB, BUFR, MPEG) and which hold no 8-bit picture (FITS, SPIDER).
"""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath

ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),  # two JPEGs in a file, as 3D cameras write them
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "ICO": (".ico",),
    "CUR": (".cur",),
    "ICNS": (".icns",),
    "PSD": (".psd",),
    "DDS": (".dds",),
    "QOI": (".qoi",),
    "PCX": (".pcx",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),  # last: its files have no mark of their own
}
HEIF = "HEIF"  # known to Pillow with pillow-heif alone
HEIF_ENDINGS = (".heic", ".heif", ".hif")
FORMATS = (*ENDINGS, HEIF)
IMAGE_ENDINGS = frozenset(ending for endings in (*ENDINGS.values(), HEIF_ENDINGS) for ending in endings)
LISTED = 5  # endings that a note names

# Folders and files that desktops, NAS systems and programs leave among images; compared in lower case.
SYSTEM_NAMES = frozenset([
    "@eadir", "@tmp", "@recycle", "@__thumb", "@recently-snapshot", "@sharesnap", "@sharebin", "#recycle", "#snapshot",
    "__macosx", "$recycle.bin", "recycler", "lost+found",
    "system volume information", "network trash folder", "temporary items", "__pycache__", "thumbs.db", "ehthumbs.db",
    "desktop.ini", "icon\r", "found.000", "picasa.ini",
])  # fmt: skip


def is_system_name(name: str) -> bool:
    """Whether a file or folder is hidden or left by a desktop, a NAS or a program."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def looks_like_image(name: str) -> bool:
    """Whether a file's name ends as those of images do; hidden files do not count."""
    return not is_system_name(name) and PurePath(name).suffix.lower() in IMAGE_ENDINGS


def ending(name: str) -> str:
    """Return the ending of a file's name, in lower case; "none" where it has none."""
    return PurePath(name).suffix.lower() or "none"


def describe_endings(counts: Counter[str]) -> str:
    """Put counts of files by ending into words: `320 files by ending (.svg 200, .txt 120)`."""
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(LISTED))
    more = f" and {len(counts) - LISTED} more endings" if len(counts) > LISTED else ""
    total = sum(counts.values())
    return f"{total:,} file{'s' * (total != 1)} by ending ({listed}{more})"
