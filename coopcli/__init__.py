"""coop: learn prompts for CLIP from a few labelled images (CoOp, Zhou et al., IJCV 2022)."""

__version__ = "0.1.0"
