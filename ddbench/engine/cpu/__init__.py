"""Hand-derived inner steps for networks that are chains of simple layers, several networks per call.

Most of the field's networks are convolutions, linear layers, ReLU, pooling and normalisation one after the other, and
an inner step trains them on ten images: such a step costs calls, not arithmetic. So networks share calls, and
convolutions of few channels are one product with the columns of their input.

The product of the Hessian with a direction v comes from dual numbers (Pearlmutter 1994). In the forward pass each layer
maps its input and the derivative of its input along v to the same of its output; the reverse pass does likewise with
the gradient of the loss. The network's input is the same for all networks and all epochs: its columns are taken once,
and its gradients are summed over networks and epochs before the columns are folded back.

Layout: images `[nets, channels, n, height, width]`, so that a product with columns gives them as they are; features
`[nets, n, features]`; weights flat, `[nets, parameters]`.
"""

from ddbench.engine.cpu.chain import Chain, ChainStep

__all__ = ["Chain", "ChainStep"]
