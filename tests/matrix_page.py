"""docs/matrix.md: what works with what, written from the reports of test_method_matrix.py and test_architectures.py."""

import importlib.metadata
import re
from datetime import UTC, datetime
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "matrix.md"
VERSIONS_OF = ("torch", "transformers", "peft", "bitsandbytes")
_HEAD = """\
# What works with what

Written by `make matrix` on {date}, with {versions}, on a CPU, from tiny random bases. Do not edit.

You want to know whether a method works on a base. **ok** means, tested for each cell with the functions that `tune`
trains with: only the delta and the head train, to the bit; the loss falls; gradients are the same with
`gradient_checkpointing`; saved and loaded into a fresh base, the logits are the same to the bit; with the adapter off,
the base gives the same logits to the bit; on a quantized base, the adapter does the same as on full layers that hold
the same rounded weights. A number is a cell that is refused before training, for this reason:

{reasons}
"""


_ARCHITECTURES = "## Architectures and tasks"
_ARCHITECTURES_HEAD = """\
{title}

Written on {date}, with {versions}, on a CPU. Each architecture is a tiny random model without a head, and LoRA is
tuned on it for each kind of task. **ok** means: the adapter was published, and a bank gives each row the outputs of
plain PEFT to 1e-5, alone, in a batch, and in a batch with the adapters of the other tasks. A letter is a cell that is
refused before training, for this reason:

{reasons}
"""


def write_page(file, reports, methods=()):
    """Write the parts of the page that `reports` tell of; the others stay."""
    page = file.read_text(encoding="utf8") if file.exists() else ""
    by_method, _, by_architecture = page.partition(_ARCHITECTURES)
    by_architecture = _ARCHITECTURES + by_architecture if by_architecture else ""
    if _outcomes(reports):
        by_method = matrix_page(reports, methods) + "\n"
    if found := _architecture_outcomes(reports):
        by_architecture = _architectures_part(found)
    file.write_text(f"{by_method.rstrip()}\n\n{by_architecture}".strip() + "\n", encoding="utf8")


def _architecture_outcomes(reports):
    """Architecture → task → ok, fails, or why it is refused, in the order of the names."""
    found = {}
    for report in reports:
        told = dict(report.user_properties)
        if report.when == "call" and "architecture" in told:
            name, outcomes = told["architecture"]
            found[name] = {task: _general(outcome) if report.passed else "fails" for task, outcome in outcomes.items()}
    return dict(sorted(found.items()))


def _general(outcome):
    """A reason without what differs from task to task, so that cells share their reasons."""
    if outcome == "ok":
        return outcome
    sentence, *_ = outcome.removesuffix(".").split(". ")
    if "model, which does not support" in sentence:
        return "Transformers has no model class of this architecture for the task."
    sentence = re.sub(r"^\(([\w-]+)\) ", "the model ", sentence)
    sentence = re.sub(
        r", by [\d.e-]+| \(\d+ and \d+ long\)| that is \d+ long|\b[\w.]+\.(?=\w+embeddings)", "", sentence
    )
    return f"{sentence}."


def _architectures_part(found):
    reasons = sorted({outcome for row in found.values() for outcome in row.values()} - {"ok", "fails"})
    letters = {reason: chr(ord("a") + place) for place, reason in enumerate(reasons)}
    head = _ARCHITECTURES_HEAD.format(
        title=_ARCHITECTURES,
        date=datetime.now(UTC).date(),
        versions=_versions(),
        reasons="\n".join(f"- **{letter}**: {reason}" for reason, letter in letters.items()),
    )
    tasks = list(next(iter(found.values())))
    lines = [["", *tasks], ["---"] * (len(tasks) + 1)]
    lines += [[name, *(letters.get(row[task], row[task]) for task in tasks)] for name, row in found.items()]
    return head + "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _versions():
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS_OF)


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
        versions=_versions(),
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
