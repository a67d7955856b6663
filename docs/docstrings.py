"""A reader of docstrings for the API reference: "a, b: text" in a list of arguments or attributes is one entry of two names."""

from __future__ import annotations

import re
from typing import Any

import griffe

ENTRY = re.compile(r"^( +)(\w+(?:, \w+)+):", flags=re.MULTILINE)
NO_BREAK = "\N{NO-BREAK SPACE}"


class SharedEntries(griffe.Extension):
    """Keeps the names of an entry together: griffe takes what follows the first blank for a type."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called with every object, once it has its docstring."""
        if obj.docstring is not None:
            obj.docstring.value = ENTRY.sub(lambda found: found[1] + found[2].replace(" ", NO_BREAK) + ":", obj.docstring.value)
