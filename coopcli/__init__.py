"""coop: learn prompts for CLIP from a few labelled images (CoOp, Zhou et al., IJCV 2022).

    from coopcli import CLIP, Prompt, evaluate, fit, load_data

Names are imported when they are first used: `import coopcli` alone loads neither PyTorch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .artifact import LearnedPrompt as LearnedPrompt
    from .cache import FeatureCache as FeatureCache
    from .classifier import CLIP as CLIP
    from .classifier import Classifier as Classifier
    from .classifier import Prompt as Prompt
    from .classifier import evaluate as evaluate
    from .errors import CoopError as CoopError
    from .evaluation import hand_written_features as hand_written_features
    from .features import image_features as image_features
    from .fitting import fit as fit
    from .images import load_data as load_data
    from .interpret import nearest_tokens as nearest_tokens
    from .prompts import ContextSettings as ContextSettings
    from .training import Recipe as Recipe
    from .training import fast_recipe as fast_recipe
    from .training import paper_recipe as paper_recipe

_HOMES = {
    "CLIP": "classifier",
    "Classifier": "classifier",
    "ContextSettings": "prompts",
    "CoopError": "errors",
    "FeatureCache": "cache",
    "LearnedPrompt": "artifact",
    "Prompt": "classifier",
    "Recipe": "training",
    "evaluate": "classifier",
    "fast_recipe": "training",
    "fit": "fitting",
    "hand_written_features": "evaluation",
    "image_features": "features",
    "load_data": "images",
    "nearest_tokens": "interpret",
    "paper_recipe": "training",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
