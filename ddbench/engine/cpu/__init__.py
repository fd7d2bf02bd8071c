"""Networks that are chains of simple layers: several at a time, with first and second derivatives written out.

Most of the field's networks are convolutions, linear layers, ReLU, pooling and normalisation one after the other, and
an inner step trains them on ten images: calls, not arithmetic, are what such a step costs. So networks share calls,
convolutions of few channels are one product with the columns of their input, and the product of the Hessian with a
direction v comes from dual numbers (Pearlmutter 1994): each layer is given its input and its input's derivative along
v, and gives back the same of its output; the way back does likewise with the derivative of the loss. The network's own
input is one for all networks and all epochs: its columns are taken once, and the gradients that all networks and epochs
have for it are summed before they are put together.

Layout: images `[nets, channels, n, height, width]`, so that a product with columns gives them as they are; features
`[nets, n, features]`; weights flat, `[nets, parameters]`.
"""

from ddbench.engine.cpu.chain import Chain, ChainStep

__all__ = ["Chain", "ChainStep"]
