"""Print predictions: a formatter for each task for people, JSON lines and CoNLL tags for programs."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import click
from rich.text import Text

from peftlab.cli.console import out
from peftlab.data.markup import write_markup
from peftlab.tasks import TASKS
from peftlab.tasks.token_classification import EntityPrediction

if TYPE_CHECKING:
    from peftlab.runtime import Answer
    from peftlab.tasks import Task

COLORS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta", "bright_green")
BAR_WIDTH = 24  # characters of a full bar
MAX_LABELS = 5  # labels listed with their probability


def print_json(predictions: Iterable["Answer"]) -> None:
    """Print one JSON object per line."""
    for prediction in predictions:
        click.echo(json.dumps(prediction.as_dict(), ensure_ascii=False))


def print_predictions(predictions: Iterable["Answer"], tasks: Mapping[str, "Task"]) -> None:
    """Print predictions as text, each after the name of its adapter if there are several adapters."""
    width = max(map(len, tasks), default=0)
    for prediction in predictions:
        task = tasks[prediction.adapter]
        rendered = FORMATTERS[TASKS[task.type].display](prediction.as_dict(), task)
        if len(tasks) > 1:
            rendered = Text.assemble((f"{prediction.adapter:<{width}}  ", "dim"), rendered)
        out.print(rendered)


def print_conll(predictions: Iterable["Answer"], scheme: str) -> None:
    """Print one word and its tag per line, with a blank line between texts."""
    for prediction in predictions:
        click.echo(cast(EntityPrediction, prediction.prediction).as_conll(scheme))


def format_entities(fields: Mapping[str, Any], task: Any) -> Text:
    """Highlight the entities in the text; without colors, write them as inline markup."""
    text, entities = fields["text"], fields["entities"]
    if not out.color_system:
        return Text(write_markup(text, ((e["start"], e["end"], e["label"]) for e in entities)))
    rendered, end = Text(), 0
    for entity in entities:
        color = _label_color(entity["label"], task.labels)
        rendered.append(text[end : entity["start"]])
        rendered.append(f" {entity['text']} ", style=f"black on {color}")
        rendered.append(f"{entity['label']} ", style=f"bold black on {color}")
        end = entity["end"]
    return rendered.append(text[end:])


def format_classes(fields: Mapping[str, Any], task: Any) -> Text:
    """Show the text, and a probability bar for each of the most probable labels."""
    rendered = _input_text(fields)
    width = max(map(len, task.labels))
    for label, probability in list(fields["scores"].items())[: max(MAX_LABELS, len(fields["labels"]))]:
        is_predicted = label in fields["labels"]
        style = _label_color(label, task.labels) if is_predicted else "dim"
        mark = "●" if is_predicted else " "
        rendered.append(f"\n  {mark} {label:<{width}} ", style=f"bold {style}" if is_predicted else style)
        rendered.append(_bar(probability), style=style).append(f" {probability:6.1%}", style=style)
    if not fields["labels"]:
        rendered.append("\n  no label", style="dim")
    return rendered


def format_reply(fields: Mapping[str, Any], task: Any) -> Text:
    """Show the input and the reply below it, and say whether one of them was truncated."""
    reply = fields["reply"].replace("\n", "\n  ") or "(nothing)"
    rendered = _append_length_limit(_input_text(fields).append("\n  ").append(reply, style="bold cyan"), fields, task)
    if fields.get("cut"):
        rendered.append("\n  the input is too long for the base model: its beginning was removed", style="yellow")
    return rendered


def format_generated_text(fields: Mapping[str, Any], task: Any) -> Text:
    """Show the text and the generated text below it, and say whether one of them was truncated."""
    generated = fields[task.target_column].replace("\n", "\n  ") or "(nothing)"
    rendered = _append_length_limit(
        _input_text(fields).append("\n  ").append(generated, style="bold cyan"), fields, task
    )
    if fields.get("cut"):
        rendered.append("\n  the text is too long for the adapter: its end was removed", style="yellow")
    return rendered


def _append_length_limit(rendered: Text, fields: Mapping[str, Any], task: Any) -> Text:
    """Append a remark if generation stopped at `max_new_tokens`."""
    limit = task.generation["max_new_tokens"]
    return rendered if fields["finished"] else rendered.append(f" … (stopped at {limit} tokens)", style="dim")


def format_continuation(fields: Mapping[str, Any], task: Any) -> Text:
    """Show the continuation of the text; or for each mask, a probability bar for each candidate token."""
    if "masks" not in fields:
        return format_reply(fields, task)
    rendered = _input_text(fields)
    for number, mask in enumerate(fields["masks"], start=1):
        width = max(len(candidate["token"]) for candidate in mask)
        if len(fields["masks"]) > 1:
            rendered.append(f"\n  mask {number}", style="bold")
        for rank, candidate in enumerate(mask):
            style = "cyan" if rank == 0 else "dim"
            rendered.append(f"\n  {candidate['token']:<{width}} ", style=f"bold {style}" if rank == 0 else style)
            rendered.append(_bar(candidate["score"]), style=style).append(f" {candidate['score']:6.1%}", style=style)
    return rendered


def format_number(fields: Mapping[str, Any], task: Any) -> Text:
    """Show the text, and a bar for the value within the range of the training rows."""
    minimum, maximum = task.state.get("least", 0.0), task.state.get("most", 1.0)
    share = (fields["value"] - minimum) / ((maximum - minimum) or 1.0)
    rendered = _input_text(fields).append(f"\n  {fields['value']:.2f} ", style="bold cyan")
    rendered.append(_bar(share), style="cyan")
    return rendered.append(f" {minimum:g} to {maximum:g} in training", style="dim")


def format_answer(fields: Mapping[str, Any], task: Any) -> Text:
    """Show the question, and the answer highlighted within its context."""
    rendered = Text(fields["question"], style="bold")
    if fields["answer"] is None:
        return rendered.append(f"\n  no answer in the context  {fields['score']:.1%}", style="yellow")
    before, answer, after = _context_window(fields["context"], fields["start"], fields["end"])
    highlighted = ("⟦" + answer + "⟧", "") if not out.color_system else (f" {answer} ", "black on green")
    rendered.append(f"\n  {fields['answer']}", style="bold green").append(f"  {fields['score']:.1%}\n  ", style="dim")
    return rendered.append(before, style="dim").append(*highlighted).append(after, style="dim")


def format_relation(fields: Mapping[str, Any], task: Any) -> Text:
    """Show the text with its two spans colored, and the relation as an arrow between them."""
    head, tail, label = fields["head"], fields["tail"], fields["label"]
    rendered, end = Text(), 0
    for span, style in sorted(((head, "cyan"), (tail, "magenta")), key=lambda item: item[0]["start"]):
        rendered.append(fields["text"][end : span["start"]])
        rendered.append(fields["text"][span["start"] : span["end"]], style=f"bold {style}")
        end = span["end"]
    rendered.append(fields["text"][end:]).append("\n  ")
    rendered.append(head["text"], style="bold cyan")
    if label == task.negative_label:
        rendered.append(f"  ╌╌ {label} ╌╌  ", style="dim")
    else:
        left, right = ("◀──", "──") if fields["backward"] else ("──", "─▶")
        rendered.append(f"  {left} {label} {right}  ", style="bold")
    return rendered.append(tail["text"], style="bold magenta").append(f"  {fields['score']:.1%}", style="dim")


def format_fields(fields: Mapping[str, Any], task: Any) -> Text:
    """Show each field of the prediction on a line of its own."""
    return Text("\n".join(f"{name}: {value}" for name, value in fields.items()))


FORMATTERS: dict[str, Callable[[Mapping[str, Any], Any], Text]] = {
    "entities": format_entities,
    "classes": format_classes,
    "number": format_number,
    "answer": format_answer,
    "relation": format_relation,
    "reply": format_reply,
    "generated-text": format_generated_text,
    "fields": format_fields,
    "continuation": format_continuation,
}


def _input_text(fields: Mapping[str, Any]) -> Text:
    rendered = Text(fields["text"])
    return rendered.append(f"\n{fields['text_pair']}") if "text_pair" in fields else rendered


def _bar(share: float) -> str:
    full = round(max(0.0, min(1.0, share)) * BAR_WIDTH)
    return "█" * full + "░" * (BAR_WIDTH - full)


def _label_color(label: str, labels: Sequence[str]) -> str:
    return COLORS[labels.index(label) % len(COLORS)]


def _context_window(text: str, start: int, end: int, margin: int = 60) -> tuple[str, str, str]:
    """Return the text before, in and after a span, with at most `margin` characters on each side."""
    before, after = " ".join(text[:start].split()), " ".join(text[end:].split())
    before = f"…{before[-margin:]}" if len(before) > margin else before
    after = f"{after[:margin]}…" if len(after) > margin else after
    blank_before = " " if text[:start][-1:].isspace() else ""
    blank_after = " " if text[end:][:1].isspace() else ""
    return before + blank_before, text[start:end], blank_after + after
