"""The Python part of the operators ``torch.ops.fastconv``, one file per operator.

Each file has the fake kernels (shapes and strides for ``torch.compile`` and meta tensors), the autograd Functions with
``vmap`` and ``jvp``, and the differentiable functions that the rest of the package calls. ``csrc/ops.cpp`` has the
schemas and names the kernels.
"""
