"""The Python code of a model card, run as a reader would run it."""

import re


def model_of_card(folder):
    """The model that the code in the README.md of `folder` builds, in eval mode."""
    card = (folder / "README.md").read_text(encoding="utf8")
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    variables = {}
    exec(code.replace("path/to/this/folder", str(folder)), variables)
    return variables["model"].eval()
