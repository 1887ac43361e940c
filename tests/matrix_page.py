"""docs/matrix.md: what works with what, written from the reports of test_method_matrix.py."""

import importlib.metadata
from datetime import UTC, datetime
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "matrix.md"
VERSIONS_OF = ("torch", "transformers", "peft", "bitsandbytes")
_HEAD = """\
# What works with what

Written by `make matrix` on {date}, with {versions}, on a CPU, from tiny random bases. Do not edit.

You want to know whether a method works on a base. **ok** means, tested for each cell: only the delta and the head
train, to the bit; the loss falls; gradients are the same with `gradient_checkpointing`; saved and loaded into a
fresh base, the logits are the same to the bit; with the adapter off, the base gives the same logits to the bit; on
a quantized base, the adapter does the same as on full layers that hold the same rounded weights. A number is a cell
that is refused before training, for this reason:

{reasons}
"""


def matrix_page(reports, methods=()):
    """Markdown from pytest's reports of cells, which tell `cell` and, where that is so, `refused`.

    Several workers report in any order: rows are in that of `methods`.
    """
    order = {method: place for place, method in enumerate(methods)}
    found = _outcomes(reports)
    cells = {cell: found[cell] for cell in sorted(found, key=lambda cell: order.get(cell[0], 0))}
    reasons = sorted({outcome for outcome in cells.values() if outcome not in ("ok", "fails")})
    numbers = {reason: str(number) for number, reason in enumerate(reasons, start=1)}
    head = _HEAD.format(
        date=datetime.now(UTC).date(),
        versions=", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS_OF),
        reasons="\n".join(f"{number}. {reason}" for reason, number in numbers.items()),
    )
    quantizations = dict.fromkeys(quantization for _, _, quantization in cells)
    return "\n".join([head, *(_table(cells, quantization, numbers) for quantization in quantizations)])


def _outcomes(reports):
    """Method, base and quantization → ok, fails, or why it is refused."""
    outcomes = {}
    for report in reports:
        told = dict(report.user_properties)
        if report.when == "call" and "cell" in told:
            method, base, quantization = told["cell"]
            outcome = _reason(told["refused"], method) if "refused" in told else "ok"
            outcomes[method, base, quantization] = outcome if report.passed else "fails"
    return outcomes


def _reason(told, method):
    """Its first sentence without the method's name, so that methods share their reasons."""
    sentence, *_ = told.replace(f"'{method}'", "it").rstrip(".").split(". ")
    return f"{sentence}."


def _table(cells, quantization, numbers):
    methods = dict.fromkeys(method for method, _, _ in cells)
    bases = dict.fromkeys(base for _, base, _ in cells)
    lines = [["", *bases], ["---"] * (len(bases) + 1)]
    for method in methods:
        found = [cells.get((method, base, quantization), "not run") for base in bases]
        lines.append([method, *(numbers.get(outcome, outcome) for outcome in found)])
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## A base in {quantization or 'fp32'}\n\n{rows}\n"
