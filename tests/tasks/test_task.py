"""Every task on every architecture: what goes in comes out, nothing breaks it, and plain PEFT agrees."""

import functools
import json
import math
import re

import pytest
import torch
from peft import PeftModel

import peftlab
from peftlab.base import BaseFiles, load_base, model_class
from peftlab.data import Row
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector
from peftlab.methods import create_peft_model
from peftlab.recipe import BaseSection, Lora
from peftlab.store import TaskInfo
from peftlab.tasks.inputs.text import load_tokenizer
from peftlab.tasks.prediction import forward, predict_examples
from peftlab.tasks.registry import TASKS
from peftlab.tuning import tune
from tests.architectures import ARCHITECTURES, build

MAX_LENGTH = 40
NOBODY = "Nobody came . "
MARK = re.compile(r"\[([^]]*)\]\((\w+)\)")


def parse_entities(marked):
    """`[Ada](PER) left` → a row with text and entities."""
    text, end, entities = "", 0, []
    for mark in MARK.finditer(marked):
        text += marked[end : mark.start()]
        entities.append({"start": len(text), "end": len(text) + len(mark[1]), "label": mark[2]})
        text, end = text + mark[1], mark.end()
    return {"text": text + marked[end:], "entities": entities}


def question_row(question, context, *answers):
    places = [{"text": answer, "answer_start": context.index(answer)} for answer in answers]
    return {"question": question, "context": context, "answers": places}


TEXTS = [
    "A dull film .",
    "I liked it",
    f"{NOBODY * 20}and yet I liked the letter from Rome .",
    "我爱北京和上海，也爱东京大学。" * 4,
    "زارت آدا القاهرة ثم بغداد .",
    "עדה כתבה מכתב אל לונדון .",
    "👩‍🚀 👋🏽 🇫🇷🇩🇪 ❤️",
    "Ada",
    "It rained in Paris .",
    "The train was late .",
    "Grace Hopper met Alan Turing",
    "Nobody",
]
KINDS = ["bad", "good", "neither"]
QUESTIONS = [
    question_row("Who left ?", "Ada Lovelace left Rome .", "Ada Lovelace"),
    question_row("Where did it rain ?", "It rained in Paris .", "Paris"),
    question_row("Who wrote ?", f"{NOBODY * 12}Grace Hopper wrote a letter . {NOBODY * 12}", "Grace Hopper"),
    question_row("Which train ?", f"{NOBODY * 15}The train from London was late", "from London"),
    question_row("哪里？", "我爱北京和上海，也爱东京大学。" * 3 + "小猫在罗马。", "罗马"),
    question_row("أين ؟", "زارت آدا القاهرة ثم بغداد .", "القاهرة"),
    question_row("איפה ?", "עדה כתבה מכתב אל לונדון .", "לונדון"),
    question_row("👩‍🚀 ?", "Ada 👋🏽 👩‍🚀 ❤️ Rome", "👩‍🚀"),
    question_row("One word ?", "Rome", "Rome"),
    question_row("What is not there ?", "Nobody came ."),
    question_row("What is not there ?", NOBODY * 30),
    question_row("Which is it ?", "It was London , then Rome .", "Rome", "London"),
]
SENTENCES = [
    "[Ada Lovelace](PER) wrote to [London](LOC) .",
    f"{NOBODY * 12}[Grace Hopper](PER) left [Rome](LOC) . {NOBODY * 12}[Paris](LOC)",
    "我爱[北京](LOC)和[上海](LOC)，也爱东京大学。" * 4,
    "زارت [آدا](PER) [القاهرة](LOC) ثم [بغداد](LOC) .",
    "[עדה](PER) כתבה מכתב אל [לונדון](LOC) .",
    "[👩‍🚀](PER) 👋🏽 [🇫🇷](LOC)[🇩🇪](LOC) ❤️",
    "[Rome](LOC)",
    "Nobody came .",
    "[Ada](PER) [Grace](PER) [Alan](PER)",
    "In [Rome](LOC) it rained .",
    "They met [Alan Turing](PER) .",
    "The train from [London](LOC) was late .",
]
RELATIONS = [
    ("<e1>Ada</e1> left <e2>Rome</e2> .", "left(e1,e2)"),
    ("<e2>Rome</e2> was left by <e1>Ada</e1> .", "left(e2,e1)"),
    (f"{NOBODY * 12}<e1>Ada</e1> left <e2>Rome</e2> . {NOBODY * 12}", "left(e1,e2)"),
    (f"<e1>Ada</e1> wrote . {NOBODY * 25} It rained in <e2>Rome</e2> .", "Other"),
    ("<e1>我</e1>爱<e2>北京</e2>和上海，也爱东京大学。" + "小猫在哪里？" * 9, "likes"),
    ("زارت <e1>آدا</e1> <e2>القاهرة</e2> ثم بغداد .", "likes"),
    ("<e1>👩‍🚀</e1> 👋🏽 <e2>🇫🇷🇩🇪</e2>", "Other"),
    ("<e1:PER>Ada</e1> likes <e2:LOC>Rome</e2>", "likes"),
    ("<e1>Ada</e1><e2>Rome</e2>", "Other"),
    ("<e1>Alan</e1> left <e2>London</e2>", "left(e1,e2)"),
    ("<e1>Grace</e1> met <e2>Alan</e2>", "Other"),
    ("<e1>Grace</e1> likes <e2>Paris</e2>", "likes"),
]
CASES = {
    "token-classification": ("token-classification", {}, [parse_entities(marked) for marked in SENTENCES]),
    "text-classification": (
        "text-classification",
        {},
        [{"text": text, "label": KINDS[n % 3]} for n, text in enumerate(TEXTS)],
    ),
    "multi-label": (
        "text-classification",
        {"multi_label": True},
        [{"text": text, "labels": KINDS[: n % 4]} for n, text in enumerate(TEXTS)],
    ),
    "pair": (
        "text-classification",
        {},
        [
            {"text": text, "text_pair": pair, "label": KINDS[n % 2]}
            for n, (text, pair) in enumerate(zip(TEXTS, [TEXTS[2], *TEXTS[:-1]], strict=True))
        ],
    ),
    "regression": ("regression", {}, [{"text": text, "label": n * n / 7} for n, text in enumerate(TEXTS)]),
    "question-answering": ("question-answering", {"doc_stride": 16}, QUESTIONS),
    "relation-extraction": (
        "relation-extraction",
        {},
        [{"text": text, "label": label} for text, label in RELATIONS],
    ),
}
ODD = {
    "empty": "",
    "blank": " \n\t",
    "one word": "Rome",
    "one letter": "x",
    "very long": NOBODY * 25,
    "long word": "a" * 300,
    "emoji": "👩‍🚀👋🏽🇫🇷❤️",
    "arabic": "زارت آدا لوفلايس القاهرة، ثم بغداد.",
    "hebrew": "עדה כתבה מכתב אל לונדון",
    "control": "\x00\x01\x7f\u200b\u202e",
    "unknown letters": "ꙮ 𝔘𝔫𝔦 ក្រុង",
}


@functools.cache
def case(name):
    """The task with its labels, and its rows read."""
    kind, options, rows = CASES[name]
    task = TASKS[kind].build(**options)
    examples = [task.read(Row(row, f"row {number}")) for number, row in enumerate(rows)]
    with ErrorCollector() as errors:
        task.fit_labels({"train": examples}, errors)
    return task, examples


def edge_case_examples(task):
    """Inputs nobody expects, in each place where the task takes text."""
    if task.type == "question-answering":
        pairs = [(odd, "Ada left Rome .") for odd in ODD.values()] + [("Who left ?", odd) for odd in ODD.values()]
        rows = [{"question": question, "context": context} for question, context in pairs]
        rows += [{"question": odd, "context": odd} for odd in ODD.values()]
    elif task.type == "relation-extraction":
        rows = [{"text": f"{odd}<e1>Ada</e1>{odd}<e2>Rome</e2>{odd}"} for odd in ODD.values()]
        rows += [{"text": f"<e1>{odd}</e1> and <e2>{odd}</e2>"} for odd in ODD.values() if odd.strip()]
    else:
        rows = [] if task.state.get("pairs") else [{"text": odd} for odd in ODD.values()]
        if task.type in ("text-classification", "regression"):
            rows += [{"text": odd, "text_pair": other} for odd in ODD.values() for other in (odd, "Rome")]
    return [task.read_input(Row(row, "f:1")) for row in rows]


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Folder of each architecture."""
    return functools.cache(lambda name: build(name, tmp_path_factory.mktemp(name)))


PAIRS = [f"{architecture}:{name}" for architecture in ARCHITECTURES for name in CASES]
POOLED = ["text-classification", "regression"]  # of what a base without pooler differs in, one of each kind is enough
PAIRS = [name for name in PAIRS if not name.startswith("bert-without-pooler") or name.split(":")[1] in POOLED]


@pytest.fixture(scope="module", params=PAIRS)
def pair(request, bases):
    """A task with its examples, and a base with a fresh head for it."""
    architecture, name = request.param.split(":")
    task, examples = case(name)
    base = load_base(BaseSection(model=str(bases(architecture))), task, seed=3, device="cpu")
    return name, task, examples, base


def correct_output(task, feature):
    """What a model that knows the feature's labels gives."""
    if task.type == "regression":
        return torch.tensor([feature.labels])
    if task.type == "question-answering":
        output = torch.zeros(len(feature), 2)
        output[feature.labels, [0, 1]] = 20.0
        return output
    if task.type == "token-classification":
        output = torch.zeros(len(feature), len(task.head.labels))
        for position, _ in feature.positions:
            output[position, feature.labels[position]] = 20.0
        return output
    if isinstance(feature.labels, list):
        return torch.tensor(feature.labels) * 40 - 20
    return torch.nn.functional.one_hot(torch.tensor(feature.labels), len(task.labels)) * 20.0


def prediction_scores(prediction):
    """Everything in a prediction that a model's output moves a little."""
    plain = prediction.as_dict()
    told = [plain.get("score"), plain.get("value"), *(entity["score"] for entity in plain.get("entities", []))]
    return [number for number in told if number is not None] + list(getattr(prediction, "chances", {}).values())


def prediction_labels(prediction):
    """Everything in a prediction that is not a number of that kind."""
    plain = prediction.as_dict()
    entities = [(entity["start"], entity["end"], entity["label"]) for entity in plain.get("entities", [])]
    return [plain.get(key) for key in ("label", "labels", "answer", "start", "end", "backward")] + entities


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_split_words_tokenize_like_text(architecture, bases):
    tokenizer = load_tokenizer(BaseFiles("x", bases(architecture), "local folder"))
    words = ["Ada", "came", "from", "London", "to", "Paris"]
    assert tokenizer(words, is_split_into_words=True)["input_ids"] == tokenizer(" ".join(words))["input_ids"]


def test_best_score_for_correct_outputs(pair):
    name, task, examples, base = pair
    task = TaskInfo.from_task(task).build()
    encoded = [task.encode([example], base.inputs, MAX_LENGTH, training=False)[0] for example in examples]
    if task.type != "relation-extraction":
        assert max(map(len, encoded)) > 1
    predictions = [
        task.decode(example, features, [correct_output(task, feature) for feature in features])
        for example, features in zip(examples, encoded, strict=True)
    ]
    for again in (predictions, list(task.metric.calibrate(examples, predictions))):
        scores = task.score(examples, again).values
        assert scores[task.metric.name] == pytest.approx(1.0, abs=1e-6), [p.as_dict() for p in again]
    assert scores.get("rmse", 0.0) == pytest.approx(0.0, abs=1e-5)
    if name == "question-answering":
        starts = [example.answers[0] if example.answers else None for example in examples]
        assert [(told.start, told.end) if told.given else None for told in predictions] == starts


def test_edge_case_text_has_valid_prediction(pair):
    _, task, _, base = pair
    examples = edge_case_examples(task)
    predictions = predict_examples(task, base.model, base.inputs, examples, max_length=MAX_LENGTH)
    for example, prediction in zip(examples, predictions, strict=True):
        plain = prediction.as_dict()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert prediction.text == example.text
        assert all(math.isfinite(number) for number in prediction_scores(prediction))
        check_prediction(task, prediction)


def check_prediction(task, prediction):
    text = prediction.text
    match task.type:
        case "token-classification":
            assert len(prediction.tags) == len(prediction.words)
            for entity in prediction.entities:
                assert 0 <= entity.start < entity.end <= len(text)
                assert (entity.text, entity.label in task.labels) == (text[entity.start : entity.end], True)
        case "text-classification":
            assert list(prediction.probabilities) == task.labels
            assert all(0 <= chance <= 1 for chance in prediction.probabilities.values())
            assert set(prediction.labels) <= set(task.labels)
            if not task.multi_label:
                assert prediction.labels == (prediction.label,)
                assert sum(prediction.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
        case "question-answering":
            assert 0 <= prediction.start <= prediction.end <= len(text)
            assert prediction.given == bool(prediction.answer)
            assert prediction.answer == (text[prediction.start : prediction.end] if prediction.given else "")
            assert 0 <= prediction.score <= 1
        case "relation-extraction":
            assert prediction.label in task.labels
            assert 0 <= prediction.score <= 1


@pytest.mark.parametrize("text", ["", " ", "Ada left Rome"])
def test_relation_input_requires_head_and_tail(text):
    task, _ = case("relation-extraction")
    with pytest.raises(RowError, match="expected the two spans marked in the text, as in '<e1>"):
        task.read_input(Row({"text": text}, "f:1"))


def test_single_row_matches_batch(pair):
    _, task, examples, base = pair
    rows = [*examples, *edge_case_examples(task)[::4]]
    alone, among = (
        predict_examples(task, base.model, base.inputs, rows, max_length=MAX_LENGTH, batch_size=size)
        for size in (1, 32)
    )
    assert [prediction_labels(told) for told in alone] == [prediction_labels(told) for told in among]
    for one, other in zip(alone, among, strict=True):
        assert prediction_scores(one) == pytest.approx(prediction_scores(other), abs=1e-4)


def is_close(actual, expected):
    """The same logits but for the last bit, which a head's place in memory may turn."""
    return all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(actual, expected, strict=True))


def plain_model(folder, task, adapter):
    model = model_class(folder, task).from_pretrained(folder, num_labels=len(task.head.labels))
    return PeftModel.from_pretrained(model, adapter).eval()


def test_training_step_updates_adapter_and_head(pair, tmp_path):
    _, task, examples, base = pair
    base = load_base(BaseSection(model=str(base.files.folder)), task, seed=3, device="cpu")
    model = create_peft_model(base, Lora(r=2), task)
    features = [
        feature for row in examples for feature in task.encode([row], base.inputs, MAX_LENGTH, training=True)[0]
    ]
    batch = task.head.collate(features, base.inputs)
    labels = batch.pop("labels")
    task.head.loss(task.head.logits(model(**batch)), labels).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    # lora_A moves only once lora_B is no longer zero, and a bias moves no softmax over tokens
    waiting = {name for name in trained if "lora_A" in name or name.endswith("bias")}
    assert [name for name in trained.keys() - waiting if not trained[name].grad.abs().sum() > 0] == []
    heads = {module for module in base.head_modules for name in trained if f".{module}." in name}
    assert heads == set(base.head_modules)
    assert all(("lora_" in name) != any(f".{module}." in name for module in heads) for name in trained)

    with torch.no_grad():
        for p in trained.values():
            p -= 1e-2 * p.grad
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    plain = plain_model(base.files.folder, task, tmp_path)
    mine, theirs = (forward(task, one, base.inputs, features) for one in (model, plain))
    assert is_close(mine, theirs)


# --- the whole way: tune, publish, load into the bank, and compare with plain PEFT

TUNED = {
    "reviews": "text-classification",
    "topics": "multi-label",
    "questions": "question-answering",
    "names": "token-classification",
    "stars": "regression",
}
TUNED_ON = {
    "bert": ["reviews", "questions", "stars"],
    "bert-without-pooler": ["reviews", "topics", "names"],
    **{name: ["reviews", "questions"] for name in ("roberta", "distilbert", "deberta-v2", "modernbert")},
}


@pytest.fixture(scope="module")
def tuned(bases, tmp_path_factory):
    """An architecture → its base, the store of what was tuned on it, and the results by name."""

    @functools.cache
    def tune_all(architecture):
        folder = tmp_path_factory.mktemp(f"tuned-{architecture}")
        base, store = bases(architecture), folder / "store"
        return base, store, {name: tune_case(folder, base, name, store) for name in TUNED_ON[architecture]}

    return tune_all


def tune_case(folder, base, adapter, store):
    kind, options, rows = CASES[TUNED[adapter]]
    data = folder / f"{adapter}.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf8")
    recipe = folder / f"{adapter}.yaml"
    sections = {
        "name": adapter,
        "base": {"model": str(base)},
        "task": {"type": kind, **options},
        "method": {"r": 2},
        "data": {"train": data.name, "validation": data.name, "max_length": MAX_LENGTH, "max_lost": 0.9},
        "training": {
            "num_train_epochs": 1,
            "learning_rate": 0.02,
            "per_device_train_batch_size": 6,
            "head_init": "random",
        },
    }
    recipe.write_text(json.dumps(sections), encoding="utf8")
    return tune(recipe, store=store, device="cpu")


@pytest.mark.parametrize("architecture", TUNED_ON)
def test_loaded_adapters_match_peft(architecture, tuned):
    base, store, results = tuned(architecture)
    names = list(results)
    bank = peftlab.load(*names, store=store, device="cpu")
    for name in [*names, *names[:1]]:
        task, (_, examples) = bank.task(name), case(TUNED[name])
        assert TaskInfo.from_task(task) == TaskInfo.from_task(results[name].task)
        plain = plain_model(base, task, bank.adapter(name).folder)
        features = [
            feature
            for example in examples
            for feature in task.encode([example], bank.base.inputs, MAX_LENGTH, training=False)[0]
        ]
        mine, theirs = (forward(task, model, bank.base.inputs, features) for model in (bank.model(name), plain))
        assert is_close(mine, theirs), name
        expected = predict_examples(task, plain, bank.base.inputs, examples, max_length=MAX_LENGTH)
        answers = bank.predict([input_row(task, example) for example in examples], adapters=name)
        assert [answer.prediction.as_dict() for answer in answers] == [told.as_dict() for told in expected]
        scores = task.score(examples, expected).values
        assert scores == pytest.approx(results[name].scores["validation"].values, abs=1e-6), name


def input_row(task, example):
    """The row that asks for an example's prediction."""
    if task.type == "question-answering":
        return {"question": example.question, "context": example.text}
    return {"text": example.text}


def test_adapters_do_not_share_pooler(tuned):
    _, store, _ = tuned("bert-without-pooler")
    bank = peftlab.load("reviews", "topics", "names", store=store, device="cpu")
    first, second, names = (bank.model(name).bert for name in bank.names)
    weights = [list(bert.encoder.parameters()) for bert in (first, second, names)]
    shared = {id(parameter) for parameter in bank.base.backbone.parameters()}
    assert all(sum(id(parameter) in shared for parameter in own) == 32 for own in weights)
    assert not torch.equal(first.pooler.dense.weight, second.pooler.dense.weight)
