"""The relation between two marked spans of a text.

The spans are marked by plain text that the base knows already, as *typed entity markers (punctuation)* of Zhou and Chen
2022 (arXiv:2102.01373): `@ * person * Ada @ founded # ^ firm ^ Solwind #`. So no embedding is added or resized, and the
markers differ for head and tail, which keeps the direction. A text that is too long keeps what is nearest to the spans.

Scores are those of SemEval-2010 task 8's official scorer: macro F1 over relations, without the negative class; labels
such as `Cause-Effect(e1,e2)` name a relation and its direction, and a wrong direction counts as wrong.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import Problems, suggest
from peftlab.tasks.columns import chosen_form, json_cell, question_text, shown, string_list, text_column
from peftlab.tasks.contract import Confusion, Example, Feature, Prediction, Scores, Task
from peftlab.tasks.label_sets import learn_labels
from peftlab.tasks.sequences import encode_sequence
from peftlab.tasks.tag_schemes import spans_from_tags
from peftlab.tasks.words import join_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

NEGATIVE_LABELS = ("Other", "no_relation", "NA", "none")
GAP = " … "
_DIRECTION = re.compile(r"\((?:e1|head),\s*(?:e2|tail)\)$|\((?:e2|tail),\s*(?:e1|head)\)$")
_BACKWARD = re.compile(r"\((?:e2|tail),\s*(?:e1|head)\)$")
_MARK = re.compile(r"<(?P<close>/?)(?P<name>e1|e2|head|tail)(?::(?P<type>[^<>\s]+))?>")
_ROLES = {"e1": "head", "head": "head", "e2": "tail", "tail": "tail"}
_MARKERS = {"head": ("@", "*"), "tail": ("#", "^")}


@dataclass(frozen=True)
class Span:
    """`text[start:end]`, with the type of the thing where it is known."""

    start: int
    end: int
    type: str | None = None


@dataclass(frozen=True)
class MarkedText(Example):
    """A text with a head and a tail, and the relation from one to the other."""

    head: Span = Span(0, 0)
    tail: Span = Span(0, 0)
    label: str | None = None


@dataclass(frozen=True)
class Relation(Prediction):
    """The relation of a head to a tail, with its probability."""

    head: Span
    tail: Span
    label: str
    score: float
    backward: bool
    """Whether the label says that the relation goes from tail to head."""

    def as_dict(self) -> dict[str, Any]:
        """`text`, `head`, `tail`, `label`, `backward` and `score`; offsets count characters of the text."""
        ends = {name: {**asdict(span), "text": self.text[span.start : span.end]} for name, span in self.ends.items()}
        told = {"label": self.label, "backward": self.backward, "score": round(self.score, 4)}
        return {"text": self.text, **ends, **told}

    @property
    def ends(self) -> dict[str, Span]:
        """Both spans by their roles."""
        return {"head": self.head, "tail": self.tail}


class RelationExtractionTask(Task):
    """Rows have `label` and `text` with `head` and `tail` ({start, end, type?}), or with `<e1>…</e1>`, or tokens.

    With `tokens`, head and tail count tokens, or `tags` mark them: B-head I-head, B-tail (also e1 and e2).
    """

    type = "relation-extraction"
    targets = "relations"
    main_score = "f1"
    problem_type = "single_label_classification"
    example_arguments = '"<e1>Ada Okafor</e1> founded <e2>Solwind</e2>."'

    def __init__(self, *, labels: list[str] | None = None, negative_label: str | None = None) -> None:
        super().__init__(labels=labels)
        self.negative_label = negative_label

    @property
    def reading(self) -> str:
        """The text goes in with its spans marked."""
        return "Spans are marked in the text: `@ * type * head @`, `# ^ type ^ tail #`; types in lower case, if known."

    @property
    def options(self) -> dict[str, Any]:
        """What prediction depends on."""
        return {"negative_label": self.negative_label}

    def read(self, row: Row) -> MarkedText:
        """A row → a text with two spans and a relation. Raises RowError with what was expected."""
        marked = isinstance(text := row.fields.get("text"), str) and _MARK.search(text)
        forms = [("text", "head", "tail", "label"), ("tokens", "head", "tail", "label"), ("tokens", "tags", "label")]
        chosen_form(row, *([("text", "label")] if marked else forms))
        label = row.fields["label"]
        if not isinstance(label, str) or not label.strip():
            raise RowError(f"expected label to be the name of a relation, found {shown(label)}")
        return replace(self._read_spans(row, text_column), label=label.strip())

    def read_input(self, row: Row) -> MarkedText:
        """A text with two spans, as columns or marked by `<e1>…</e1>` and `<e2>…</e2>`."""
        return self._read_spans(row, question_text)

    def _read_spans(self, row: Row, read_text: Any) -> MarkedText:
        if "text" in row.fields and not row.fields.keys() >= {"head", "tail"}:
            return _from_markup(read_text(row, "text"), row.where)
        form = chosen_form(row, ("text", "head", "tail"), ("tokens", "head", "tail"), ("tokens", "tags"))
        if form[0] == "text":
            text = read_text(row, "text")
            spans = [_span(json_cell(row.fields[role], role), role, len(text), "characters") for role in form[1:]]
            return _checked(MarkedText(text, row.where, head=spans[0], tail=spans[1]))
        return _from_tokens(row, form)

    def learn(self, examples: Mapping[str, Sequence[MarkedText]], problems: Problems) -> None:
        """Relations of the training rows, unless the recipe lists them, and which of them is the negative one."""
        self.labels = learn_labels(self.labels, examples, self.labels_of, problems)
        if self.negative_label is None:
            self.negative_label = next((label for label in NEGATIVE_LABELS if label in self.labels), None)
        elif self.negative_label not in self.labels:
            hint = suggest(self.negative_label, self.labels, what="Labels there")
            problems.add(
                f"no training row has the label '{self.negative_label}'.", key="task.negative_label", hint=hint
            )
        if len(self.labels) < 2 and examples["train"]:
            problems.add(
                f"the training rows hold {len(self.labels)} relation(s); nothing to tell apart.", key="data.train"
            )

    def encode(
        self, example: MarkedText, tokenizer: "PreTrainedTokenizerBase", max_length: int, *, training: bool
    ) -> list[Feature]:
        """The marked text, in one feature; see `Task.encode`."""
        label = self.labels.index(example.label) if example.label is not None else None
        whole = marked_text(example)
        room = max_length - tokenizer.num_special_tokens_to_add()
        if len(tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"]) <= room:
            return encode_sequence(whole, None, label, tokenizer, max_length, training=True)
        near = _nearest_text(example, tokenizer, room)
        (feature,) = encode_sequence(near, None, label, tokenizer, max_length, training=True)
        return [replace(feature, cut=True)]

    def labels_of(self, example: MarkedText) -> list[str]:
        """Its relation."""
        return [str(example.label)]

    def count(self, example: MarkedText) -> int:
        """One relation a row, the negative one too."""
        return 1

    def loss(self, logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        """Cross entropy."""
        from torch.nn import functional

        return functional.cross_entropy(logits, labels)

    def decode(self, example: MarkedText, features: Sequence[Feature], logits: Sequence["torch.Tensor"]) -> Relation:
        """The most probable relation."""
        (output,) = logits
        chances = output.float().softmax(-1)
        best = int(chances.argmax())
        label = self.labels[best]
        backward = bool(_BACKWARD.search(label))
        return Relation(example.text, example.head, example.tail, label, float(chances[best]), backward)

    def score(self, examples: Sequence[MarkedText], predictions: Sequence[Relation]) -> Scores:
        """Macro precision, recall and F1 over the relations that occur, without the negative one, and accuracy."""
        from sklearn.metrics import confusion_matrix

        gold, told = [str(row.label) for row in examples], [row.label for row in predictions]
        right = Counter(relation_of(a) for a, b in zip(gold, told, strict=True) if a == b)
        asked, answered = (Counter(map(relation_of, labels)) for labels in (gold, told))
        rows = {name: _f1(right[name], answered[name], asked[name]) for name in sorted(asked)}
        positive = [values for name, values in rows.items() if name != self.negative_label]
        macro = {
            name: sum(values[name] for values in positive) / max(1, len(positive))
            for name in ("precision", "recall", "f1")
        }
        accuracy = sum(right.values()) / max(1, len(gold))
        counts = confusion_matrix(gold, told, labels=self.labels).tolist() if gold else []
        return Scores({**macro, "accuracy": accuracy}, rows, Confusion(self.labels, counts) if gold else None)


def relation_of(label: str) -> str:
    """A label without its direction: `Cause-Effect(e1,e2)` → `Cause-Effect`."""
    return _DIRECTION.sub("", label)


def marked_text(example: MarkedText) -> str:
    """The text with its head and tail between plain-text markers, and their types where they are known."""
    marked, end = "", 0
    for role, span in sorted((("head", example.head), ("tail", example.tail)), key=lambda item: item[1].start):
        outer, inner = _MARKERS[role]
        kind = f"{inner} {span.type.lower()} {inner} " if span.type else ""
        marked += f"{example.text[end : span.start]} {outer} {kind}{example.text[span.start : span.end]} {outer} "
        end = span.end
    return " ".join((marked + example.text[end:]).split(" "))


def _f1(right: int, answered: int, asked: int) -> dict[str, float]:
    precision, recall = right / answered if answered else 0.0, right / asked if asked else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "support": asked}


def _nearest_text(example: MarkedText, tokenizer: "PreTrainedTokenizerBase", room: int) -> str:
    """The marked spans with as many words around each as fit into `room` tokens; gaps are told by an ellipsis."""
    words = [match.span() for match in re.finditer(r"\S+", example.text)]
    spans = (example.head, example.tail)

    def distance(word: tuple[int, int]) -> int:
        return min(max(span.start - word[1], word[0] - span.end, 0) for span in spans)

    by_distance = sorted(range(len(words)), key=lambda i: distance(words[i]))
    low, high = 0, len(words)  # the most words, nearest first, that still fit
    while low < high:
        middle = (low + high + 1) // 2
        text = marked_text(_kept(example, words, sorted(by_distance[:middle])))
        if len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) <= room:
            low = middle
        else:
            high = middle - 1
    return marked_text(_kept(example, words, sorted(by_distance[:low])))


def _kept(example: MarkedText, words: Sequence[tuple[int, int]], chosen: Sequence[int]) -> MarkedText:
    """The example with only the chosen words, and always its spans, left of the text."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(chosen), key=lambda pair: pair[1] - pair[0])]
    pieces = [(words[run[0]][0], words[run[-1]][1]) for run in runs]
    pieces = _merged([*pieces, *((span.start, span.end) for span in (example.head, example.tail))])
    text, moved = "", {}
    for start, end in pieces:
        text += GAP if text else ""
        for role, span in (("head", example.head), ("tail", example.tail)):
            if start <= span.start and span.end <= end:
                shift = len(text) - start
                moved[role] = Span(span.start + shift, span.end + shift, span.type)
        text += example.text[start:end]
    return MarkedText(text, head=moved["head"], tail=moved["tail"])


def _merged(pieces: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(pieces):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _from_markup(text: str, where: str) -> MarkedText:
    """`<e1>…</e1>` and `<e2>…</e2>` (or head and tail, each with a type as in `<e1:PER>`) → spans."""
    plain, end = "", 0
    opened: dict[str, tuple[int, str | None]] = {}
    spans: dict[str, Span] = {}
    for mark in _MARK.finditer(text):
        plain += text[end : mark.start()]
        end, role = mark.end(), _ROLES[mark["name"]]
        if not mark["close"] and role not in opened:
            opened[role] = (len(plain), mark["type"])
        elif mark["close"] and role in opened and role not in spans:
            spans[role] = Span(opened[role][0], len(plain), opened[role][1])
        else:
            raise RowError(f"expected <e1>…</e1> and <e2>…</e2> once each, found another {mark[0]}")
    if spans.keys() != {"head", "tail"}:
        raise RowError(
            "expected the two spans marked in the text, as in '<e1>Ada</e1> founded <e2>Solwind</e2>', or columns head "
            f"and tail ({{start, end}}); found {shown(text)}"
        )
    plain += text[end:]
    return _checked(_trimmed(MarkedText(plain, where, head=spans["head"], tail=spans["tail"])))


def _trimmed(example: MarkedText) -> MarkedText:
    """Spans without the blanks that annotators leave inside the marks."""
    text = example.text
    return replace(example, head=_without_blanks(text, example.head), tail=_without_blanks(text, example.tail))


def _without_blanks(text: str, span: Span) -> Span:
    inside = text[span.start : span.end]
    start = span.start + len(inside) - len(inside.lstrip())
    return Span(start, max(start, span.end - len(inside) + len(inside.rstrip())), span.type)


def _from_tokens(row: Row, form: Sequence[str]) -> MarkedText:
    """Tokens, with head and tail as numbers of tokens or by tags."""
    tokens = string_list(row.fields["tokens"], "tokens")
    if not tokens:
        raise RowError("expected tokens to hold some text, found none")
    text, words = join_tokens(tokens)
    if form[1] == "tags":
        spans = _tagged_spans(string_list(row.fields["tags"], "tags"), len(tokens))
    else:
        spans = {role: _span(json_cell(row.fields[role], role), role, len(tokens), "tokens") for role in form[1:]}
    placed = {role: Span(words[span.start][0], words[span.end - 1][1], span.type) for role, span in spans.items()}
    return _checked(MarkedText(text, row.where, head=placed["head"], tail=placed["tail"]))


def _tagged_spans(tags: list[str], tokens: int) -> dict[str, Span]:
    if len(tags) != tokens:
        raise RowError(f"expected as many tags as tokens, found {len(tags)} tags for {tokens} tokens")
    try:
        found = spans_from_tags(tags)
    except ValueError as error:
        raise RowError(str(error)) from None
    spans: dict[str, Span] = {}
    for start, end, name in found:
        role, _, kind = name.partition(":")
        if role.lower() in _ROLES:
            spans.setdefault(_ROLES[role.lower()], Span(start, end, kind or None))
    if spans.keys() != {"head", "tail"} or len(found) != 2:
        raise RowError(
            "expected one head and one tail among the tags (B-head I-head B-tail, with types as in B-head:PER), found "
            f"{', '.join(name for _, _, name in found) or 'none'}"
        )
    return spans


def _span(value: Any, role: str, length: int, unit: str) -> Span:
    match value:
        case {"start": int(start), "end": int(end)} if 0 <= start < end <= length:
            kind = value.get("type")
            if kind is None or (isinstance(kind, str) and kind):
                return Span(start, end, kind)
    raise RowError(
        f"expected {role} as {{start, end, type?}} in {unit} with 0 ≤ start < end ≤ {length}, found {shown(value)}"
    )


def _checked(example: MarkedText) -> MarkedText:
    """Refuse spans that overlap or hold nothing."""
    head, tail = example.head, example.tail
    if head.start < tail.end and tail.start < head.end:
        raise RowError(
            f"expected head and tail apart, but '{example.text[head.start : head.end]}' ({head.start}–{head.end}) "
            f"and '{example.text[tail.start : tail.end]}' ({tail.start}–{tail.end}) overlap"
        )
    for role, span in (("head", head), ("tail", tail)):
        if not example.text[span.start : span.end].strip():
            raise RowError(f"expected {role} to hold some text, found only blanks at {span.start}–{span.end}")
    return example
