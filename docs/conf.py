"""conf - how Sphinx builds the pages. The text is plain Markdown; pages of reference/ are made by generate.py."""

from lowbit import __version__

project = "lowbit"
author = "the lowbit authors"
project_copyright = "2026, the lowbit authors"
version = release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"lowbit {__version__}"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["pages.css"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
