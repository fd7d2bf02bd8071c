"""The documentation's site: `sphinx-build -W docs docs/_site`; pages under reference/ are made from the code."""

import sys
from importlib import metadata
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

project = "ddbench"
release = metadata.version("ddbench")
extensions = ["myst_parser", "reference"]
exclude_patterns = ["_site"]
html_theme = "furo"
html_title = f"ddbench {release}"
highlight_language = "text"
myst_heading_anchors = 3
