"""coop: learn prompts for CLIP from a few labelled images (CoOp, Zhou et al., IJCV 2022).

    from coopcli import CLIP, Prompt, evaluate, fit, load_data

Names are imported when they are first used: `import coopcli` alone loads neither PyTorch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .clip.backbone import CLIP as CLIP
    from .clip.cache import FeatureCache as FeatureCache
    from .clip.class_features import hand_written_features as hand_written_features
    from .clip.image_features import image_features as image_features
    from .clip.prompts import ContextSettings as ContextSettings
    from .data.load import load_data as load_data
    from .errors import CoopError as CoopError
    from .learned.classifier import Classifier as Classifier
    from .learned.classifier import Prompt as Prompt
    from .learned.classifier import evaluate as evaluate
    from .learned.interpret import nearest_tokens as nearest_tokens
    from .learned.prompt import LearnedPrompt as LearnedPrompt
    from .learning.fit import fit as fit
    from .learning.recipe import Recipe as Recipe
    from .learning.recipe import fast_recipe as fast_recipe
    from .learning.recipe import paper_recipe as paper_recipe

_HOMES = {
    "CLIP": "clip.backbone",
    "Classifier": "learned.classifier",
    "ContextSettings": "clip.prompts",
    "CoopError": "errors",
    "FeatureCache": "clip.cache",
    "LearnedPrompt": "learned.prompt",
    "Prompt": "learned.classifier",
    "Recipe": "learning.recipe",
    "evaluate": "learned.classifier",
    "fast_recipe": "learning.recipe",
    "fit": "learning.fit",
    "hand_written_features": "clip.class_features",
    "image_features": "clip.image_features",
    "load_data": "data.load",
    "nearest_tokens": "learned.interpret",
    "paper_recipe": "learning.recipe",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
