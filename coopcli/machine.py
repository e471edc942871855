"""The machine: its devices, its memory, versions of the software that computes."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import get_args

import torch

from .choices import Device
from .errors import UsageError
from .parallel import launched
from .version import __version__

MEMINFO = Path("/proc/meminfo")
MOUNTS = Path("/proc/mounts")
NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "afs", "9p", "pvfs2", "panfs", "wekafs",
    "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.gcsfuse", "fuse.juicefs", "fuse.rclone",
}  # fmt: skip
CGROUP = Path("/sys/fs/cgroup")  # of a container
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h> of glibc


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # held by PyTorch for reuse
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    with suppress(OSError, ValueError, KeyError):  # no /proc, or one of another kind
        lines = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
        of_container = _free_in_container()
        return available if of_container is None else min(available, of_container)
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 4 << 30  # Windows: no standard library module knows; most machines have this much


def network_file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The kind of the network file system that a path lies on; None for a local one, and where nobody knows."""
    try:
        lines = [line.split(" ") for line in mounts.read_text("utf-8", "surrogateescape").splitlines()]
        places = {Path(line[1].encode().decode("unicode_escape")): line[2] for line in lines if len(line) > 2}
        path = path.resolve()
    except (OSError, ValueError):
        return None
    kind = next((places[place] for place in (path, *path.parents) if place in places), "")
    return kind if kind in NETWORK else None


def _free_in_container() -> int | None:
    """Bytes that a container's limit leaves, including reclaimable file cache; None without a limit."""
    try:
        limit, used = (int((CGROUP / f"memory.{what}").read_text()) for what in ("max", "current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # missing files, or "max"
        return None
    return max(0, limit - used + int(stat.get("inactive_file", 0)))


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: the GPU's where it computes there, else the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed_memory() -> bool:
    """Let this process keep memory that it frees, for its next step, where its C library is glibc; say whether it will.

    By default glibc maps each large tensor anew, and the kernel clears its pages at the first touch: a training step on a
    CPU then takes 5 to 15 % longer. The most memory that the process holds stays the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def pick_device(device: Device) -> torch.device:
    """Choose the device; `auto` is the GPU where there is one. Raises UsageError for `cuda` without one, or an unknown name."""
    if device not in get_args(Device):
        raise UsageError(f'unknown device "{device}"; choose auto, cpu or cuda')
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this PyTorch sees no CUDA device; use --device cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and (here := launched()).size > 1:  # each process of a host takes its own
        return torch.device("cuda", here.local_rank % torch.cuda.device_count())
    return torch.device(device)


def end_with_parent(parent: int, by_main_thread: bool) -> None:
    """Let this process end within a second of its parent, however that ends; `by_main_thread` says who forked this one.

    The kernel's signal at a parent's death (Linux) also works while C code holds the GIL, but it comes when the thread that
    forked ends: only a main thread lasts as long as its process. So a thread watches as well.
    """
    if by_main_thread and sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library without prctl
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.3)
    os._exit(1)


def versions() -> dict[str, str]:
    """Versions of coop and of the software that its numbers depend on."""
    return {"coop": __version__, "torch": torch.__version__, "python": platform.python_version()}
