"""Tensor operations that front ends share, each an expansion into definitions."""
