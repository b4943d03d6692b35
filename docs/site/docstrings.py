"""Turns the docstrings' mathematics and references (reStructuredText) into what the site shows (Markdown)."""

import re

import griffe

BLOCK = re.compile(r"^( *)\.\. math::[ ]*(.*)\n((?:\n|\1 +.*(?:\n|$))*)", re.MULTILINE)
INLINE = re.compile(r":math:`([^`]+)`")
REFERENCE = re.compile(r":(?:func|mod|class|data|meth):`~?([^`]+)`")


def to_markdown(text: str) -> str:
    """Formulas between ``\\[`` and ``\\]`` or ``\\(`` and ``\\)``, names in code."""

    def block(found: re.Match) -> str:
        indent, first, rest = found.groups()
        lines = " ".join(line.strip() for line in (first, *rest.splitlines()) if line.strip())
        return f"{indent}\\[ {lines} \\]\n\n"

    text = BLOCK.sub(block, text)
    text = INLINE.sub(lambda found: f"\\({found[1]}\\)", text)
    return REFERENCE.sub(lambda found: f"`{found[1].lstrip('.')}`", text).replace("``", "`")


class Docstrings(griffe.Extension):
    """Applies it to every docstring that is read."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
