"""Sphinx, for the site of docs/. `scripts/docs` makes the folder that it builds from."""

from itertools import groupby
from typing import Any

import nexios_trio

project = "nexios_trio"
author = "The nexios_trio team"
project_copyright = author
version = release = nexios_trio.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns: list[str] = []

# Anchors as GitHub makes them, so that a link works in both.
myst_heading_anchors = 4

# `Name` in a docstring is code; it need not be a cross-reference.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autoclass_content = "class"
python_maximum_signature_line_length = 80
add_module_names = False
# The type bytes is also the name of two attributes.
suppress_warnings = ["ref.python"]
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "nexios_trio"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_last_updated_fmt = None
# Fonts are the reader's own; nothing is fetched from another host.


def setup(app: Any) -> None:
    """Tables in docstrings are Markdown's, as in all our text."""
    app.connect("autodoc-process-docstring", _tables)


def _tables(_app: Any, _what: str, _name: str, _thing: object, _options: object, lines: list[str]) -> None:
    found: list[str] = []
    for is_table, group in groupby(lines, lambda line: line.startswith("|") and line.endswith("|")):
        part = [*group]
        found += _list_table(part) if is_table else part
    lines[:] = found


def _list_table(table: list[str]) -> list[str]:
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in table]
    made = [".. list-table::", "   :header-rows: 1", ""]
    for row in [rows[0], *rows[2:]]:
        made += [f"   {'* -' if index == 0 else '  -'} {cell}" for index, cell in enumerate(row)]
    return [*made, ""]
