"""Is it right: against the CPU, against plain steps, against itself. The checks are those of tests/test_gpu.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import gpu_checks
import torch

from .setting import Line, Rows, Setting

VARIANTS = [(False, "end"), (False, "middle"), (True, "end"), (True, "front")]


def _judged(what: str, value: float, most: float) -> Line:
    verdict = "good" if value <= most else "NOT GOOD"
    return Line(what, f"{value:.1e}, at most {most:.0e}: {verdict}", {"value": value, "most": most})


def _yes(what: str, value: bool) -> Line:
    return Line(what, "yes" if value else "NO", {"value": float(value)})


def features(setting: Setting) -> Iterator[Line]:
    device = setting.device.type
    for csc, position in VARIANTS[: 1 if setting.quick else None]:
        name = f"{position}, {'class-specific' if csc else 'unified'}"
        yield _judged(f"class features against the CPU, {name}", gpu_checks.features(device, csc, position), 1e-5)
        yield _judged(f"gradient of the context against the CPU, {name}", gpu_checks.gradient(device, csc, position), 1e-4)
        rough = gpu_checks.features(device, csc, position, torch.bfloat16)
        yield _judged(f"class features in bfloat16 against the CPU in float32, {name}", rough, 0.05)
    yield _judged("image features of mini against the CPU", gpu_checks.image_features_of_mini(device), 1e-4)


def fit(setting: Setting) -> Iterator[Line]:
    for csc, optimizer in product((False, True), ("sgd", "adam")):
        context, loss = gpu_checks.whole_fit(setting.device.type, csc, optimizer)
        name = f"{'class-specific' if csc else 'unified'}, {optimizer}"
        yield _judged(f"a fit against the CPU: context, {name}", context, 1e-2)
        yield _judged(f"a fit against the CPU: losses, {name}", loss, 1e-3)


def graph(setting: Setting) -> Iterator[Line]:
    setting.need_cuda("steps are recorded as a CUDA graph there only (on a CPU, tests/learning/test_recorded_steps.py)")
    for csc, optimizer, chunk in product((False, True), ("sgd", "adam"), (0, 3)):
        name = (
            f"{'class-specific' if csc else 'unified'}, {optimizer}, {f'{chunk} classes at a time' if chunk else 'all classes'}"
        )
        yield _refusable(name, lambda c=csc, o=optimizer, n=chunk: gpu_checks.recorded_steps("cuda", o, c, n))


def _refusable(name: str, check: Callable[[], float]) -> Line:
    """What capture refuses is a result, too."""
    what = f"replayed steps against plain ones, {name}"
    try:
        return _judged(what, check(), 1e-5)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        return Line(what, f"capture refused: {reason}", {"refused": reason})


def same_bytes(setting: Setting) -> Iterator[Line]:
    for csc, optimizer in product((False, True), ("sgd", "adam")):
        name = f"{'class-specific' if csc else 'unified'}, {optimizer}"
        yield _yes(f"same bytes twice, {name}", gpu_checks.same_twice(setting.device.type, optimizer, csc))


def resume(setting: Setting) -> Iterator[Line]:
    for optimizer in ("sgd", "adam"):
        yield _yes(f"same bytes after a stop, {optimizer}", gpu_checks.resumed(setting.device.type, optimizer))


def memory(setting: Setting) -> Iterator[Line]:
    setting.need_cuda("on a CPU a full memory ends the process, so memory is counted beforehand there")
    reductions, same = gpu_checks.full_memory(setting.memory_fraction)
    text = f"{reductions} times" if reductions else "never: the memory was not full, lower --memory-fraction"
    yield Line(f"went on with less, at {setting.memory_fraction:.0%} of the memory of a step", text, {"reductions": reductions})
    yield _yes("same bytes as with all of the memory", same)


ROWS: dict[str, Rows] = {
    "features": features, "fit": fit, "graph": graph, "same-bytes": same_bytes, "resume": resume, "memory": memory,
}  # fmt: skip
