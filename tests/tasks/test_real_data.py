"""The readers on real files, where they are at hand; skipped, with the reason, where they are not."""

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from peftlab.data import load_rows
from peftlab.errors import ErrorCollector
from peftlab.recipe import DataSection, TokenClassification
from peftlab.tasks import build_task
from tests.conftest import shared_data

POLITICS = ("ner_crossner/politics/train.txt", "ner_crossner/politics/dev.txt", "ner_crossner/politics/test.txt")
WNUT17 = ("ner_wnut17/wnut17train.conll", "ner_wnut17/emerging.dev.conll", "ner_wnut17/emerging.test.annotated")


@pytest.mark.parametrize(
    ("files", "rows", "types"),
    [(POLITICS, (200, 541, 651), 9), (WNUT17, (3394, 1009, 1287), 6)],
    ids=["politics", "wnut17"],
)
def test_all_sentences_and_entities_are_read(files, rows, types):
    train, validation, test = (str(shared_data(*file.split("/"))) for file in files)
    with ErrorCollector() as errors:
        loaded = load_rows(DataSection(train=train, validation=validation, test=test), errors)
        task, examples, ledgers = build_task(TokenClassification(type="token-classification"), loaded, errors)
    assert len(task.labels) == types
    assert tuple(ledger.read for ledger in ledgers.values()) == rows
    for name, split in loaded:
        expected = sum(len(get_entities(row.fields["tags"])) for row in split.rows)
        assert sum(len(example.spans) for example in examples[name]) == expected
