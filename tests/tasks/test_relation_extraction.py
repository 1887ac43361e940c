import json
import random
import re
import shutil
import subprocess

import pytest
import torch
from torch.nn import functional

from peftlab.base import BaseFiles
from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector
from peftlab.store import TaskInfo
from peftlab.tasks.inputs.entity_markers import MarkedText, Span, marked_text, marker_offsets
from peftlab.tasks.inputs.text import TextInputs, load_tokenizer
from peftlab.tasks.relation_extraction import RelationExtractionTask, RelationPrediction, relation_of
from tests.architectures import build
from tests.conftest import shared_data


@pytest.fixture(scope="module", params=["bert", "roberta", "deberta-v2"])
def tokenizer(request, tmp_path_factory):
    folder = build(request.param, tmp_path_factory.mktemp(request.param))
    return load_tokenizer(BaseFiles("x", folder, "local folder"))


def read(fields):
    return RelationExtractionTask().read(Row(fields, "f:1"))


def make_example(label):
    return MarkedText("a b", "f:1", head=Span(0, 1), tail=Span(2, 3), label=label)


def make_prediction(label):
    return RelationPrediction("a b", Span(0, 1), Span(2, 3), label, 0.5, False)


def fit_labels(task, **splits):
    errors = ErrorCollector()
    task.fit_labels({split: [make_example(name) for name in names] for split, names in splits.items()}, errors)
    return [str(issue) for issue in errors.issues]


# --- reading rows

ADA = "Ada Okafor founded Solwind in 2019 ."
HEAD, TAIL = {"start": 0, "end": 10, "type": "PER"}, {"start": 19, "end": 26, "type": "ORG"}
TOKENS = ADA.split()


@pytest.mark.parametrize(
    "fields",
    [
        {"text": ADA, "head": HEAD, "tail": TAIL},
        {"text": ADA, "head": json.dumps(HEAD), "tail": json.dumps(TAIL)},
        {"text": "<e1:PER>Ada Okafor</e1> founded <e2:ORG>Solwind</e2> in 2019 ."},
        {"text": "<head:PER>Ada Okafor</head> founded <tail:ORG> Solwind </tail>in 2019 ."},
        {
            "tokens": TOKENS,
            "head": {"start": 0, "end": 2, "type": "PER"},
            "tail": {"start": 3, "end": 4, "type": "ORG"},
        },
        {"tokens": TOKENS, "tags": ["B-head:PER", "I-head:PER", "O", "B-tail:ORG", "O", "O", "O"]},
        {"tokens": ADA, "tags": "B-e1:PER I-e1:PER O B-e2:ORG O O O"},
    ],
    ids=["spans", "json", "e1", "head", "tokens", "tags", "tag-cells"],
)
def test_row_formats_return_same_example(fields):
    example = read({**fields, "label": " founded_by(e2,e1) ", "id": 3})
    assert re.sub(" +", " ", example.text) == ADA
    ends = [(example.text[span.start : span.end], span.type) for span in (example.head, example.tail)]
    assert ends == [("Ada Okafor", "PER"), ("Solwind", "ORG")]
    assert (example.label, example.where) == ("founded_by(e2,e1)", "f:1")


def test_types_are_optional_and_order_is_free():
    example = read({"text": "<e2>Solwind</e2> was founded by <e1>Ada</e1>", "label": "founded"})
    assert (example.head, example.tail) == (Span(23, 26), Span(0, 7))


def test_markers_are_text_if_spans_are_given():
    fields = {"text": "a <e1> b", "head": {"start": 0, "end": 1}, "tail": {"start": 7, "end": 8}, "label": "x"}
    assert read(fields).text == "a <e1> b"


ONCE = "expected <e1>…</e1> and <e2>…</e2> once each, found another "
SPANS = {"head": {"start": 0, "end": 1}, "tail": {"start": 2, "end": 3}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "a b", **SPANS}, "expected columns text and head and tail and label, or tokens and head"),
        ({"text": "a b", "label": "x"}, "expected columns text and head and tail and label, or tokens"),
        ({"text": "<e1>a</e1>"}, "expected columns text and label; found text."),
        ({"text": "a b", "label": 3, **SPANS}, "expected label to be the name of a relation, found 3"),
        ({"text": "a b", "label": " ", **SPANS}, "expected label to be the name of a relation, found ' '"),
        ({"text": 3, "label": "x", **SPANS}, "expected text to be a string, found 3"),
        ({"text": "", "label": "x", **SPANS}, "expected text to hold some text, found ''"),
        *(
            (
                {"text": "a b", "label": "x", **SPANS, "tail": tail},
                "expected tail as {start, end, type?} in characters with 0 ≤ start < end ≤ 3, found ",
            )
            for tail in (None, 3, [2, 3], {"start": 2}, {"start": 2, "end": 4}, {"start": 2, "end": 2},
                         {"start": "2", "end": 3}, {"start": 2, "end": 3, "type": 5}, {"start": -1, "end": 3})
        ),
        ({"text": "a b", "label": "x", **SPANS, "head": "{"}, "expected head as JSON; "),
        (
            {"text": "a b c", "label": "x", "head": {"start": 0, "end": 3}, "tail": {"start": 2, "end": 5}},
            "expected head and tail apart, but 'a b' (0–3) and 'b c' (2–5) overlap",
        ),
        ({"text": "a   b", "label": "x", **SPANS}, "expected tail to hold some text, found only blanks at 2–3"),
        ({"text": "<e1>a</e1> b", "label": "x"}, "expected the two spans marked in the text, as in '<e1>Ada</e1> "),
        ({"text": "<e1>a</e1> <e1>b</e1>", "label": "x"}, f"{ONCE}<e1>"),
        ({"text": "a</e1> <e2>b</e2>", "label": "x"}, f"{ONCE}</e1>"),
        ({"text": "<e1>a <e2>b</e2></e1>", "label": "x"}, "expected head and tail apart, but 'a b' (0–3) and "),
        ({"text": "<e1> </e1> <e2>b</e2>", "label": "x"}, "expected head to hold some text, found only blanks"),
        ({"tokens": [], "label": "x", **SPANS}, "expected tokens to hold some text, found none"),
        ({"tokens": [1], "label": "x", **SPANS}, "expected tokens to be a list of strings, found [1]"),
        (
            {"tokens": ["a", "b"], "label": "x", **SPANS},
            "expected tail as {start, end, type?} in tokens with 0 ≤ start < end ≤ 2, found {'start': 2, 'end': 3}",
        ),
        ({"tokens": ["a"], "tags": ["O", "O"], "label": "x"}, "expected as many tags as tokens, found 2 tags for 1"),
        (
            {"tokens": ["a", "b"], "tags": ["B-head", "B-head"], "label": "x"},
            "expected one head and one tail among the tags (B-head I-head B-tail, with types as in B-head:PER), "
            "found head, head",
        ),
        ({"tokens": ["a"], "tags": ["head"], "label": "x"}, "word 1: expected a tag such as O, B-PER or I-PER, found"),
    ],
)  # fmt: skip
def test_invalid_row_raises_row_error(fields, message):
    with pytest.raises(RowError) as caught:
        read(fields)
    assert str(caught.value).startswith(message[:110])


def test_input_requires_spans_not_label():
    task = RelationExtractionTask()
    for fields in ({"text": "a b", **SPANS}, {"text": "<e1>a</e1> <e2>b</e2>"}, {"tokens": "a b", "tags": "B-e1 B-e2"}):
        question = task.read_input(Row(fields, "f:1"))
        assert (question.text, question.head.start, question.tail.start, question.label) == ("a b", 0, 2, None)
    with pytest.raises(RowError, match="expected the two spans marked in the text"):
        task.read_input(Row({"text": "a b"}, "f:1"))
    with pytest.raises(RowError, match="expected columns text and head and tail, or tokens and"):
        task.read_input(Row({"sentence": "a b"}, "f:1"))


# --- labels


def test_negative_label_is_inferred_from_name():
    for negative in ("Other", "no_relation", "NA", "none"):
        task = RelationExtractionTask()
        assert fit_labels(task, train=["b", negative, "a", "b"], validation=["a"]) == []
        assert (task.labels, task.negative_label) == (sorted(["a", "b", negative]), negative)
    task = RelationExtractionTask(negative_label="b")
    fit_labels(task, train=["b", "Other"])
    assert task.negative_label == "b"
    task = RelationExtractionTask()
    fit_labels(task, train=["b", "c"])
    assert task.negative_label is None


def test_invalid_labels_are_errors():
    assert fit_labels(RelationExtractionTask(), train=["a"]) == [
        "data.train: the training rows hold 1 relation(s); nothing to tell apart."
    ]
    [issue] = fit_labels(RelationExtractionTask(negative_label="othr"), train=["Other", "a"])
    assert issue.startswith("task.negative_label: no training row has the label 'othr'. Did you mean 'Other'?")
    [issue] = fit_labels(RelationExtractionTask(), train=["Other", "a"], validation=["b"])
    assert "label 'b' occurs in validation (1×, first at f:1) but not in the training rows." in issue
    assert fit_labels(RelationExtractionTask(), train=[]) == []


def test_task_info_build_returns_same_task():
    task = RelationExtractionTask()
    fit_labels(task, train=["Other", "a(e1,e2)"])
    again = TaskInfo.from_task(task).build()
    assert (again.labels, again.negative_label) == (["Other", "a(e1,e2)"], "Other")


@pytest.mark.parametrize(
    ("label", "relation", "backward"),
    [
        ("Cause-Effect(e1,e2)", "Cause-Effect", False),
        ("Cause-Effect(e2,e1)", "Cause-Effect", True),
        ("made(head, tail)", "made", False),
        ("made(tail, head)", "made", True),
        ("Other", "Other", False),
        ("part(s)", "part(s)", False),
    ],
)
def test_label_direction_is_parsed(label, relation, backward):
    assert relation_of(label) == relation
    task = RelationExtractionTask(labels=["x", label])
    answer = task.decode(make_example("x"), [None], [torch.tensor([0.0, 1.0])])
    assert (answer.label, answer.backward) == (label, backward)
    assert answer.score == pytest.approx(0.7311, abs=1e-4)


# --- markers


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("<e1>Ada</e1> founded <e2>Solwind</e2>", "@ Ada @ founded # Solwind #"),
        ("<e2>Solwind</e2> was made by <e1>Ada</e1> .", "# Solwind # was made by @ Ada @ ."),
        ("<e1:Person>Ada</e1> founded <e2:FIRM>Solwind</e2>", "@ * person * Ada @ founded # ^ firm ^ Solwind #"),
        ("By <e1:PER>Ada</e1>, <e2>Rome</e2>.", "By @ * per * Ada @ , # Rome # ."),
        ("<e1>我</e1>爱<e2:LOC>北京</e2>。", "@ 我 @ 爱 # ^ loc ^ 北京 # 。"),
        ("<e1>Ada</e1><e2>Rome</e2>", "@ Ada @ # Rome #"),
    ],
)
def test_entity_markers_in_text(text, marked):
    assert marked_text(read({"text": text, "label": "x"})).strip() == marked


def decode_text(tokenizer, feature):
    text = tokenizer.decode(feature.inputs["input_ids"], skip_special_tokens=True)
    return " ".join(text.replace(" ##", "").split())


def test_short_text_is_not_truncated(tokenizer):
    task = RelationExtractionTask(labels=["a", "b"])
    example = read({"text": "<e1>ada</e1> wrote to <e2>rome</e2> late", "label": "b"})
    [feature] = task.encode([example], TextInputs(tokenizer), 64, training=True)[0]
    assert feature.inputs["input_ids"] == tokenizer(marked_text(example))["input_ids"]
    assert (feature.labels, feature.truncated) == (1, False)


def markers_at_positions(tokenizer, feature):
    return tokenizer.convert_ids_to_tokens([feature.inputs["input_ids"][token] for token, _ in feature.positions])


@pytest.mark.parametrize(
    "text",
    [
        "<e1>ada</e1> wrote to <e2>rome</e2> late",
        "  in   <e2:LOC>rome</e2>   it rained @ noon # 1 , wrote <e1:PER>ada</e1> .",
        "<e2>b</e2><e1>a</e1>",
        "a@b.c #1 <e1>@</e1> <e2>#</e2>",
    ],
)
def test_positions_are_the_first_markers_of_head_and_tail(tokenizer, text):
    task, example = RelationExtractionTask(labels=["a", "b"]), read({"text": text, "label": "b"})
    marked, offsets = marked_text(example), marker_offsets(example)
    assert [marked[offset] for offset in offsets] == ["@", "#"]
    kinds = [f"* {span.type.lower()} * " if span.type else "" for span in (example.head, example.tail)]
    kinds[1] = kinds[1].replace("*", "^")
    assert marked[offsets[0] :].startswith(f"@ {kinds[0]}{example.text[example.head.start : example.head.end]} @")
    assert marked[offsets[1] :].startswith(f"# {kinds[1]}{example.text[example.tail.start : example.tail.end]} #")
    [feature] = task.encode([example], TextInputs(tokenizer), 64, training=True)[0]
    assert markers_at_positions(tokenizer, feature) == ["@", "#"]
    assert [number for _, number in feature.positions] == [0, 1]


def test_marker_that_is_cut_off_is_read_at_the_last_token(tokenizer):
    task = RelationExtractionTask(labels=["a", "b"])
    example = read({"text": f"<e1>{'ada ' * 30}</e1> left <e2>rome</e2> .", "label": "b"})
    [feature] = task.encode([example], TextInputs(tokenizer), 16, training=True)[0]
    assert feature.truncated
    assert markers_at_positions(tokenizer, feature)[0] == "@"
    assert feature.positions[1] == (14, 1)  # before [SEP]


@pytest.mark.parametrize("reverse_order", [False, True])
def test_truncated_text_includes_spans_and_neighbors(tokenizer, reverse_order):
    task = RelationExtractionTask(labels=["a", "b"])
    for seed in range(30):
        rng = random.Random(seed)
        words = rng.choices(["letter", "train", "late", "rain"], k=90)
        first, second = sorted(rng.sample(range(90), 2))
        words[first], words[second] = "rome", "paris"
        fields = [{"start": n, "end": n + 1} for n in (first, second)]
        head, tail = reversed(fields) if reverse_order else fields
        example = read({"tokens": words, "head": head, "tail": tail, "label": "a"})
        for max_length in (32, 48):
            for training in (True, False):
                [feature] = task.encode([example], TextInputs(tokenizer), max_length, training=training)[0]
                assert len(feature) <= max_length
                assert feature.truncated
                assert markers_at_positions(tokenizer, feature) == ["@", "#"]
                kept = decode_text(tokenizer, feature)
                for sign, span in (("@", example.head), ("#", example.tail)):
                    assert f"{sign} {example.text[span.start : span.end]} {sign}" in kept
                pieces = [piece.replace("@", "").replace("#", "").split() for piece in kept.split("…")]
                outside = [word for piece in pieces for word in piece if word in words]
                near = {n for n in range(90) if min(abs(n - first), abs(n - second)) <= 1}
                assert len(outside) >= min(len(near), 3)
                assert len(feature) > max_length - 12  # no more room for another word and its gap


def test_truncated_text_without_spaces_includes_neighbors(tokenizer):
    text = "小猫在哪里" * 30 + "<e1>我</e1>爱<e2>北京</e2>" + "小猫在哪里" * 30
    example = read({"text": text, "label": "a"})
    [feature] = RelationExtractionTask(labels=["a", "b"]).encode([example], TextInputs(tokenizer), 48, training=True)[0]
    kept = decode_text(tokenizer, feature).replace(" ", "")
    assert feature.truncated
    assert "@我@爱#北京#" in kept
    assert "里@" in kept


def test_loss_matches_torch_cross_entropy():
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(9) % 4
    assert RelationExtractionTask().head.loss(logits, labels) == functional.cross_entropy(logits, labels)


def test_prediction_as_dict():
    plain = RelationPrediction("Ada left Rome", Span(0, 3, "PER"), Span(9, 13), "left(e1,e2)", 0.98765, False).as_dict()
    assert (
        json.loads(json.dumps(plain))
        == plain
        == {
            "text": "Ada left Rome",
            "head": {"start": 0, "end": 3, "type": "PER", "text": "Ada"},
            "tail": {"start": 9, "end": 13, "type": None, "text": "Rome"},
            "label": "left(e1,e2)",
            "backward": False,
            "score": 0.9877,
        }
    )


# --- scores

NAMES = ["Cause-Effect", "Component-Whole", "Content-Container", "Entity-Destination", "Entity-Origin"]
NAMES += ["Instrument-Agency", "Member-Collection", "Message-Topic", "Product-Producer"]
LABELS = [*(f"{name}({ends})" for name in NAMES for ends in ("e1,e2", "e2,e1")), "Other"]
_ROW = re.compile(r"^ *(\S+) :    P = .*= +([\d.]+)%     R = .*= +([\d.]+)%     F1 = +([\d.]+)%$", re.MULTILINE)
_MACRO = re.compile(r"^P = +([\d.]+)%\tR = +([\d.]+)%\tF1 = +([\d.]+)%$", re.MULTILINE)


@pytest.fixture(scope="module")
def run_scorer():
    """(gold, predicted) → what the organizers' script prints for (9+1)-way with directionality, in percent."""
    script = shared_data("re_semeval2010_task8", "eval", "semeval2010_task8_scorer-v1.2.pl")
    perl = shutil.which("perl")
    if perl is None:
        pytest.skip("the official scorer needs perl, which is not here")

    def run(gold, predicted, folder):
        for name, labels in (("key", gold), ("proposed", predicted)):
            lines = [f"{number}\t{label}\n" for number, label in enumerate(labels)]
            (folder / name).write_text("".join(lines), encoding="utf8")
        done = subprocess.run(
            [perl, script, folder / "proposed", folder / "key"], capture_output=True, text=True, check=True
        )
        official = done.stdout.partition("TAKING DIRECTIONALITY INTO ACCOUNT")[2]
        rows = {name.removeprefix("_"): tuple(map(float, row)) for name, *row in _ROW.findall(official)}
        [macro] = _MACRO.findall(official)
        return tuple(map(float, macro)), rows

    return run


def random_answers(rng, gold, quality, choices):
    """Gold labels kept by `quality`, some with the direction turned round, the rest drawn from the usable ones."""
    answers = []
    for label in gold:
        roll = rng.random()
        turned = label.translate(str.maketrans("12", "21"))
        answers.append(label if roll < quality else turned if roll < quality + 0.1 else rng.choice(choices))
    return answers


@pytest.mark.parametrize("quality", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["all-labels", "some-never-predicted", "only-other", "small-key"])
def test_scores_match_semeval_scorer(run_scorer, tmp_path, quality, kind):
    for seed in range(4):
        rng = random.Random(f"{seed}-{quality}-{kind}")
        weights = [rng.random() ** 2 for _ in LABELS]
        gold = [*LABELS, *rng.choices(LABELS, weights, k=300)] if kind != "small-key" else rng.choices(LABELS[4:], k=12)
        choices = {"some-never-predicted": rng.sample(LABELS, 7), "only-other": ["Other"]}.get(kind, LABELS)
        answers = random_answers(rng, gold, quality if kind != "some-never-predicted" else 0.0, choices)
        task = RelationExtractionTask()
        fit_labels(task, train=LABELS)
        scores = task.score([make_example(label) for label in gold], [make_prediction(label) for label in answers])
        macro, rows = run_scorer(gold, answers, tmp_path)
        for name, expected in (("precision", macro[0]), ("recall", macro[1]), ("f1", macro[2])):
            assert round(100 * scores.values[name], 6) == pytest.approx(expected, abs=0.005001)
        assert scores.by_label.keys() == rows.keys()
        for name, (precision, recall, f1) in rows.items():
            values = scores.by_label[name]
            assert 100 * values["precision"] == pytest.approx(precision, abs=0.005001)
            assert 100 * values["recall"] == pytest.approx(recall, abs=0.005001)
            assert 100 * values["f1"] == pytest.approx(f1, abs=0.005001)
            assert values["support"] == sum(relation_of(label) == name for label in gold)
        assert scores.values["accuracy"] == sum(a == b for a, b in zip(gold, answers, strict=True)) / len(gold)
        assert sum(map(sum, scores.confusion.counts)) == len(gold)
        assert scores.confusion.labels == task.labels


def test_scores_match_semeval_scorer_on_real_data(run_scorer, tmp_path):
    key = shared_data("re_semeval2010_task8", "eval", "answer_keys.txt").read_text().split("\n")
    gold = [line.split("\t")[1].strip() for line in key if line.strip()]
    answers = random_answers(random.Random(0), gold, 0.7, LABELS)
    task = RelationExtractionTask()
    fit_labels(task, train=LABELS)
    scores = task.score([make_example(label) for label in gold], [make_prediction(label) for label in answers]).values
    macro, _ = run_scorer(gold, answers, tmp_path)
    assert [100 * scores[name] for name in ("precision", "recall", "f1")] == pytest.approx(macro, abs=0.005001)


def test_empty_input_scores_zero():
    assert RelationExtractionTask(labels=["a", "b"]).score([], []).as_dict() == {
        "precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": 0.0, "by_label": {}
    }  # fmt: skip
