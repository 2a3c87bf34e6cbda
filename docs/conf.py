"""The site: the pages of this folder, docstrings, and what ``generated.py`` writes from the code.

Sphinx, because the docstrings are numpydoc and its search needs no server. Every warning is an error: a link
or an anchor that leads nowhere, a page in no table of contents, a public name without a page or a docstring.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import generated
from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml
from pygments.lexers.special import TextLexer

import wsi_ats

HERE = Path(__file__).parent
# The notebooks run the command of this checkout, whatever is installed elsewhere.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["PYTHONPATH"] = str(HERE.parent)

project, author = "wsi_ats", "The wsi_ats authors"
version = release = version_of("wsi-ats")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
templates_path = ["templates"]
myst_heading_anchors = 4
# Notebooks have no outputs in the repository; they are run when the site is built, and again if they change.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build" / "notebooks")
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
numpydoc_show_class_members = False
# Docstrings exist (GL08); tests/test_public_api.py checks that they have all parameters.
numpydoc_validation_checks = {"GL08"}
# Methods of the language are described by it; an alias of a type has no docstring of its own.
numpydoc_validation_exclude = {r"\.__\w+__$", r"sampling\.Design$"}

# Browsers draw MathML themselves, where MathJax would be loaded from a server.
html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "wsi_ats"
html_theme_options = {
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {"get-started": [], "developers/*": ["sidebar-nav-bs"]}
html_show_sourcelink = html_copy_source = False

# Pages whose second part is written from the code.
GENERATED = {"reference/cli": generated.commands, "reference/settings": generated.settings}


def complete(_app: Any, page: str, source: list[str]) -> None:
    """Append the generated part of a page."""
    if page in GENERATED:
        source[0] += "\n\n" + GENERATED[page]()


def check_names(_app: Any, env: Any) -> None:
    """Warn, and thereby fail, if a public name is on no page."""
    from sphinx.util.logging import getLogger

    for name in wsi_ats.__all__:
        if f"wsi_ats.{name}" not in env.domains["py"].objects:
            getLogger(__name__).warning(
                "wsi_ats.%s is public, but on no page; name it in reference/python.rst", name
            )


def write_formula(writer: Any, node: Any) -> None:
    """Write a formula as MathML."""
    writer.body.append(tex2mathml(node.astext(), as_block=node.tagname == "math_block"))
    raise SkipNode


def setup(app: Any) -> None:
    """Register these with Sphinx, and a language that no highlighter knows."""
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    app.add_lexer("crontab", TextLexer)
    app.connect("source-read", complete)
    app.connect("env-check-consistency", check_names)
