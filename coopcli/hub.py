"""Before the Hugging Face hub is asked: whether it can be reached at all."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

TIMEOUT = 3.0  # seconds


def prepare_hub() -> None:
    """Without a way to the hub, let its clients use what is on this machine at once.

    Otherwise they try again for half a minute. To be called before they are imported. Behind a proxy only they can tell.
    """
    if os.environ.get("HF_HUB_OFFLINE") or any(name.lower() in ("https_proxy", "all_proxy") for name in os.environ):
        return
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=TIMEOUT).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
