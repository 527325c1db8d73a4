"""Convert whole models: ``convert``, ``revert``, the report, and support for PyTorch's tools."""

from fastconv.conversion.convert import conversion_report, convert, revert
from fastconv.conversion.interop import let_fuse_modules_take_layers

__all__ = ["conversion_report", "convert", "let_fuse_modules_take_layers", "revert"]
