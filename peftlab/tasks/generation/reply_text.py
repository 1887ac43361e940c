"""White space around generated text: what separates a reply from its prompt is removed, indentation is not."""

import re

_INDENTATION = re.compile(r"[ \t]*$")


def trim_reply(text: str) -> str:
    """Remove white space behind a text and blank lines before it, and one blank before its first word."""
    return trim_start(text.rstrip())


def trim_start(text: str) -> str:
    """Remove blank lines before a text, and one blank before its first word; keep deeper indentation.

    Of a text that is only white space, nothing is left.
    """
    word = text.lstrip()
    indentation = _INDENTATION.findall(text[: len(text) - len(word)])[0] if word else ""
    return f"{'' if indentation == ' ' else indentation}{word}"
