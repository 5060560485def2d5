"""Which float arithmetic a process computes with: runs of the same seed repeat only where it is the same."""

from __future__ import annotations

import hashlib

_ROWS, _UNITS = 256, 64


def arithmetic_digest() -> str:
    """
    What this process's CPU makes of fixed numbers: PyTorch's matrix products (forward and backward) and activations,
    and NumPy's products and functions, with which a flow acts and a simulator's wrappers compute. The last bits depend
    on the instructions that each library picks for the processor (MKL also by its vendor), on its version and, of large
    products, on the number of threads; training and contacts let such a difference grow until other episodes succeed.
    Two equal digests are no proof: other functions and sizes may differ.

    :return: Digest of the results' bits
    """
    import numpy as np
    import torch as th

    # The same bits everywhere, as a division is rounded correctly; not so short that their products are exact, too
    numbers = np.random.RandomState(0).randint(-4096, 4096, size=(_ROWS + _UNITS, _UNITS)) / 3000.0
    single = numbers.astype(np.float32)
    inputs, weights = th.tensor(single).split((_ROWS, _UNITS))
    weights = weights.clone().requires_grad_()
    hidden = th.nn.functional.linear(inputs, weights)
    outputs = th.nn.functional.mish(hidden) + th.tanh(hidden) + th.nn.functional.layer_norm(hidden, (_UNITS,))
    (gradient,) = th.autograd.grad(outputs.square().mean(), weights)
    arrays = [outputs.detach().numpy(), gradient.numpy()]
    for each in (numbers, single):
        arrays += [each[:8] @ each[:_UNITS], each[:_ROWS] @ each[:_UNITS], np.exp(each), np.expm1(each), np.tanh(each)]
        arrays += [np.sin(each), np.cos(each)]
    return hashlib.sha256(b"".join(np.ascontiguousarray(each).tobytes() for each in arrays)).hexdigest()[:12]
