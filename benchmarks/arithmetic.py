"""Which float arithmetic a process computes with: the same seed gives the same run only where it is the same."""

from __future__ import annotations

import hashlib

_ROWS, _UNITS = 256, 64


def arithmetic_digest() -> str:
    """
    What PyTorch's matrix product, its elementwise functions and NumPy's return for fixed numbers. Their last bits
    depend on the instructions that each library picks for the processor (MKL also by its vendor), and a clone's
    training and a simulator's contacts let such a difference grow until other episodes succeed.

    :return: Digest of the results' bits
    """
    import numpy as np
    import torch as th

    # Exact in float32 and float64, whatever the processor: integers over a power of two
    numbers = np.random.RandomState(0).randint(-4096, 4096, size=(_ROWS + _UNITS, _UNITS)) / 2.0**11
    inputs, weights = th.tensor(numbers, dtype=th.float32).split((_ROWS, _UNITS))
    weights = weights.clone().requires_grad_()
    hidden = th.nn.functional.linear(inputs, weights)
    outputs = th.nn.functional.mish(hidden) + th.tanh(hidden) + th.nn.functional.layer_norm(hidden, (_UNITS,))
    (gradient,) = th.autograd.grad(outputs.square().mean(), weights)
    arrays = (outputs.detach().numpy(), gradient.numpy(), np.exp(numbers), np.sin(numbers), numbers.T @ numbers)
    return hashlib.sha256(b"".join(np.ascontiguousarray(each).tobytes() for each in arrays)).hexdigest()[:12]
