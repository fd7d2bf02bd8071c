"""Kernels for authors of methods: those of infinitely wide networks in closed form, and ridge regression with them."""

from ddbench.engine.kernels import predictions, relu_ntk, ridge_coefficients

__all__ = ["predictions", "relu_ntk", "ridge_coefficients"]
