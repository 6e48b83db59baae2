"""The site: `sphinx-build -W -b html docs site`. Pages are Markdown; what can be made from the program is made when it is built."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = html_title = "repalign"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = ["_build", "README.md"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
autodoc_typehints = "description"
autodoc_member_order = "bysource"
default_role = "literal"  # docstrings use single backticks for code
html_theme = "pydata_sphinx_theme"
html_theme_options = {"navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"], "show_nav_level": 2}
