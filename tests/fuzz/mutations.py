"""Bytes that are nearly those of an example."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def mutated(draw, examples):
    """An example with a few bytes overwritten, inserted, deleted or repeated."""
    content = bytearray(draw(st.sampled_from(examples)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        size = draw(st.integers(0, 8))
        piece = draw(st.binary(min_size=size, max_size=size) | st.sampled_from([b"\xff" * size, b"\0" * size, b"[" * size, b'"']))
        how = draw(st.sampled_from(["overwrite", "insert", "delete", "repeat", "cut"]))
        if how == "overwrite":
            content[at : at + len(piece)] = piece
        elif how == "insert":
            content[at:at] = piece
        elif how == "delete":
            del content[at : at + size]
        elif how == "repeat":
            content[at:at] = content[at : at + 64] * 3
        else:
            del content[at:]
    return bytes(content)
