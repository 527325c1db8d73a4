"""Additions to the execution of pages, which need `nb_execution_mode = "cache"`.

**A page and its translation share the results of their code.** jupyter-cache looks for an executed page with the same
code and the same metadata. The alternative texts of pictures are metadata, and a translation has others. So the tags of
cells are compared, and each page keeps its own metadata. The notebooks to download also get the cached outputs.

**A page in Chinese shows the pictures with Chinese labels**, which are additional outputs of the cells (labels.py).

**Pages that measure times are executed alone**, before Sphinx reads the other pages in parallel. `measured_pages` in
conf.py has their names.

**Kernels print errors only.** Otherwise, each kernel warns that its connection within the machine is not encrypted.
They have five minutes to start, for machines that are busy.
"""

from __future__ import annotations

import json
import os
from functools import partialmethod
from pathlib import Path
from typing import Any

import labels
from jupyter_cache.cache.main import JupyterCacheBase
from myst_nb.core.execute import create_client
from myst_nb.core.execute.base import NotebookClientBase
from myst_nb.core.execute.cache import NotebookClientCache
from myst_nb.core.read import create_nb_reader
from nbclient import NotebookClient
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging


def share_results() -> None:
    """Compare the tags of cells only, and put the outputs into the page's own notebook, which readers download."""
    create, merge = JupyterCacheBase.create_hashed_notebook, JupyterCacheBase.merge_match_into_notebook

    def merge_in_place(self: JupyterCacheBase, notebook: NotebookNode) -> tuple[int, NotebookNode]:
        key, merged = merge(self, notebook, cell_meta=())
        notebook.cells, notebook.metadata = merged.cells, merged.metadata
        return key, notebook

    JupyterCacheBase.create_hashed_notebook = partialmethod(create, cell_metadata=("tags",))
    JupyterCacheBase.merge_match_into_notebook = merge_in_place


def choose_pictures(notebook: NotebookNode, in_chinese: bool) -> set[str]:
    """Remove the additional outputs. In Chinese, they replace the pictures. Return the labels without a translation."""
    missing: set[str] = set()
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        found = output.get("data", {}).pop(labels.TYPE, None)
        if found is not None and in_chinese:
            drawn = json.loads(found)
            output["data"]["image/png"] = drawn["picture"]
            missing.update(drawn["missing"])
        elif in_chinese and "image/png" in output.get("data", {}):
            raise RuntimeError("a picture has no drawing with Chinese labels: did docs/_ext/startup.py fail?")
    return missing


def show_pictures(in_chinese: bool) -> None:
    """Let each page, executed or from the cache, choose its pictures. The cache keeps both drawings."""
    start = NotebookClientCache.start_client

    def start_and_choose(self: NotebookClientBase) -> None:
        start(self)
        for line in sorted(choose_pictures(self.notebook, in_chinese)):
            self.logger.warning(f"docs/zh/labels.json has no translation of the label {line!r}")

    NotebookClientCache.start_client = start_and_choose


def execute_measured_pages(app: Sphinx, env: BuildEnvironment, names: list[str]) -> None:
    """Execute the pages of `measured_pages` that changed. Their results go to the cache."""
    config = env.mystnb_config  # type: ignore[attr-defined]
    if config.execution_mode != "cache":
        return
    for name in app.config.measured_pages:
        if name in names:
            path = str(env.doc2path(name))
            text = Path(path).read_text(encoding="utf-8")
            reader = create_nb_reader(path, env.myst_config, config, text)  # type: ignore[attr-defined]
            if reader is None:
                raise ValueError(f"{name} of measured_pages has no code")
            with create_client(reader.read(text), path, config, logging.getLogger(__name__), reader.read_fmt):
                pass


def setup(app: Sphinx) -> dict[str, Any]:
    os.environ["PYTHONSTARTUP"] = str(Path(__file__).with_name("startup.py"))  # the kernels run this file
    NotebookClient.__init__ = partialmethod(
        NotebookClient.__init__, extra_arguments=["--log-level=ERROR"], startup_timeout=300
    )
    share_results()
    show_pictures(in_chinese=app.config.language.startswith("zh"))
    app.add_config_value("measured_pages", [], "env", list)
    app.connect("env-before-read-docs", execute_measured_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
