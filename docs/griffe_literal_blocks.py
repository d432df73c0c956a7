"""Docstrings mark a code block by a line that ends in `::`; Markdown knows the indentation alone. Used by mkdocstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe


class LiteralBlocks(griffe.Extension):
    """Drops a `::` that stands alone and turns one at the end of a sentence into a colon."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            text = re.sub(r"(?m)^[ ]*::[ ]*\n", "", obj.docstring.value)
            obj.docstring.value = re.sub(r"(?m)::[ ]*$", ":", text)
