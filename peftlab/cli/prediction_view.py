"""How predictions look: one form a task, for people."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import click
from rich.text import Text

from peftlab.cli.console import out
from peftlab.data.markup import write_markup
from peftlab.tasks.token_classification import Entities

if TYPE_CHECKING:
    from peftlab.runtime import Answer
    from peftlab.tasks import Task

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta", "bright_green")
BAR = 24  # characters of a full bar
SHOWN = 5  # labels whose probability is told


def print_json(answers: Iterable["Answer"]) -> None:
    """An object a line."""
    for answer in answers:
        click.echo(json.dumps(answer.as_dict(), ensure_ascii=False))


def print_answers(answers: Iterable["Answer"], tasks: Mapping[str, "Task"]) -> None:
    """Each answer by its adapter's task, after its adapter's name where there are several."""
    width = max(map(len, tasks), default=0)
    for answer in answers:
        task = tasks[answer.adapter]
        shown = FORMS[task.type](answer.as_dict(), task)
        if len(tasks) > 1:
            shown = Text.assemble((f"{answer.adapter:<{width}}  ", "dim"), shown)
        out.print(shown)


def print_conll(answers: Iterable["Answer"], scheme: str) -> None:
    """A word and its tag a line, a blank line between texts."""
    for answer in answers:
        click.echo(cast(Entities, answer.prediction).as_conll(scheme))


def entities_form(fields: Mapping[str, Any], task: Any) -> Text:
    """The text with its entities coloured and labelled; as inline markup where there is no colour to be had."""
    text, entities = fields["text"], fields["entities"]
    if not out.color_system:
        return Text(write_markup(text, ((e["start"], e["end"], e["label"]) for e in entities)))
    shown, end = Text(), 0
    for entity in entities:
        colour = _colour(entity["label"], task.labels)
        shown.append(text[end : entity["start"]])
        shown.append(f" {entity['text']} ", style=f"black on {colour}")
        shown.append(f"{entity['label']} ", style=f"bold black on {colour}")
        end = entity["end"]
    return shown.append(text[end:])


def classes_form(fields: Mapping[str, Any], task: Any) -> Text:
    """The text, and a bar for each of the most probable labels."""
    shown = _asked(fields)
    width = max(map(len, task.labels))
    for label, chance in list(fields["scores"].items())[: max(SHOWN, len(fields["labels"]))]:
        given = label in fields["labels"]
        style = _colour(label, task.labels) if given else "dim"
        mark = "●" if given else " "
        shown.append(f"\n  {mark} {label:<{width}} ", style=f"bold {style}" if given else style)
        shown.append(_bar(chance), style=style).append(f" {chance:6.1%}", style=style)
    if not fields["labels"]:
        shown.append("\n  no label", style="dim")
    return shown


def reply_form(fields: Mapping[str, Any], task: Any) -> Text:
    """What was asked, and the reply below it; marked where it stopped for length, or the question was cut."""
    reply = fields["reply"].replace("\n", "\n  ") or "(nothing)"
    shown = _stopped(_asked(fields).append("\n  ").append(reply, style="bold cyan"), fields, task)
    if fields.get("cut"):
        shown.append("\n  what was asked is longer than the base takes: its beginning was left out", style="yellow")
    return shown


def rewriting_form(fields: Mapping[str, Any], task: Any) -> Text:
    """The text, and what was written for it below; marked where it stopped for length, or the text was cut."""
    written = fields[task.called].replace("\n", "\n  ") or "(nothing)"
    shown = _stopped(_asked(fields).append("\n  ").append(written, style="bold cyan"), fields, task)
    if fields.get("cut"):
        shown.append("\n  the text is longer than the adapter takes: its end was left out", style="yellow")
    return shown


def _stopped(shown: Text, fields: Mapping[str, Any], task: Any) -> Text:
    """Marked, if what was written stopped for length."""
    limit = task.generation["max_new_tokens"]
    return shown if fields["finished"] else shown.append(f" … (stopped at {limit} tokens)", style="dim")


def language_form(fields: Mapping[str, Any], task: Any) -> Text:
    """How the text goes on; or the text, and a bar for each token that may stand in the place of each mask."""
    if "masks" not in fields:
        return reply_form(fields, task)
    shown = _asked(fields)
    for number, mask in enumerate(fields["masks"], start=1):
        width = max(len(one["token"]) for one in mask)
        if len(fields["masks"]) > 1:
            shown.append(f"\n  mask {number}", style="bold")
        for place, one in enumerate(mask):
            style = "cyan" if place == 0 else "dim"
            shown.append(f"\n  {one['token']:<{width}} ", style=f"bold {style}" if place == 0 else style)
            shown.append(_bar(one["score"]), style=style).append(f" {one['score']:6.1%}", style=style)
    return shown


def number_form(fields: Mapping[str, Any], task: Any) -> Text:
    """The text, and where the number lies between the least and the most of the training rows."""
    least, most = task.learned.get("least", 0.0), task.learned.get("most", 1.0)
    share = (fields["value"] - least) / ((most - least) or 1.0)
    shown = _asked(fields).append(f"\n  {fields['value']:.2f} ", style="bold cyan")
    shown.append(_bar(share), style="cyan")
    return shown.append(f" {least:g} to {most:g} in training", style="dim")


def answer_form(fields: Mapping[str, Any], task: Any) -> Text:
    """The question, and the answer highlighted where it stands in the context."""
    shown = Text(fields["question"], style="bold")
    if fields["answer"] is None:
        return shown.append(f"\n  no answer in the context  {fields['score']:.1%}", style="yellow")
    before, answer, after = _around(fields["context"], fields["start"], fields["end"])
    highlighted = ("⟦" + answer + "⟧", "") if not out.color_system else (f" {answer} ", "black on green")
    shown.append(f"\n  {fields['answer']}", style="bold green").append(f"  {fields['score']:.1%}\n  ", style="dim")
    return shown.append(before, style="dim").append(*highlighted).append(after, style="dim")


def relation_form(fields: Mapping[str, Any], task: Any) -> Text:
    """The text with its spans coloured, and an arrow from one to the other."""
    head, tail, label = fields["head"], fields["tail"], fields["label"]
    shown, end = Text(), 0
    for span, style in sorted(((head, "cyan"), (tail, "magenta")), key=lambda item: item[0]["start"]):
        shown.append(fields["text"][end : span["start"]])
        shown.append(fields["text"][span["start"] : span["end"]], style=f"bold {style}")
        end = span["end"]
    shown.append(fields["text"][end:]).append("\n  ")
    shown.append(head["text"], style="bold cyan")
    if label == task.negative_label:
        shown.append(f"  ╌╌ {label} ╌╌  ", style="dim")
    else:
        left, right = ("◀──", "──") if fields["backward"] else ("──", "─▶")
        shown.append(f"  {left} {label} {right}  ", style="bold")
    return shown.append(tail["text"], style="bold magenta").append(f"  {fields['score']:.1%}", style="dim")


FORMS: dict[str, Callable[[Mapping[str, Any], Any], Text]] = {
    "token-classification": entities_form,
    "text-classification": classes_form,
    "regression": number_form,
    "question-answering": answer_form,
    "relation-extraction": relation_form,
    "causal-lm": reply_form,
    "translation": rewriting_form,
    "summarization": rewriting_form,
    "preference": reply_form,
    "domain-adaptation": language_form,
}


def _asked(fields: Mapping[str, Any]) -> Text:
    shown = Text(fields["text"])
    return shown.append(f"\n{fields['text_pair']}") if "text_pair" in fields else shown


def _bar(share: float) -> str:
    full = round(max(0.0, min(1.0, share)) * BAR)
    return "█" * full + "░" * (BAR - full)


def _colour(label: str, labels: Sequence[str]) -> str:
    return COLOURS[labels.index(label) % len(COLOURS)]


def _around(text: str, start: int, end: int, room: int = 60) -> tuple[str, str, str]:
    """What stands before, in and after a span, at most `room` characters on each side."""
    before, after = " ".join(text[:start].split()), " ".join(text[end:].split())
    before = f"…{before[-room:]}" if len(before) > room else before
    after = f"{after[:room]}…" if len(after) > room else after
    blank_before = " " if text[:start][-1:].isspace() else ""
    blank_after = " " if text[end:][:1].isspace() else ""
    return before + blank_before, text[start:end], blank_after + after
