import json
import random
import shutil
import warnings
from itertools import pairwise

import pytest
import torch
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

from peftlab.base import BaseFiles
from peftlab.data import DataSplits, Ledger, Row, Split
from peftlab.data.rows import RowError
from peftlab.errors import ErrorCollector, IntegrityError
from peftlab.recipe import TokenClassification
from peftlab.tasks import build_task, read_examples, restore_task
from peftlab.tasks.inputs.text import TextInputs, load_tokenizer
from peftlab.tasks.inputs.word_windows import split_into_windows
from peftlab.tasks.labels.tag_schemes import spans_from_tags, tags_from_spans
from peftlab.tasks.token_classification import EntityPrediction, TokenClassificationTask
from tests.conftest import SENTENCES

WIDENED = "entities widened to whole words"
OPENED_BY_I = "entities opened by I- (IOB1, or a missing B-)"


def save_byte_level_tokenizer(folder, kind):
    """A byte-level BPE tokenizer as the Hub would hold it: RoBERTa's with special tokens, GPT-2's with none."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2TokenizerFast, RobertaTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(SENTENCES.values(), vocab_size=400, special_tokens=special)
    model = json.loads(trained.to_str())["model"]
    kind_of_tokenizer = {"roberta": RobertaTokenizerFast, "gpt2": GPT2TokenizerFast}[kind]
    merges = [tuple(pair) for pair in model["merges"]]
    kind_of_tokenizer(vocab=model["vocab"], merges=merges, model_max_length=64).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return folder


@pytest.fixture(scope="module", params=["bert", "roberta", "gpt2"])
def folder(request, tiny_base, tmp_path_factory):
    if request.param == "bert":
        return tiny_base
    return save_byte_level_tokenizer(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def tokenizer(folder):
    return load_tokenizer(BaseFiles("x", folder, "local folder"))


@pytest.fixture
def bert(tiny_base):
    return load_tokenizer(BaseFiles("x", tiny_base, "local folder"))


def task_with(*labels):
    return TokenClassificationTask(labels=list(labels))


def read_tags(tokens, tags):
    return task_with().read(Row({"tokens": tokens, "tags": tags}, "f:1"))


def read_entities(text, *entities):
    fields = {"text": text, "entities": [{"start": s, "end": e, "label": label} for s, e, label in entities]}
    return task_with().read(Row(fields, "f:1"))


def random_tags(rng, length):
    return rng.choices(["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"], k=length)


# --- reading rows


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": ["Ada", "left", "New", "York"], "tags": ["B-PER", "O", "B-LOC", "I-LOC"]},
        {"tokens": "Ada left New York", "tags": "B-PER O B-LOC I-LOC"},
        {"tokens": '["Ada", "left", "New", "York"]', "tags": '["B-PER", "O", "B-LOC", "I-LOC"]'},
        {
            "text": "Ada left New York",
            "entities": [{"start": 9, "end": 17, "label": "LOC"}, {"start": 0, "end": 3, "label": "PER"}],
        },
        {
            "text": "Ada left New York",
            "entities": '[{"start": 0, "end": 3, "label": "PER"}, {"start": 9, "end": 17, "label": "LOC", "id": 7}]',
        },
    ],
    ids=["lists", "blanks", "json", "entities", "json-entities"],
)
def test_row_formats_return_same_example(fields):
    example = task_with().read(Row({**fields, "id": 1}, "f:3"))
    assert example.text == "Ada left New York"
    assert example.tokens() == ["Ada", "left", "New", "York"]
    assert example.spans == ((0, 1, "PER"), (2, 4, "LOC"))
    assert (example.where, example.num_lost_targets, set(example.warnings.values())) == ("f:3", 0, {0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"words": ["a"], "ner": ["O"]},
            "expected columns tokens and tags, or text and entities; found words, ner. "
            "Map yours under data.columns, our name first, as in 'tokens: your-name' (--column tokens=your-name).",
        ),
        (
            {},
            "expected columns tokens and tags, or text and entities; found none. "
            "Map yours under data.columns, our name first, as in 'tokens: your-name' (--column tokens=your-name).",
        ),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "expected as many tags as tokens, found 1 tags for 2 tokens"),
        ({"tokens": [1], "tags": ["O"]}, "expected tokens to be a list of strings, found [1]"),
        ({"tokens": ["a"], "tags": None}, "expected tags to be a list of strings, found None"),
        (
            {"tokens": ["a"], "tags": [3] * 50},
            f"tags are numbers ({str([3] * 50)[:57]}...); list the tags in the order of their numbers, as in "
            "task.labels: [O, B-PER, I-PER]",
        ),
        ({"tokens": '["a",', "tags": "O"}, "expected tokens as JSON; Expecting value at column 6"),
        (
            {"tokens": ["a", "b"], "tags": ["O", "PER"]},
            "word 2: expected a tag such as O, B-PER or I-PER, found 'PER'",
        ),
        ({"text": 3, "entities": []}, "expected text to be a string, found 3"),
        ({"text": None, "entities": []}, "expected text to be a string, found None"),
        ({"text": "a", "entities": None}, "expected entities to be a list of {start, end, label}, found None"),
        (
            {"text": "a", "entities": "[{]"},
            "expected entities as JSON; Expecting property name enclosed in double quotes at column 3",
        ),
        *(
            (
                {"text": "abc", "entities": [entity]},
                f"expected an entity {{start, end, label}} with 0 ≤ start < end ≤ 3, found {entity}",
            )
            for entity in (
                {"start": 0, "end": 4, "label": "X"},
                {"start": -1, "end": 2, "label": "X"},
                {"start": 2, "end": 2, "label": "X"},
                {"start": 0, "end": 2, "label": ""},
                {"start": 0, "end": 2},
                {"start": 0, "end": 2.0, "label": "X"},
                {"start": 0, "end": 2, "label": 1},
                [0, 2, "X"],
            )
        ),
        (
            {
                "text": "Bank of England",
                "entities": [{"start": 8, "end": 15, "label": "LOC"}, {"start": 0, "end": 15, "label": "ORG"}],
            },
            "entities 'Bank of England' (0–15) and 'England' (8–15) overlap; "
            "token classification takes flat entities only",
        ),
    ],
)
def test_invalid_row_raises_row_error(fields, message):
    with pytest.raises(RowError) as caught:
        task_with().read(Row(fields, "f:1"))
    assert str(caught.value) == message


def test_strict_tag_scheme_raises_row_error():
    strict = TokenClassificationTask(labels=[], tag_scheme="iob2")
    with pytest.raises(RowError, match=r"^word 2: 'I-PER' cannot follow 'O' in iob2$"):
        strict.read(Row({"tokens": ["a", "b"], "tags": ["O", "I-PER"]}, "f:1"))


def test_warning_for_entity_without_b_tag():
    example = read_tags(["a", "b", "c", "d"], ["I-PER", "I-PER", "O", "I-LOC"])
    assert example.spans == ((0, 2, "PER"), (3, 4, "LOC"))
    assert example.warnings == {OPENED_BY_I: 2}


def test_partial_word_entity_is_expanded_with_warning():
    example = read_entities("in Londons suburbs", (3, 9, "LOC"), (11, 18, "X"))
    assert example.spans == ((1, 2, "LOC"), (2, 3, "X"))
    assert (example.warnings, example.num_lost_targets) == ({WIDENED: 1}, 0)


def test_second_entity_in_word_is_lost():
    example = read_entities("Londonparis  x", (0, 6, "LOC"), (6, 11, "LOC"), (11, 13, "LOC"))
    assert example.spans == ((0, 1, "LOC"),)
    assert example.num_lost_targets == 2


def test_consecutive_entities_are_preserved():
    example = read_entities("北京大学", (0, 2, "LOC"), (2, 4, "ORG"))
    assert example.spans == ((0, 2, "LOC"), (2, 4, "ORG"))
    assert (example.warnings, example.num_lost_targets) == ({WIDENED: 0}, 0)


def test_invalid_rows_are_reported_with_location():
    rows = [
        Row({"tokens": ["a", "b"], "tags": [tag, "O"]}, f"f:{n}")
        for n, tag in enumerate(["O", *["PER"] * 7, "B-PER"], start=1)
    ]
    errors, ledger = ErrorCollector(), Ledger()
    examples = read_examples(task_with(), Split(rows, "f"), ledger, errors)
    assert [example.where for example in examples] == ["f:1", "f:9"]
    assert [str(issue) for issue in errors.issues] == [
        *(f"f:{n}: word 1: expected a tag such as O, B-PER or I-PER, found 'PER'" for n in range(2, 7)),
        "… and 2 more rows like these.",
    ]
    assert ledger.read == 9


def test_ledger_counts_lost_targets_and_warnings():
    fields = {"text": "Londonparis", "entities": [{"start": s, "end": e, "label": "LOC"} for s, e in ((0, 6), (6, 11))]}
    ledger = Ledger()
    read_examples(task_with(), Split([Row(fields, "f:1")] * 3, "f"), ledger, ErrorCollector())
    assert (ledger.read, ledger.num_lost_targets, ledger.warnings) == (3, 3, {WIDENED: 3})


# --- labels


def fit_labels(task, **splits):
    errors = ErrorCollector()
    task.fit_labels(splits, errors)
    return [str(issue) for issue in errors.issues]


def test_labels_are_sorted_training_labels():
    task = task_with()
    assert fit_labels(task, train=[read_tags(["a", "b"], ["B-PER", "B-LOC"])], test=[read_tags(["a"], ["B-PER"])]) == []
    assert task.labels == ["LOC", "PER"]
    assert task.head.labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_recipe_labels_preserve_order():
    task = task_with("PER", "ORG", "LOC")
    assert fit_labels(task, train=[read_tags(["a", "b"], ["B-PER", "B-LOC"])]) == []
    assert task.labels == ["PER", "ORG", "LOC"]


def test_unknown_validation_label_is_an_error():
    seen = [read_tags(["a", "b"], ["B-PER", "B-LOC"])]
    unseen = [
        read_tags(["a"], ["O"]),
        task_with().read(Row({"tokens": ["a", "b"], "tags": ["B-PERS", "B-PERS"]}, "dev:7")),
    ]
    assert fit_labels(task_with(), train=seen, validation=unseen) == [
        "data.validation: label 'PERS' occurs in validation (2×, first at dev:7) but not in the training rows. "
        "Did you mean 'PER'? Available labels: LOC, PER."
    ]


def test_unlisted_label_is_an_error():
    assert fit_labels(task_with("LOC"), train=[read_tags(["a"], ["B-PER"])]) == [
        "data.train: label 'PER' occurs in train (1×, first at f:1) but not in task.labels. Available labels: LOC."
    ]


def test_training_rows_require_an_entity():
    assert fit_labels(task_with(), train=[read_tags(["a"], ["O"])]) == ["data.train: the training rows hold no entity."]


def test_build_task_returns_labels_examples_and_ledger():
    row = Row({"tokens": ["a"], "tags": ["I-PER"]}, "f:1")
    rows = DataSplits({"train": Split([row, row], "train.txt"), "validation": Split([row], "10%")})
    with ErrorCollector() as errors:
        task, examples, ledgers = build_task(TokenClassification(type="token-classification"), rows, errors)
    assert task.labels == ["PER"]
    assert {name: len(found) for name, found in examples.items()} == {"train": 2, "validation": 1}
    assert [(ledgers[name].source, ledgers[name].read) for name in examples] == [("train.txt", 2), ("10%", 1)]


def test_restore_task_by_name():
    assert restore_task("token-classification", ["PER"], {}, {}).head.labels == [
        "O",
        "B-PER",
        "I-PER",
    ]
    with pytest.raises(
        IntegrityError, match=r"^unknown task 'token-clasification'. Did you mean 'token-classification'\?"
    ):
        restore_task("token-clasification", [], {}, {})


# --- encode and decode

LONG_WORD = "pneumonoultramicroscopicsilicovolcanoconiosis"
SENTENCE = "Ada Lovelace wrote to London and Paris , then left for Rome by train with Grace Hopper ."
SENTENCE_TAGS = "B-PER I-PER O O B-LOC O B-LOC O O O O B-LOC O O O B-PER I-PER O"
EXAMPLES = {
    "sentence": read_tags(SENTENCE, SENTENCE_TAGS),
    "single-word": read_tags(["Ada"], ["B-PER"]),
    "no-entity": read_tags(["Nobody", "came"], ["O", "O"]),
    "empty": task_with().read_input(Row({"text": ""}, "f:1")),
    "blank": task_with().read_input(Row({"text": " \n"}, "f:1")),
    "neighbours": read_tags(["Ada", "Grace", "Rome", "Paris"], ["B-PER", "B-PER", "B-LOC", "I-LOC"]),
    "one-entity": read_tags(["a"] * 40, ["B-PER", *["I-PER"] * 39]),
    "long-word": read_tags([LONG_WORD], ["B-LOC"]),
    "long-words": read_tags(
        ["Ada", LONG_WORD, "in", LONG_WORD, LONG_WORD, "."], ["B-PER", "I-PER", "O", "B-LOC", "B-PER", "O"]
    ),
    "emoji": read_entities("👩‍🚀 Ada👋🏽in 🇫🇷🇩🇪 ❤️", (0, 7, "PER"), (9, 11, "LOC"), (12, 14, "LOC"), (14, 16, "LOC")),
    "chinese": read_entities("我爱北京和上海，也爱东京大学。", (2, 4, "LOC"), (5, 7, "LOC"), (10, 14, "LOC")),
    "arabic": read_entities("زارت آدا لوفلايس القاهرة، ثم بغداد.", (5, 16, "PER"), (17, 24, "LOC"), (29, 34, "LOC")),
}


def make_outputs(task, features, tags, seed=0):
    """What a model that knows the answer would give; noise where no word is decided."""
    generator = torch.Generator().manual_seed(seed)
    outputs = []
    for feature in features:
        output = torch.randn(len(feature), len(task.head.labels), generator=generator) * 20
        for position, word in feature.positions:
            output[position] = 0.0
            output[position, task.head.labels.index(tags[word])] = 30.0
        outputs.append(output)
    return outputs


@pytest.mark.parametrize("max_length", [8, 12, 64])
@pytest.mark.parametrize("name", EXAMPLES)
def test_correct_outputs_decode_to_expected_entities(tokenizer, name, max_length):
    example, task = EXAMPLES[name], task_with("LOC", "PER")
    features = task.encode([example], TextInputs(tokenizer), max_length, training=False)[0]
    tags = tags_from_spans(list(example.spans), len(example.words))
    prediction = task.decode(example, features, make_outputs(task, features, tags))

    found = [(entity.start, entity.end, entity.label) for entity in prediction.entities]
    assert found == [(example.words[a][0], example.words[b - 1][1], label) for a, b, label in example.spans]
    assert prediction.tags == tuple(tags)
    assert prediction.text == example.text
    assert all(entity.score == 1.0 for entity in prediction.entities)
    if example.spans:
        assert task.score([example], [prediction]).values == {"precision": 1.0, "recall": 1.0, "f1": 1.0}


@pytest.mark.parametrize("max_length", [8, 12, 20, 64])
@pytest.mark.parametrize("name", EXAMPLES)
def test_windows_include_every_word_within_max_length(tokenizer, name, max_length):
    example, task = EXAMPLES[name], task_with("LOC", "PER")
    features = task.encode([example], TextInputs(tokenizer), max_length, training=False)[0]
    assert {word for feature in features for _, word in feature.positions} == set(range(len(example.words)))
    assert all(0 < len(feature) <= max_length for feature in features)
    assert (task.lost(example, features), any(feature.truncated for feature in features)) == (0, False)
    for one, next_one in pairwise(features):
        assert next_one.positions[0][1] <= one.positions[-1][1] + 1


@pytest.mark.parametrize("training", [True, False])
def test_only_first_token_of_word_has_label(tokenizer, training):
    example, task = EXAMPLES["long-words"], task_with("LOC", "PER")
    tags = tags_from_spans(list(example.spans), len(example.words))
    [feature] = task.encode([example], TextInputs(tokenizer), 512, training=training)[0]
    whole = tokenizer(example.tokens(), is_split_into_words=True)
    assert feature.inputs == dict(whole)
    assert [word for _, word in feature.positions] == list(range(len(tags)))
    assert all(whole.word_ids()[position] == word for position, word in feature.positions)
    assert all(whole.word_ids().index(word) == position for position, word in feature.positions)
    labels = {position: task.head.labels.index(tags[word]) for position, word in feature.positions}
    assert feature.labels == [labels.get(position, -100) for position in range(len(feature))]


def test_input_of_max_length_is_one_window(tokenizer):
    example, task = EXAMPLES["sentence"], task_with("LOC", "PER")
    length = len(tokenizer(SENTENCE.split(), is_split_into_words=True)["input_ids"])
    assert len(task.encode([example], TextInputs(tokenizer), length, training=False)[0]) == 1
    assert len(task.encode([example], TextInputs(tokenizer), length - 1, training=False)[0]) > 1


def test_overlap_word_uses_window_with_most_context(tokenizer):
    example = task_with().read_input(Row({"text": "ada " * 120}, "f:1"))
    windows = len(task_with().encode([example], TextInputs(tokenizer), 48, training=False)[0])
    task = task_with(*(str(number) for number in range(windows)))
    features = task.encode([example], TextInputs(tokenizer), 48, training=False)[0]
    outputs = [make_outputs(task, [feature], [f"B-{number}"] * 120)[0] for number, feature in enumerate(features)]
    chosen = [tag.removeprefix("B-") for tag in task.decode(example, features, outputs).tags]

    distances = [{} for _ in example.words]
    for number, feature in enumerate(features):
        first, last = feature.positions[0][1], feature.positions[-1][1]
        for _, word in feature.positions:
            distances[word][str(number)] = min(word - first, last - word)
    assert sum(len(set(found.values())) > 1 for found in distances) >= windows
    assert all(found[window] == max(found.values()) for found, window in zip(distances, chosen, strict=True))


def test_empty_text_has_no_features_or_entities(tokenizer):
    task = task_with("PER")
    for training in (True, False):
        assert (
            task.encode([task.read_input(Row({"text": " \n"}, "f:1"))], TextInputs(tokenizer), 16, training=training)[0]
            == []
        )
    assert task.decode(task.read_input(Row({"text": " "}, "f:1")), [], []) == EntityPrediction(" ", (), ())


def test_truncation_counts_lost_entities(bert):
    example, task = EXAMPLES["sentence"], task_with("LOC", "PER")
    for max_length in range(8, 40):
        [feature] = task.encode([example], TextInputs(bert), max_length, training=True)[0]
        kept = [word for _, word in feature.positions]
        assert len(feature) <= max_length
        assert kept == list(range(len(kept)))
        assert task.count(example) == 5
        assert task.lost(example, [feature]) == sum(end > len(kept) for _, end, _ in example.spans)
        assert feature.truncated == (len(kept) < len(SENTENCE.split()))
    assert not feature.truncated


def test_left_truncation_side_counts_lost_entities(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "truncation_side": "left"}))
    tokenizer = load_tokenizer(BaseFiles("x", folder, "local folder"))
    example, task = EXAMPLES["sentence"], task_with("LOC", "PER")
    [feature] = task.encode([example], TextInputs(tokenizer), 12, training=True)[0]
    assert feature.truncated
    kept = {word for _, word in feature.positions}
    assert task.lost(example, [feature]) == sum(not set(range(a, b)) <= kept for a, b, _ in example.spans)


def test_entity_without_tokens_is_lost(bert):
    example, task = read_tags(["in", "\u200b", "Rome"], ["O", "B-LOC", "B-LOC"]), task_with("LOC")
    [feature] = task.encode([example], TextInputs(bert), 16, training=True)[0]
    assert [word for _, word in feature.positions] == [0, 2]
    assert task.lost(example, [feature]) == 1


def test_split_into_windows_with_random_sizes():
    for seed in range(500):
        rng = random.Random(seed)
        room = rng.randrange(4, 20)
        sizes = [rng.choice([0, 1, 1, 1, 2, 3, room - 1, room, room + 5]) for _ in range(rng.randrange(1, 40))]
        windows = split_into_windows(sizes, room, room // 4)
        assert windows[0][0] == 0
        assert windows[-1][1] == len(sizes)
        for start, end in windows:
            assert end - start == 1 or (end - start > 0 and sum(sizes[start:end]) <= room)
        for (start, end), (next_start, next_end) in pairwise(windows):
            assert start < next_start <= end
            assert next_end > end, f"a window without a new word: {sizes}, {room}"
            assert sum(sizes[next_start:end]) <= room // 4 or next_start == end


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_side_matches_tokenizer(tokenizer, side):
    tokenizer.padding_side = side
    task = task_with("LOC", "PER")
    features = [
        task.encode([EXAMPLES[name]], TextInputs(tokenizer), 64, training=True)[0][0]
        for name in ("single-word", "sentence", "chinese")
    ]
    batch = task.head.collate(features, TextInputs(tokenizer))
    width = max(map(len, features))
    assert {tuple(tensor.shape) for tensor in batch.values()} == {(3, width)}
    for n, feature in enumerate(features):
        here = slice(0, len(feature)) if side == "right" else slice(width - len(feature), width)
        padded = [True] * width
        padded[here] = [False] * len(feature)
        assert batch["labels"][n][here].tolist() == feature.labels
        assert batch["input_ids"][n][here].tolist() == feature.inputs["input_ids"]
        assert batch["attention_mask"][n].tolist() == [int(not outside) for outside in padded]
        assert set(batch["labels"][n][padded].tolist()) <= {-100}
        assert set(batch["input_ids"][n][padded].tolist()) <= {tokenizer.pad_token_id}


def test_features_are_not_modified_by_collate(bert):
    task = task_with("LOC", "PER")
    features = [
        task.encode([EXAMPLES[name]], TextInputs(bert), 64, training=True)[0][0] for name in ("single-word", "sentence")
    ]
    before = [(dict(feature.inputs), list(feature.labels)) for feature in features]
    task.head.collate(features, TextInputs(bert))
    assert [(dict(feature.inputs), list(feature.labels)) for feature in features] == before


# --- predictions and scores


def test_prediction_offsets_match_text(tokenizer):
    task = task_with("LOC", "PER")
    example = EXAMPLES["emoji"]
    features = task.encode([example], TextInputs(tokenizer), 64, training=False)[0]
    tags = tags_from_spans(list(example.spans), len(example.words))
    plain = task.decode(example, features, make_outputs(task, features, tags)).as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert list(plain) == ["text", "entities"]
    assert plain["text"] == example.text
    assert [entity["text"] for entity in plain["entities"]] == ["👩‍🚀 Ada", "in", "🇫🇷", "🇩🇪"]
    for entity in plain["entities"]:
        assert list(entity) == ["start", "end", "label", "score", "text"]
        assert plain["text"][entity["start"] : entity["end"]] == entity["text"]


def test_entity_score_is_mean_tag_probability(bert):
    task = task_with("PER")
    example = read_tags(["ada", "lovelace", "came"], ["O"] * 3)
    [feature] = task.encode([example], TextInputs(bert), 16, training=False)[0]
    probabilities = torch.full((len(feature), 3), 1 / 3)
    probabilities[feature.positions[0][0]] = torch.tensor([0.1, 0.8, 0.1])
    probabilities[feature.positions[1][0]] = torch.tensor([0.2, 0.2, 0.6])
    probabilities[feature.positions[2][0]] = torch.tensor([0.9, 0.0, 0.1])
    [entity] = task.decode(example, [feature], [probabilities.log()]).entities
    assert (entity.start, entity.end, entity.label, entity.text) == (0, 12, "PER", "ada lovelace")
    assert entity.score == pytest.approx(0.7)


@pytest.mark.parametrize("tags", [["I-PER", "I-PER", "I-LOC"], ["O", "I-LOC", "B-PER"], ["B-LOC", "I-PER", "I-LOC"]])
def test_invalid_tags_decode_to_valid_sequence(bert, tags):
    task = task_with("LOC", "PER")
    example = read_tags(["ada", "lovelace", "london"], ["O"] * 3)
    features = task.encode([example], TextInputs(bert), 16, training=False)[0]
    prediction = task.decode(example, features, make_outputs(task, features, tags))
    spans_from_tags(list(prediction.tags), "iob2")  # raises where they are not


def entities_of(sentences):
    return {(n, *entity) for n, tags in enumerate(sentences) for entity in get_entities(tags)}


def test_scores_match_seqeval():
    task = task_with("LOC", "PER")
    for seed in range(30):
        rng = random.Random(seed)
        lengths = [rng.randrange(1, 15) for _ in range(12)]
        examples = [read_tags(["x"] * length, random_tags(rng, length)) for length in lengths]
        gold = [tags_from_spans(list(example.spans), len(example.words)) for example in examples]
        predicted_tags = [
            [g if rng.random() < 0.7 else r for g, r in zip(tags, random_tags(rng, len(tags)), strict=True)]
            for tags in gold
        ]
        scores = task.score(
            examples,
            [EntityPrediction(e.text, (), tuple(tags)) for e, tags in zip(examples, predicted_tags, strict=True)],
        )

        assert scores.values == {
            "precision": pytest.approx(precision_score(gold, predicted_tags), abs=1e-12),
            "recall": pytest.approx(recall_score(gold, predicted_tags), abs=1e-12),
            "f1": pytest.approx(f1_score(gold, predicted_tags), abs=1e-12),
        }
        assert set(scores.by_label) == {"LOC", "PER"}
        for label, values in scores.by_label.items():
            right, found = ({e for e in entities_of(tags) if e[1] == label} for tags in (gold, predicted_tags))
            both = len(right & found)
            assert values == {
                "precision": pytest.approx(both / len(found), abs=1e-12),
                "recall": pytest.approx(both / len(right), abs=1e-12),
                "f1": pytest.approx(2 * both / (len(found) + len(right)), abs=1e-12),
                "support": len(right),
            }


@pytest.mark.parametrize(
    ("gold", "predicted_tags", "support"),
    [
        ("O O", "O O", {}),
        ("B-PER O", "O O", {"PER": 1}),
        ("O O", "B-PER O", {"PER": 0}),
        ("B-PER O", "B-LOC O", {"LOC": 0, "PER": 1}),
    ],
)
def test_scores_are_zero_without_warnings(gold, predicted_tags, support):
    example = read_tags(["a", "b"], gold.split())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = task_with("LOC", "PER").score([example], [EntityPrediction("a b", (), tuple(predicted_tags.split()))])
    assert scores.values == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert {label: values["support"] for label, values in scores.by_label.items()} == support


@pytest.mark.parametrize("texts", [[], [""], ["", "a"]])
def test_empty_texts_score_zero(texts):
    task = task_with("PER")
    examples = [task.read_input(Row({"text": text}, "f:1")) for text in texts]
    predictions = [EntityPrediction(e.text, (), ("O",) * len(e.words)) for e in examples]
    scores = task.score(examples, predictions)
    assert scores.as_dict() == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "by_label": {}}
