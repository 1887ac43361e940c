"""What a tokenizer does not know is counted and told: by split, in predictions, and apart from what length cuts."""

import json

import pytest
from click.testing import CliRunner

import peftlab
from peftlab.base import BaseFiles
from peftlab.cli import cli
from peftlab.data import Row
from peftlab.tasks.inputs.coverage import Coverage, measure_coverage
from peftlab.tasks.inputs.text import TextInputs, load_tokenizer
from peftlab.tasks.token_classification import TokenClassificationTask
from peftlab.tuning import check
from tests import architectures
from tests.conftest import recipe_in
from tests.runs import Losses

CHINESE, THAI, EMOJI = "我喜欢这部电影", "ภาพยนตร์ดีมาก", "🙂🙃🙂🙃🙂🙃"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The tokenizer of an architecture."""

    def make(name):
        folder = tmp_path_factory.mktemp("base")
        architectures.build(name, folder)
        return load_tokenizer(BaseFiles("x", folder, "local folder"))

    return make


@pytest.fixture(scope="module")
def bert(tiny_base):
    return load_tokenizer(BaseFiles("x", tiny_base, "local folder"))


@pytest.mark.parametrize(
    ("text", "characters", "unknown"),
    [
        ("the train was late .", 16, 0),
        (f"late {CHINESE}", 4 + len(CHINESE), len(CHINESE)),
        (f"the {EMOJI} train", 8 + 6, 6),
        ("late é", 5, 0),
        ("late e\u0301", 5, 0),
        ("la\u200bte \u0007", 4, 0),
        ("ÿþæ late", 7, 3),
        ("", 0, 0),
        ("x" * 101, 101, 101),
    ],
)
def test_characters_in_no_known_token_are_counted(bert, text, characters, unknown):
    found = measure_coverage([text], bert)
    assert (found.num_characters, found.num_unknown_characters) == (characters, unknown)


@pytest.mark.parametrize("text", [CHINESE, THAI, EMOJI, "Łódź ÿ"])
@pytest.mark.parametrize("name", ["roberta", "modernbert"])
def test_bytes_know_every_character(tokenizer, name, text):
    assert measure_coverage([text, "late"], tokenizer(name))[1:] == (
        0,
        *measure_coverage([text, "late"], tokenizer(name))[2:3],
        0,
    )


@pytest.mark.parametrize("name", ["deberta-v2", "bert", "distilbert"])
def test_unknown_tokens_are_those_of_the_vocabulary(tokenizer, name):
    one = tokenizer(name)
    text = f"the train {THAI} 🛸"
    ids = one(text, add_special_tokens=False)["input_ids"]
    found = measure_coverage([text], one)
    assert (found.num_tokens, found.num_unknown_tokens) == (len(ids), ids.count(one.unk_token_id))
    assert found.unknown_characters > 0.3


def test_many_texts_are_sampled_evenly(bert):
    texts = ["late", CHINESE] * 5000
    found = measure_coverage(texts, bert)
    assert found.num_characters < 10_000
    assert measure_coverage(texts[:10], bert).unknown_characters == pytest.approx(7 / 11)


@pytest.mark.parametrize(("unknown", "warns"), [(9, False), (10, True), (57, True)])
def test_warning_begins_at_a_tenth_and_names_key_and_base(unknown, warns):
    assert not Coverage(4, 4, 4, 4).warning("train")  # too few to tell
    warning = Coverage(100, unknown, 10, 1).warning("train")
    assert bool(warning) is warns
    if warns:
        assert warning.startswith(f"{unknown}% of the characters in train are unknown to this base's tokenizer")
        assert "base.model, such as intfloat/multilingual-e5-small" in warning


# --- in tune, check and predict


def classes(folder, base, texts):
    rows = [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(texts)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "english.jsonl").write_text("".join(f'{{"text": "late .", "label": "{label}"}}\n' for label in "ab" * 20))
    data = {"train": "rows.jsonl", "validation": "english.jsonl", "test": None}
    return recipe_in(folder, base, task={"type": "text-classification"}, data=data)


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        ([CHINESE, "the film"] * 4, 0.5),
        ([THAI] * 4, 1.0),
        (["the train was late"] * 4, 0.0),
        (["late " + EMOJI] * 4, 6 / 10),
    ],
)
def test_share_by_split_is_in_ledger_and_warned_of(tmp_path, tiny_base, texts, share):
    progress = Losses()
    ledgers = check(classes(tmp_path, tiny_base, texts), progress=progress).ledgers
    assert ledgers["train"].unknown_characters == pytest.approx(share, abs=0.01)
    assert ledgers["validation"].unknown_characters == 0
    about = [warning for warning in progress.warnings if "unknown to this base's tokenizer" in warning]
    assert [warning.split("%")[0] for warning in about] == (
        [f"{ledgers['train'].unknown_characters:.0%}"[:-1]] if share else []
    )
    assert all("in train are" in warning for warning in about)


@pytest.mark.parametrize("text", [CHINESE, THAI, EMOJI])
def test_predictions_warn_once_for_each_adapter(tuned_store, text):
    bank = peftlab.load("ner-tiny", "ner-place", store=tuned_store, device="cpu")
    bank.predict("Ada left Rome .", adapters="ner-tiny")
    assert bank.warnings == []
    for _ in range(2):
        bank.predict(["Ada left", text], adapters="ner-tiny")
    [warning] = bank.warnings
    assert "the rows for ner-tiny are unknown to this base's tokenizer" in warning
    bank.predict(text, adapters="ner-place")
    assert len(bank.warnings) == 2
    result = CliRunner().invoke(cli, ["predict", "ner-tiny", text, "--store", str(tuned_store), "--json"])
    assert "100% of the characters in the rows for ner-tiny" in " ".join(result.stderr.split())
    assert len(result.stdout.splitlines()) == 1


# --- few validation rows, labels without rows


@pytest.mark.parametrize("rows", [1, 12, 29, 30])
def test_few_validation_rows_are_warned_of(tmp_path, tiny_base, rows):
    recipe = classes(tmp_path, tiny_base, ["late ."] * 40)
    (tmp_path / "english.jsonl").write_text(
        "".join(f'{{"text": "x", "label": "{"ab"[n % 2]}"}}\n' for n in range(rows))
    )
    progress = Losses()
    check(recipe, progress=progress)
    about = [warning for warning in progress.warnings if warning.startswith(f"validation has {rows} rows")]
    assert len(about) == (rows < 30)
    assert all("data.validation" in warning for warning in about)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b", "c"], "label 'c' has no row in train, and cannot be learned."),
        (["a", "c", "b", "d"], "2 labels (c, d) have no row in validation, and cannot be scored."),
        (["a", "b"], ""),
    ],
)
def test_labels_without_rows_are_warned_of(tmp_path, tiny_base, labels, message):
    progress = Losses()
    check(
        classes(tmp_path, tiny_base, ["late ."] * 40),
        overrides={"task.labels": labels},
        progress=progress,
    )
    about = " ".join(warning for warning in progress.warnings if "no row in" in warning)
    assert message in about
    assert bool(about) is bool(message)


# --- what is cut


@pytest.mark.parametrize("odd", ["\u0007", "\x00", "\ufffd", "\u200e"])
def test_deleted_characters_are_not_cut(bert, odd):
    """A word that the tokenizer deletes has no token, but nothing was cut by length."""
    task = TokenClassificationTask(labels=["PER"])
    example = task.read(Row({"tokens": ["Ada", odd, "left"], "tags": ["B-PER", "O", "O"]}, "f:1"))
    [[feature]] = task.encode([example], TextInputs(bert), 64, training=True)
    assert [word for _, word in feature.positions] == [0, 2]
    assert not feature.truncated
    [[cut]] = task.encode([example], TextInputs(bert), 3, training=True)
    assert cut.truncated
