import collections
import itertools
import math
import random
import re
import string

import pytest
import torch
from torch.nn import functional

from peftlab.base import BaseFiles
from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector
from peftlab.store import TaskInfo
from peftlab.tasks.inputs.text import TextInputs, load_tokenizer
from peftlab.tasks.question_answering import AnswerPrediction, Question, QuestionAnsweringTask
from tests.architectures import build


@pytest.fixture(scope="module")
def bert(tiny_base):
    return load_tokenizer(BaseFiles("x", tiny_base, "local folder"))


@pytest.fixture(scope="module", params=["roberta", "deberta-v2", "modernbert"])
def other(request, tmp_path_factory):
    folder = build(request.param, tmp_path_factory.mktemp(request.param))
    return load_tokenizer(BaseFiles("x", folder, "local folder"))


def read(fields):
    return QuestionAnsweringTask().read(Row(fields, "f:1"))


def make_question(context, *answers, question="who ?"):
    return Question(context, "f:1", question=question, answers=answers)


def fit_labels(task, *examples):
    errors = ErrorCollector()
    task.fit_labels({"train": examples}, errors)
    return [str(issue) for issue in errors.issues]


# --- reading rows

CONTEXT = "Rome is not Paris, and Rome is old."


@pytest.mark.parametrize(
    ("fields", "answers"),
    [
        ({"answers": {"text": ["Rome", "Paris"], "answer_start": [23, 12]}}, ((23, 27), (12, 17))),
        ({"answers": [{"text": "Paris", "answer_start": 12}] * 2}, ((12, 17),)),
        ({"answers": '{"text": ["Rome"], "answer_start": [0]}'}, ((0, 4),)),
        ({"answers": '[{"text": "Rome", "answer_start": 23}]'}, ((23, 27),)),
        ({"answers": {"text": [], "answer_start": []}}, ()),
        ({"answers": []}, ()),
        ({"answers": "[]", "is_impossible": True}, ()),
        ({"answer": "Paris"}, ((12, 17),)),
        ({"answer": "Rome", "answer_start": 23}, ((23, 27),)),
        ({"answer": "Rome", "answer_start": " 23 "}, ((23, 27),)),
        ({"answer": "Rome", "answer_start": "0"}, ((0, 4),)),
        ({"answer": "Rome", "answer_start": 0}, ((0, 4),)),
        ({"answer": "Paris", "answer_start": ""}, ((12, 17),)),
        ({"answer": "", "answer_start": ""}, ()),
        ({"answer": None}, ()),
    ],
)
def test_answer_formats_are_parsed_to_spans(fields, answers):
    example = read({"question": "which ?", "context": CONTEXT, "id": 7, **fields})
    assert (example.question, example.text, example.where) == ("which ?", CONTEXT, "f:1")
    assert example.answers == answers
    assert example.answer_texts == [CONTEXT[start:end] for start, end in answers]


ANSWERS = "expected answers as a list of {text, answer_start}, found "


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"passage": "a", "answers": []}, "expected columns question and context and answers, or question and context"),
        ({"context": None, "answers": []}, "expected context to be a string, found None"),
        ({"context": " ", "answers": []}, "expected context to hold some text, found ' '"),
        ({"question": 3, "context": "a", "answers": []}, "expected question to be a string, found 3"),
        ({"question": "", "context": "a", "answers": []}, "expected question to hold some text, found ''"),
        ({"context": "a", "answers": None}, f"{ANSWERS}None"),
        ({"context": "a", "answers": ["a"]}, f"{ANSWERS}['a']"),
        ({"context": "a", "answers": {"text": ["a"], "answer_start": []}}, f"{ANSWERS}{{'text': ['a'], 'answer_start'"),
        ({"context": "a", "answers": "[{"}, "expected answers as JSON; "),
        ({"context": "a", "answer": 3}, "expected an answer to hold some text, found 3"),
        ({"context": "a", "answer": " "}, "expected an answer to hold some text, found ' '"),
        ({"context": "abc", "answer": "d"}, "expected answer_start, the place of 'd' in the context; it does"),
        ({"context": "a b a", "answer": "a"}, "expected answer_start, the place of 'a' in the context; it occurs"),
        (
            {"context": "a b a", "answer": "a", "answer_start": 9},
            "expected 'a' at character 9 of the context (0 to 5); it occurs at 0, 4",
        ),
        (
            {"context": "a b a", "answers": [{"text": "c", "answer_start": 2}]},
            "expected 'c' at character 2 of the context (0 to 5); it does not occur there",
        ),
        ({"context": "a b a", "answers": [{"text": "a", "answer_start": "four"}]}, "expected 'a' at character 'four'"),
    ],
)  # fmt: skip
def test_invalid_row_raises_row_error(fields, message):
    with pytest.raises(RowError) as caught:
        read({"question": "which ?", **fields})
    assert str(caught.value).startswith(message)


def test_input_requires_context_not_answer():
    task = QuestionAnsweringTask()
    question = task.read_input(Row({"question": "", "context": "a"}, "f:1"))
    assert (question.question, question.text, question.answers) == ("", "a", ())
    with pytest.raises(RowError, match="expected columns question and context; found question"):
        task.read_input(Row({"question": "a"}, "f:1"))


# --- windows


def random_context(rng, words=60):
    return " ".join(rng.choices(["letter", "train", "London", "came", "rain,", "Ada.", "x"], k=words))


def context_tokens(window):
    return [n for n, span in enumerate(window.offsets) if span]


@pytest.mark.parametrize("max_length", [8, 16, 33, 64])
@pytest.mark.parametrize("doc_stride", [1, 5, 12, 128])
def test_windows_overlap_by_doc_stride(bert, max_length, doc_stride):
    for seed in range(8):
        rng = random.Random(seed)
        example = make_question(random_context(rng), question=" ".join(["who"] * rng.randrange(1, 12)))
        windows = QuestionAnsweringTask(doc_stride=doc_stride).encode(
            [example], TextInputs(bert), max_length, training=False
        )[0]
        assert all(len(window) <= max_length for window in windows)
        spans = [[window.offsets[n] for n in context_tokens(window)] for window in windows]
        covered = {place for window in spans for start, end in window for place in range(start, end)}
        assert covered == {place for place, letter in enumerate(example.text) if letter != " "}
        room = len(windows[0]) - windows[0].offsets.index(spans[0][0]) - 1
        shared = min(doc_stride, (max_length - 3 - (len(windows[0]) - room - 3)) // 2)
        for one, after in itertools.pairwise(spans):
            assert len(set(one) & set(after)) == shared


def test_long_question_is_truncated(bert):
    example = make_question("ada came to london", (0, 3), question="letter " * 50)
    windows = QuestionAnsweringTask(doc_stride=2).encode([example], TextInputs(bert), 19, training=True)[0]
    for window in windows:
        assert window.truncated
        assert window.inputs["input_ids"].index(bert.sep_token_id) == 1 + 8
    [short] = QuestionAnsweringTask().encode(
        [make_question("ada came", question="letter " * 8)], TextInputs(bert), 40, training=True
    )[0]
    assert not short.truncated


@pytest.mark.parametrize("question", ["👩‍🚀👋🏽 🇫🇷", "ꙮꙮ", "哪里哪里", "who wrote the letter"])
def test_every_window_includes_context(other, question):
    for max_length in (8, 9, 12):
        windows = QuestionAnsweringTask(doc_stride=4).encode(
            [make_question("Ada came to London", question=question)], TextInputs(other), max_length, training=False
        )[0]
        assert all(len(window) <= max_length for window in windows)
        covered = {place for w in windows for n in context_tokens(w) for place in range(*w.offsets[n])}
        assert covered >= {place for place, letter in enumerate("Ada came to London") if letter != " "}


def test_labels_are_set_in_windows_with_full_answer(bert):
    found = 0
    for seed in range(60):
        rng = random.Random(seed)
        text = random_context(rng)
        words = [match.span() for match in re.finditer(r"\S+", text)]
        first = rng.randrange(len(words) - 3)
        answer = (words[first][0], words[first + rng.randrange(3)][1])
        task = QuestionAnsweringTask(doc_stride=6)
        example = make_question(text, answer)
        windows = task.encode([example], TextInputs(bert), 24, training=True)[0]
        for window in windows:
            inside = [window.offsets[n] for n in context_tokens(window)]
            if inside[0][0] <= answer[0] and inside[-1][1] >= answer[1]:
                start, end = window.labels
                assert (window.offsets[start][0], window.offsets[end][1]) == answer
                found += 1
            else:
                assert window.labels == (window.null, window.null) == (0, 0)
        assert task.count(example) == 1
        assert task.lost(example, windows) == all(window.labels == (0, 0) for window in windows)
    assert found > 60


def test_answer_over_window_length_is_lost(bert):
    task, example = QuestionAnsweringTask(), make_question("rain " * 40, (0, 199))
    assert task.lost(example, task.encode([example], TextInputs(bert), 16, training=True)[0]) == 1
    nothing = make_question("rain " * 40)
    assert (
        task.lost(nothing, task.encode([nothing], TextInputs(bert), 16, training=True)[0]),
        task.count(nothing),
    ) == (
        0,
        0,
    )


@pytest.mark.parametrize("answer", [" ada ", " london "])
def test_answer_whitespace_is_ignored(bert, answer):
    example = read({"question": "who ?", "context": " ada in london ", "answer": answer})
    [window] = QuestionAnsweringTask().encode([example], TextInputs(bert), 64, training=True)[0]
    start, end = window.labels
    assert example.text[window.offsets[start][0] : window.offsets[end][1]] == answer.strip()


def test_whitespace_token_has_no_offsets(other):
    text = "Ada came to   London"
    [window] = QuestionAnsweringTask().encode([make_question(text)], TextInputs(other), 64, training=False)[0]
    assert all(text[slice(*span)].strip() == text[slice(*span)] != "" for span in window.offsets if span)


def test_answer_excludes_leading_space_of_token(other):
    text = "Ada came to London , then to Paris"
    task = QuestionAnsweringTask()
    for word in re.finditer(r"\w+", text):
        [window] = task.encode(
            [make_question(text, word.span(), question="who")], TextInputs(other), 64, training=False
        )[0]
        output = torch.zeros(len(window), 2)
        output[window.labels, [0, 1]] = 20.0
        told = task.decode(make_question(text), [window], [output])
        assert (told.start, told.end, told.answer) == (*word.span(), word[0])


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_shift_with_padding_side(bert, side):
    task = QuestionAnsweringTask()
    windows = [
        task.encode([make_question(text, (0, 3))], TextInputs(bert), 64, training=True)[0][0]
        for text in ("ada", "ada came to london late")
    ]
    bert.padding_side = side
    try:
        batch = task.head.collate(windows, TextInputs(bert))
    finally:
        bert.padding_side = "right"
    for row, window in enumerate(windows):
        start, end = batch["labels"][row].tolist()
        told = batch["input_ids"][row, start : end + 1].tolist()
        assert told == window.inputs["input_ids"][window.labels[0] : window.labels[1] + 1]


def test_loss_is_mean_of_start_and_end_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 11, 2, generator=generator)
    labels = torch.randint(11, (6, 2), generator=generator)
    start, end = (functional.cross_entropy(logits[:, :, n], labels[:, n]) for n in (0, 1))
    assert torch.allclose(QuestionAnsweringTask().head.loss(logits, labels), (start + end) / 2)


# --- decode


@pytest.mark.parametrize("max_answer_length", [1, 4, 30])
def test_best_span_matches_full_search(bert, max_answer_length):
    for seed in range(60):
        rng = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        task = QuestionAnsweringTask(doc_stride=rng.randrange(1, 9), max_answer_length=max_answer_length)
        example = make_question(random_context(rng, rng.randrange(1, 40)))
        windows = task.encode([example], TextInputs(bert), rng.choice([12, 20, 40]), training=False)[0]
        outputs = [torch.randn(len(window), 2, generator=generator) for window in windows]
        spans = [
            (float(output[i, 0] + output[j, 1]), window.offsets[i][0], window.offsets[j][1])
            for window, output in zip(windows, outputs, strict=True)
            for i in context_tokens(window)
            for j in context_tokens(window)
            if i <= j < i + max_answer_length
        ]
        best, start, end = max(spans)
        null = min(float(output[0].sum()) for output in outputs)
        told = task.decode(example, windows, outputs)
        assert (told.start, told.end) == (start, end)
        assert told.gap == pytest.approx(null - best, abs=1e-5)
        assert told.score == pytest.approx(1 / (1 + math.exp(null - best)), abs=1e-5)
        assert told.given == (told.gap <= 0)


def test_prediction_as_dict_with_and_without_answer():
    answer = AnswerPrediction("Ada came", "who ?", 0, 3, 0.9, -2.0, True)
    asked_for = {"question": "who ?", "context": "Ada came"}
    assert answer.as_dict() == {**asked_for, "answer": "Ada", "start": 0, "end": 3, "score": 0.9}
    none = AnswerPrediction("Ada came", "who ?", 0, 3, 0.25, 1.1, False)
    assert (none.answer, none.as_dict()) == ("", {**asked_for, "answer": None, "score": 0.75})


# --- the official definition, as in SQuAD's evaluate-v2.0.py


def normalize_answer(s):
    def remove_articles(text):
        return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)

    def remove_punc(text):
        return "".join(ch for ch in text if ch not in set(string.punctuation))

    return " ".join(remove_articles(remove_punc(s.lower())).split())


def get_tokens(s):
    return normalize_answer(s).split() if s else []


def compute_exact(a_gold, a_pred):
    return int(normalize_answer(a_gold) == normalize_answer(a_pred))


def compute_f1(a_gold, a_pred):
    gold_toks, pred_toks = get_tokens(a_gold), get_tokens(a_pred)
    num_same = sum((collections.Counter(gold_toks) & collections.Counter(pred_toks)).values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision, recall = num_same / len(pred_toks), num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def squad_scores(gold_spans, answer):
    gold_answers = [gold for gold in gold_spans if normalize_answer(gold)] or [""]
    return tuple(max(compute(gold, answer) for gold in gold_answers) for compute in (compute_exact, compute_f1))


def find_best_f1(examples, predictions):
    """`find_best_thresh`: best F1 when the likeliest of the predictions are given and the rest left empty."""
    cur = sum(not example.answers for example in examples)
    best = cur
    for prediction, example in sorted(zip(predictions, examples, strict=True), key=lambda pair: pair[0].gap):
        words = prediction.text[prediction.start : prediction.end]
        cur += squad_scores(example.answer_texts, words)[1] if example.answers else -bool(words)
        best = max(best, cur)
    return best / len(examples)


WORDS = ["the", "a", "An", "The", "cat", "Cat", "cat,", "mat.", "x-ray", "…", "—", "(and", "dog)", "7,5"]


def random_case(rng, words, rows):
    """Questions with up to three answers, and predictions that are often near them."""
    examples, predictions = [], []
    for _ in range(rows):
        text = " ".join(rng.choices(words, k=12))
        places = [match.span() for match in re.finditer(r"\S+", text)]

        def span(places=places):
            first = rng.randrange(len(places))
            return places[first][0], places[min(len(places) - 1, first + rng.randrange(3))][1]

        gold_spans = tuple(span() for _ in range(rng.choice([0, 1, 1, 3])))
        start, end = rng.choice(gold_spans) if gold_spans and rng.random() < 0.5 else span()
        examples.append(make_question(text, *gold_spans))
        predictions.append(AnswerPrediction(text, "who ?", start, end, 0.5, rng.gauss(0, 3), rng.random() < 0.7))
    return examples, predictions


def test_scores_match_squad_script():
    for seed in range(100):
        examples, predictions = random_case(random.Random(seed), WORDS, 20)
        rows = [
            (bool(example.answers), *squad_scores(example.answer_texts, told.answer))
            for example, told in zip(examples, predictions, strict=True)
        ]
        scores = QuestionAnsweringTask().score(examples, predictions)
        kinds = {"answerable": [r for r in rows if r[0]], "unanswerable": [r for r in rows if not r[0]]}
        for values, found in [(scores.values, rows), *((scores.by_label.get(k), v) for k, v in kinds.items() if v)]:
            assert values["exact"] == pytest.approx(sum(row[1] for row in found) / len(found), abs=1e-9)
            assert values["f1"] == pytest.approx(sum(row[2] for row in found) / len(found), abs=1e-9)
        assert {kind: values["support"] for kind, values in scores.by_label.items()} == {
            kind: len(found) for kind, found in kinds.items() if found
        }


def test_answer_of_only_articles_is_ignored():
    example = make_question("the cat", (0, 3), (4, 7))
    nothing = AnswerPrediction("the cat", "who ?", 0, 0, 0.0, 9.0, False)
    assert QuestionAnsweringTask().score([example], [nothing]).values == {"exact": 0.0, "f1": 0.0}


def test_empty_input_scores_zero():
    assert QuestionAnsweringTask().score([], []).values == {"exact": 0.0, "f1": 0.0}


# --- the threshold


def test_calibration_matches_squad_best_f1():
    for seed in range(150):
        rng = random.Random(seed)
        examples, predictions = random_case(rng, ["cat", "dog", "rain", "London", "came", "late"], rng.randrange(1, 30))
        if all(example.answers for example in examples):
            continue
        task = QuestionAnsweringTask()
        fit_labels(task, *examples)
        told = task.metric.calibrate(examples, predictions)
        assert task.score(examples, told).values["f1"] == pytest.approx(find_best_f1(examples, predictions), abs=1e-9)
        restored = TaskInfo.from_task(task).build()
        assert [restored._with_decision(answer) for answer in predictions] == list(told)


def test_tied_predictions_share_decision():
    for seed in range(150):
        rng = random.Random(seed)
        examples, predictions = random_case(rng, ["cat", "dog", "rain"], 12)
        gaps = [rng.randrange(3) for _ in predictions]
        tied = [
            AnswerPrediction(p.text, "", p.start, p.end, 0.5, gap, True)
            for p, gap in zip(predictions, gaps, strict=True)
        ]
        task = QuestionAnsweringTask()
        best = 0.0
        for threshold in (-1, 0, 1, 2):
            task.state = {"null_threshold": threshold}
            best = max(best, task.score(examples, [task._with_decision(answer) for answer in tied]).values["f1"])
        task.state = {"null_threshold": 0.0}
        if all(example.answers for example in examples):
            continue
        assert task.score(examples, task.metric.calibrate(examples, tied)).values["f1"] == pytest.approx(best)


def test_threshold_is_finite_for_empty_context(bert):
    task = QuestionAnsweringTask()
    examples = [make_question("\u200b"), make_question("Ada came", (0, 3))]
    features = [task.encode([example], TextInputs(bert), 16, training=False)[0] for example in examples]
    outputs = [[torch.zeros(len(window), 2) for window in windows] for windows in features]
    outputs[1][0][features[1][0].labels, [0, 1]] = 9.0
    predictions = [task.decode(*case) for case in zip(examples, features, outputs, strict=True)]
    assert [told.answer for told in task.metric.calibrate(examples, predictions)] == ["", "Ada"]
    assert math.isfinite(task.state["null_threshold"])


def test_no_threshold_if_every_question_has_answer():
    task = QuestionAnsweringTask()
    example = make_question("Ada came", (0, 3))
    assert fit_labels(task, example) == []
    assert task.state == {"null_threshold": None}
    assert "Every question has an answer" in task.output_help()
    unsure = AnswerPrediction("Ada came", "", 4, 8, 0.0, 50.0, False)
    [told, _] = task.metric.calibrate([example, make_question("Ada came")], [unsure, unsure])
    assert (told.answer, task.state) == ("came", {"null_threshold": None})


def test_threshold_requires_an_answer_in_training_data():
    task = QuestionAnsweringTask()
    assert fit_labels(task, make_question("Ada came", (0, 3)), make_question("Ada came")) == []
    assert task.state == {"null_threshold": 0.0}
    assert "by more than 0" in task.output_help()
    assert fit_labels(QuestionAnsweringTask(), make_question("Ada came")) == [
        "data.train: no training row has an answer."
    ]
    assert fit_labels(QuestionAnsweringTask()) == []


def test_task_info_build_returns_same_task():
    for threshold in (None, -1.25):
        task = QuestionAnsweringTask(doc_stride=7, max_answer_length=3)
        task.state = {"null_threshold": threshold}
        again = TaskInfo.from_task(task).build()
        assert again.options == {"doc_stride": 7, "max_answer_length": 3}
        assert (again.state, again.head.labels) == (task.state, ["start", "end"])
