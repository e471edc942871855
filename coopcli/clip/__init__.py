"""The frozen CLIP: images -> image features, names and templates or context -> class features."""
