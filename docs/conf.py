"""Settings of Sphinx for the documentation. `make docs` builds it to build/docs/html."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax as files of the site, because a reader may be offline
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_ext", "_static", "_templates", "zh", "build", "jupyter_execute", ".jupyter_cache"]
suppress_warnings = ["config.cache", *(["myst-nb.lexer"] if os.environ.get("FASTCONV_DOCS_EXECUTE") == "off" else [])]
nitpicky = True

# Markdown
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

# Execution. A cell that raises an error, or takes longer than the limit, fails the build.
nb_execution_mode = os.environ.get("FASTCONV_DOCS_EXECUTE", "force")  # off, to look at the layout only
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True

# Mathematics. The major version of sphinx-mathjax-offline is 3.
mathjax_path = "mathjax/tex-chtml.js"

# The look
html_theme = "furo"
html_title = "fastconv"
html_static_path = [str(HERE / "_static")]
templates_path = [str(HERE / "_templates")]
html_css_files = ["custom.css"]
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"
