"""Convolution results that wait for the next operation, so that both can run as one operator.

In ``relu(conv2d(x, w))``, conv2d does not know that relu follows. A converted convolution, and every convolution within
``fastconv.enabled(fuse=True)``, therefore returns a :class:`Deferred`: a tensor with the right size, dtype, strides and
gradient function, whose values are not computed yet. The program decides what happens next:

* ReLU, a max-pool, a bias or a change of layout is added to the recipe, and the fused operator runs.
* Any other operation *settles* the tensor: the plain convolution runs once, and the operation gets its result.

So the program's own code runs in every call. fastconv makes no assumptions about it.

A Deferred holds copies of its operands (:func:`fastconv._deferred.recipe.snapshot`). So it always has the values of the
call that made it, whatever the program writes to the operands later. Where copies are expensive, the convolution runs
at once.

A Deferred is a tensor subclass. PyTorch's functions settle it through ``__torch_function__``. Code below those, such as
a user's autograd.Function or a C++ operator, settles it through ``__torch_dispatch__``. docs/howto/convert.md lists the
differences that a program can notice.

Changes of layout join the recipe because of Keras. Its convolution permutes NHWC images to NCHW and the results back,
and adds the bias separately. Keras also copies before and after every pool, so the result of a fused max-pool may be a
Deferred that waits for a change of layout.

Modules: ``recipe`` (which operations wait), ``tensor`` (the tensor), ``creation`` (makes one), ``folding`` (operations
that join the recipe), ``gradients`` (backward with respect to a Deferred that was fused), ``history`` (gradient
functions after a change in place), ``data`` (``tensor.data =``).
"""

from fastconv._deferred import data as _data  # noqa: F401  adds a kernel to an operator of PyTorch
from fastconv._deferred import folding as _folding  # noqa: F401  fills the tensor's table of operations
from fastconv._deferred.creation import defer
from fastconv._deferred.gradients import BACKWARD
from fastconv._deferred.tensor import Deferred, settled

__all__ = ["BACKWARD", "Deferred", "defer", "settled"]
