"""Read the reference's own files (KaiyangZhou/CoOp on Dassl): its checkpoints, into prompts or as contexts to start from."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..choices import Position
from ..clip.backbone import Backbone
from ..clip.prompts import ContextSettings, context_prompts, tokenize
from ..errors import CoopError, UsageError
from ..names import readable_name
from .prompt import LearnedPrompt
from .safefile import MAX_FILE, brief

logger = logging.getLogger(__name__)

CONTEXT, PREFIX, SUFFIX = "ctx", "token_prefix", "token_suffix"  # the tensors of the reference's prompt learner
HALF_PRECISION = 1e-3  # relative: the reference keeps its vectors in float16


class _Unused:
    """Stands in for every object of a checkpoint that is not needed here: takes any arguments, does nothing."""

    def __new__(cls, *_: object) -> _Unused:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


def _plain_dict(*_: object) -> dict[Any, Any]:
    return {}


# A pickle can call whatever it names. Besides tensors, a checkpoint may name these, and none of their code runs: the
# scheduler's state holds its successor, which holds the optimizer, and a validation score may be a numpy number.
_STAND_INS: list[Any] = [
    (_Unused, "torch.optim.lr_scheduler.CosineAnnealingLR"),
    (_Unused, "torch.optim.sgd.SGD"),
    (_plain_dict, "collections.defaultdict"),
    (_Unused, "builtins.dict"),
    (_Unused, "numpy.core.multiarray.scalar"),
    (_Unused, "numpy._core.multiarray.scalar"),
    (_Unused, "numpy.dtype"),
]


@dataclass(frozen=True)
class ReferenceCheckpoint:
    """What the reference saves of a prompt learner, on the CPU.

    `context` is float32 [M, d] or class-specific [K, M, d]. `prefix` [K, 1, d] and `suffix` [K, 76 - M, d] are token
    embeddings: SOS, and what follows the context (class name, ".", EOS, padding); both None where the file lacks them.
    The file does not hold the class token's position.
    """

    path: Path
    sha256: str
    epoch: int | None
    context: Tensor
    prefix: Tensor | None
    suffix: Tensor | None


def read_checkpoint(path: Path) -> ReferenceCheckpoint:
    """Read a `model.pth.tar-50` of the reference, or a `torch.save` of its `state_dict` alone. No code of the file's runs.

    Raises UsageError when there is no such file, CoopError for anything but such a checkpoint.
    """
    content = _content(path)
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            entries = zipfile.ZipFile(io.BytesIO(content)).infolist()
            if sum(entry.file_size for entry in entries) > len(content):
                raise ValueError("larger than the file: torch.save compresses nothing")
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file may raise anything
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise CoopError(
                f'"{path}" names {brief(named[1])}, which no CoOp checkpoint of the reference does; as a pickle can run code, '
                "it was not read"
            ) from error
        raise CoopError(f'"{path}" was not written by torch.save, or is damaged') from error
    outer = loaded if isinstance(loaded, dict) else {}
    state = outer.get("state_dict", outer)
    if not isinstance(state, dict) or CONTEXT not in state:
        raise CoopError(f'"{path}" holds no "{CONTEXT}", so it is not a checkpoint of the reference\'s prompt learner')
    others = [name for name, value in state.items() if isinstance(value, Tensor) and name not in (CONTEXT, PREFIX, SUFFIX)]
    if others:
        raise CoopError(f'"{path}" belongs to another method than CoOp: besides the context it holds "{brief(others[0])}"')
    context = _vectors(path, CONTEXT, state[CONTEXT], (2, 3))
    prefix = _vectors(path, PREFIX, state[PREFIX], (3,)) if PREFIX in state else None
    suffix = _vectors(path, SUFFIX, state[SUFFIX], (3,)) if SUFFIX in state else None
    epoch = outer.get("epoch")
    digest = hashlib.sha256(content).hexdigest()
    known_epoch = epoch if type(epoch) is int and 0 <= epoch < 10**9 else None
    return ReferenceCheckpoint(path, digest, known_epoch, context, prefix, suffix)


def _content(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise UsageError(f'"{path}" is a folder; name the file in it, such as prompt_learner/model.pth.tar-50')
        if not path.is_file():
            raise UsageError(f'no file "{path}"')
        if (size := path.stat().st_size) > MAX_FILE:
            raise CoopError(f'"{path}" has {size} bytes; the file of a context has at most {MAX_FILE}')
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f'"{path}" cannot be read: {error.strerror or error}') from error


def _vectors(path: Path, name: str, value: object, dimensions: tuple[int, ...]) -> Tensor:
    """Get the value in float32, if it is a plain tensor of that many dimensions with all of its numbers in the file."""
    if not (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and value.is_floating_point()
        and value.ndim in dimensions
        and 0 < value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    ):
        what = f"a {value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise CoopError(f'"{path}" holds {what} as "{name}"; expected vectors')
    vectors = value.detach().float()
    if not vectors.isfinite().all():
        raise CoopError(f'"{path}" holds NaN or infinite numbers in its "{name}"')
    return vectors


# ------------------------------------------------------------------------------------------------ into a prompt


def import_prompt(
    checkpoint: ReferenceCheckpoint,
    backbone: Backbone,
    class_names: Sequence[str],
    folders: Sequence[str],
    position: Position = "end",
) -> LearnedPrompt:
    """Make a prompt of a checkpoint, after checking that it belongs to this backbone and these classes in this order.

    Raises CoopError, saying what does not match: number of classes, width, length, SOS (of another backbone), or the
    first class whose name is not what the checkpoint's own token embeddings say.
    """
    path, context, prefix, suffix = checkpoint.path, checkpoint.context, checkpoint.prefix, checkpoint.suffix
    if prefix is None or suffix is None:
        raise CoopError(f'"{path}" lacks "{PREFIX}" or "{SUFFIX}", by which its model and its classes are checked')
    n_classes, csc, encoder = len(prefix), context.ndim == 3, backbone.text_encoder
    settings = ContextSettings(context.shape[-2], position, csc)
    width, rows = context.shape[-1], encoder.max_length - 1 - settings.n_ctx
    agree = prefix.shape == (n_classes, 1, width) and suffix.shape == (n_classes, suffix.shape[1], width)
    if not agree or (csc and len(context) != n_classes):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (context, prefix, suffix))
        raise CoopError(f'"{path}" contradicts itself: its "{CONTEXT}", "{PREFIX}" and "{SUFFIX}" have the shapes {shapes}')
    if n_classes != len(class_names):
        raise CoopError(f'"{path}" was trained on {n_classes} classes; the class-name file names {len(class_names)}')
    if width != encoder.width or suffix.shape[1] != rows:
        raise CoopError(
            f'"{path}" holds vectors of {width} numbers for prompts of {1 + settings.n_ctx + suffix.shape[1]} tokens; model '
            f'"{backbone.name}" has {encoder.width} and {encoder.max_length}: name the model it was trained with (--model)'
        )
    table = encoder.token_embedding.detach().float().cpu()
    if not _same(prefix[:, 0], table[backbone.tokenizer.bos_token_id]):
        raise CoopError(
            f'"{path}" was trained with another model than "{backbone.name}": the embedding of SOS differs; name it (--model)'
        )
    _check_names(checkpoint, suffix, table, backbone, class_names)
    _warn_of_stops(backbone, class_names, position)
    return LearnedPrompt(
        context=context,
        settings=settings,
        class_names=tuple(class_names),
        folders=tuple(folders),
        model=backbone.name,
        revision=backbone.revision,
        fingerprint=backbone.fingerprint,
        training={
            "imported": path.name.encode(errors="backslashreplace").decode(),
            "sha256": checkpoint.sha256,
            "epoch": checkpoint.epoch,
        },
    )


def _same(vectors: Tensor, expected: Tensor) -> bool:
    """Tell whether vectors agree, each to the precision of float16."""
    return bool(((vectors - expected).norm(dim=-1) <= HALF_PRECISION * expected.norm(dim=-1)).all())


def _check_names(
    checkpoint: ReferenceCheckpoint, suffix: Tensor, table: Tensor, backbone: Backbone, class_names: Sequence[str]
) -> None:
    """Check the names: for every position, the reference saves name and full stop as they follow the context at the `end`."""
    n_ctx, tokenizer = checkpoint.context.shape[-2], backbone.tokenizer
    prompts = context_prompts(tokenizer, ContextSettings(n_ctx), class_names, backbone.text_encoder.max_length)
    for k, (name, prompt) in enumerate(zip(class_names, prompts, strict=True)):
        expected = table[torch.tensor(prompt[1 + n_ctx :])]
        if not _same(suffix[k, : len(expected)], expected):
            read = torch.cdist(suffix[k], table).argmin(-1).tolist()
            end = read.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in read else len(read)
            text = brief(tokenizer.decode(read[:end])).removesuffix(".").strip()
            raise CoopError(
                f'class {k + 1} of the class-name file is "{name}"; in "{checkpoint.path}" it is "{text}": the names must be '
                "those it was trained with, in the same order"
            )


def _warn_of_stops(backbone: Backbone, class_names: Sequence[str], position: Position) -> None:
    """Warn where a name's last punctuation merges with the full stop: but for `end`, the reference splits them wrongly."""
    names = [readable_name(name) for name in class_names] if position != "end" else []
    stop = tokenize(backbone.tokenizer, ".")
    merged = [n for n in names if tokenize(backbone.tokenizer, f"{n}.") != tokenize(backbone.tokenizer, n) + stop]
    if merged:
        logger.warning(
            '%d class names end in punctuation (first: "%s"); in the reference their full stop comes before the context, here '
            "after it, so results may differ a little",
            len(merged), merged[0],
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------ to start from


def read_initial_context(path: Path, settings: ContextSettings, n_classes: int, width: int) -> Tensor:
    """Read a context to start training from, float32 [M, width], or class-specific [K, M, width].

    It is the tensor `ctx` or `context` of a safetensors file, such as a prompt of `coop fit`, or the one in a checkpoint
    of the reference. Raises UsageError for a missing file or a shape that `settings` do not ask for.
    """
    context = _read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path).context
    wanted = list(settings.shape(n_classes, width))
    if list(context.shape) != wanted:
        raise UsageError(
            f'--reference-init "{path}" holds a context of shape {list(context.shape)}; {settings.n_ctx} vectors '
            f"(--context-length) of this model{f', --csc and {n_classes} classes' if settings.csc else ''} need {wanted}"
        )
    return context


def _read_safetensors(path: Path) -> Tensor:
    try:
        tensors = load(_content(path))
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CoopError(f'"{path}" is not a safetensors file, or is damaged') from error
    name = CONTEXT if CONTEXT in tensors else "context"
    if name not in tensors:
        raise CoopError(f'"{path}" holds no tensor "{CONTEXT}" or "context"')
    return _vectors(path, name, tensors[name], (2, 3))
