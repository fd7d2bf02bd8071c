"""Seeds: derivation from names and numbers, and seeding of the global generators."""

import hashlib


def derive_seed(*parts: object) -> int:
    """Derive a 63-bit seed from all parts and nothing else: no clock, no hash randomisation."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, for code that draws from them."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
