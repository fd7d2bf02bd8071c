"""Seeds: derive one from what it belongs to, and seed the global generators."""

import hashlib


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else (no clock, no hash randomisation)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed the global generators of python, numpy and torch, for code that draws from them."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
