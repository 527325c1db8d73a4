"""Let a page and its translation share the results of their code.

jupyter-cache looks for an executed page with the same code and the same metadata. The alternative texts of pictures are
metadata, and a translation has others. So compare the tags of cells only, and keep each page's own metadata.
"""

from __future__ import annotations

from functools import partialmethod
from typing import Any

from jupyter_cache.cache.main import JupyterCacheBase
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    for method, keys in (
        ("create_hashed_notebook", {"cell_metadata": ("tags",)}),
        ("merge_match_into_notebook", {"cell_meta": ()}),
    ):
        setattr(JupyterCacheBase, method, partialmethod(getattr(JupyterCacheBase, method), **keys))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
