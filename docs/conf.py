"""Sphinx: the pages beside this file, and the API from the docstrings. Built by `make docs`."""

import fusedrnn

project = "fusedrnn"
author = copyright = "the fusedrnn authors"  # noqa: A001
release = version = fusedrnn.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
numpydoc_show_class_members = False
autodoc_typehints = "none"  # numpydoc's Parameters sections say more: shapes, and what they mean
exclude_patterns = ["_build"]
html_theme = "alabaster"
