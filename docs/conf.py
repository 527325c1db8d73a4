"""Settings of Sphinx for the documentation. `make docs` builds it to build/docs/html.

docs/zh/conf.py uses these settings for the Chinese pages, which are a project of their own.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from fastconv.version import __version__  # noqa: E402

project = "fastconv"
author = "The fastconv developers"
copyright = "The fastconv developers, MIT license"
version = release = __version__
language = "en"

extensions = [
    "myst_nb",  # Markdown; pages with code are executed
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",  # the sources as pages of the site, because a reader may be offline
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
    "command",  # docs/_ext
    "execution",
    "figures",
]
exclude_patterns = ["_ext", "_static", "_templates", "data", "zh"]
nitpicky = True
smartquotes_action = "qe"  # quotes and ellipses, but no dashes: "--option" stays as it is

# Markdown
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

# Execution. A cell that raises an error, or takes longer than the limit, fails the build.
# A page with the same code as another, such as a translation, is executed once.
nb_execution_mode = os.environ.get("FASTCONV_DOCS_EXECUTE", "cache")  # off, to look at the layout only
nb_execution_cache_path = str(HERE.parent / "build" / "docs" / "cache")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_in_temp = True
nb_merge_streams = True
logging.getLogger("traitlets").setLevel(logging.WARNING)  # it prints a line for each page
# These pages measure times, so they are executed alone, before the others.
measured_pages = ["get_started", "course/6_speed"]
# Without execution, the language of the cells is unknown.
suppress_warnings = ["config.cache", *(["myst-nb.lexer"] if nb_execution_mode == "off" else [])]

# Reference. The types of other packages have no page here, and neither have these internal modules and types.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
_INTERNAL = (
    r"_|conversion\.convert\.M|public\.Configuration"
    r"|classifier\.(config|continuing|data\.places|fit|history)"
)
nitpick_ignore_regex = [(r"py:.*", r"(?!fastconv).*"), (r"py:.*", rf"fastconv\.({_INTERNAL}).*")]

# Mathematics. The package sphinx-mathjax-offline has the files of MathJax 3.
mathjax_path = "mathjax/tex-chtml.js"
_MATHJAX = ("tex-chtml.js", "a11y", "output/chtml", "sre", "ui")

# The look
html_theme = "furo"
html_title = "fastconv"
html_static_path = [str(HERE / "_static")]
templates_path = [str(HERE / "_templates")]
html_css_files = ["custom.css"]
html_js_files = ["custom.js"]
html_show_sphinx = False
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "language.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
copybutton_exclude = ".linenos, .gp, .go"


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copy the files of MathJax that the pages load, which are a third of the package."""
    spec = find_spec("sphinx-mathjax-offline")
    if exception or spec is None or spec.origin is None:
        return
    source, target = Path(spec.origin).parent / "static" / "mathjax", Path(app.outdir) / "_static" / "mathjax"
    for name in _MATHJAX:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if not (target / name).exists():
            copy(source / name, target / name)


def link_languages(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Let the template link to the same page in the other language, or to the index if that page does not exist."""
    chinese = app.config.language.startswith("zh")
    other = HERE if chinese else HERE / "zh"
    if not (HERE / "zh" / "course" / "index.md").exists():
        return
    name = page if any((other / f"{page}{suffix}").exists() for suffix in (".md", ".rst")) else "index"
    context["other_language"] = {
        "path": f"../{name}.html" if chinese else f"zh/{name}.html",
        "code": "en" if chinese else "zh",
        "name": "English" if chinese else "中文",
    }


def setup(app: Sphinx) -> None:
    app.connect("build-finished", copy_mathjax)
    app.connect("html-page-context", link_languages)
