"""Convert whole models: ``convert``, ``revert``, the report, and support for PyTorch's tools."""

from fastconv.conversion.convert import conversion_report, convert, revert
from fastconv.conversion.interop import register_for_fuse_modules

__all__ = ["conversion_report", "convert", "register_for_fuse_modules", "revert"]
