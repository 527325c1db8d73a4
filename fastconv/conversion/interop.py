"""fastconv's layers in torch.fx, torch.ao.quantization, torch.jit.script and print.

* torch.fx records a layer of fastconv as one ``call_module`` node, like torch.nn's. A new ``GraphModule`` gets a layer
  of torch.nn that shares the parameters, so that every pass recognises it. The traced model stays converted.
  :func:`fastconv.convert` also converts a GraphModule.
* Setting the ``qconfig`` of a layer changes its class to torch.nn's. ``prepare`` and ``prepare_qat`` set it for
  each layer to be quantised, in a copy of the model unless ``inplace=True``.
* ``fuse_modules`` accepts fastconv's layers wherever it accepts torch.nn's.
* ``torch.jit.script`` compiles the code of torch.nn's layers.

:class:`fastconv.nn.ConvReLU2d` and :class:`fastconv.nn.ConvReLUMaxPool2d` have no counterpart that can be quantised.
Setting their ``qconfig`` raises a TypeError. The base class in :mod:`fastconv._layer` has the rest of this support.
"""

import itertools
import sys
from collections.abc import Callable
from typing import Any

from torch.fx import graph_module
from torch.nn import Module
from torch.nn.modules.module import register_module_module_registration_hook

from fastconv._layer import Layer, set_torch_class, torch_class
from fastconv.conversion.convert import LAYERS

__all__ = ["register_for_fuse_modules"]


# torch.fx


def _replace_layer_in_graph_module(parent: Module, name: str, module: Module | None) -> Module | None:
    """Replace fastconv's layer by torch.nn's in a new GraphModule. PyTorch calls this hook for every new sub-module."""
    if not isinstance(module, Layer):
        return None
    copying = sys._getframe(2)  # frames: this function, Module.__setattr__, its caller
    if copying.f_code is not graph_module._copy_attr.__code__ or copying.f_back is None:
        return None
    root = copying.f_back.f_locals.get("root")
    if isinstance(root, graph_module._CodeOnlyModule) or torch_class(module) is None:  # deepcopy, unpickling: keep it
        return None
    twin: Module = object.__new__(type(module))
    twin.__dict__ = dict(vars(module))  # shares the dicts of parameters, buffers and hooks, so later entries too
    set_torch_class(twin)
    return twin


register_module_module_registration_hook(_replace_layer_in_graph_module)  # type: ignore[arg-type]


# torch.ao.quantization


def register_for_fuse_modules() -> None:
    """Add fastconv's layers to the table of the classes that ``fuse_modules`` fuses."""
    try:
        from torch.ao.quantization.fuser_method_mappings import _DEFAULT_OP_LIST_TO_FUSER_METHOD as fusers
    except ImportError:  # this torch has no such table
        return

    def fuser(theirs: Callable[..., Any]) -> Callable[..., Any]:
        def fuse(is_qat: bool, *layers: Module) -> Any:
            for layer in layers:
                if isinstance(layer, Layer):
                    set_torch_class(layer)
            return theirs(is_qat, *layers)

        return fuse

    for classes, method in list(fusers.items()):
        choices = [(cls, LAYERS[cls]) if cls in LAYERS else (cls,) for cls in classes]
        for ours in itertools.product(*choices):
            fusers.setdefault(ours, fuser(method))
