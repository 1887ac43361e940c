"""An adapter folded into a copy of its base: one plain Transformers model."""

import copy
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from peftlab.base import suppress_transformers_output
from peftlab.errors import IntegrityError, StoreError
from peftlab.methods import method_info
from peftlab.runtime.bank import Bank, load
from peftlab.store import Adapter, make_readable
from peftlab.tasks import Task

TOLERANCE = 1e-4  # of the largest logit: merging rounds each weight once
PROBE = (8, 32)  # rows × tokens


@dataclass(frozen=True)
class Merged:
    """A model in `folder` that is the base with the adapter folded in.

    `difference` is the largest between its logits and those that the adapter is served with, `largest` the largest
    logit, both on random tokens.
    """

    adapter: Adapter
    folder: Path
    difference: float
    largest: float


def merge(
    name: str,
    folder: str | Path,
    *,
    store: str | Path = "adapters",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Merged:
    """Write the base with an adapter's delta added to its weights, and the tokenizer, as Transformers saves a model.

    It is read back and compared before `folder` appears. Where the adapter was tuned on a quantized base, the weights
    that this one is rounded to are made whole first, and nothing is rounded again.

    Args:
        name: `name` or `name@version`.
        folder: Must be empty or not be there.
        store, device, trust_remote_code: As for `load`.

    Raises:
        StoreError: `folder` holds something, or cannot be written.
        IntegrityError: the adapter's method cannot be merged, the merged model answers otherwise, or as `load` says.
        AdapterNotFoundError: no such adapter.
        BaseNotFoundError: its base is nowhere.
    """
    target = Path(folder)
    check_empty(target)
    with appearing(target) as draft:
        bank = load(name, store=store, device=device, precision="fp32", trust_remote_code=trust_remote_code)
        adapter, task = bank.adapter(name), bank.task(name)
        if reason := method_info(adapter.manifest.method).merge_conflict:
            raise _merge_error(adapter, reason)
        whole = bank.full_precision_copy(name)
        expected = _probe(task, whole.get_base_model())
        _save(_folded(whole, adapter), draft)
        _tokenizer(bank, task).save_pretrained(draft)
        found = _probe(task, _read_back(draft, task, trust_remote_code).to(whole.device))
        difference, largest = _difference(found, expected), float(expected.abs().max())
        if not difference <= TOLERANCE * largest:  # also for NaN
            raise IntegrityError(
                f"{adapter} was not exported: merged, its logits (up to {largest:.3g}) differ by {difference:.3g}. "
                "Please report this with the adapter."
            )
        return Merged(adapter, target, _difference(found, _probe(task, bank.model(name))), largest)


def _tokenizer(bank: Bank, task: Task) -> PreTrainedTokenizerBase:
    """As the adapter was tuned with it, chat template included."""
    tokenizer = copy.copy(bank.base.inputs_for(task).processor)
    tokenizer.chat_template = task.state.get("chat_template") or tokenizer.chat_template
    return tokenizer


def _folded(adapted: PeftModel, adapter: Adapter) -> transformers.PreTrainedModel:
    try:
        return adapted.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError, TypeError, AttributeError) as error:
        raise _merge_error(adapter, str(error)) from error


def _merge_error(adapter: Adapter, reason: str) -> IntegrityError:
    method = adapter.manifest.method
    return IntegrityError(f"{adapter} ({method}) cannot be merged into its base: {reason.removesuffix('.')}.")


def _difference(some: torch.Tensor, others: torch.Tensor) -> float:
    return float((some - others).abs().max())


def check_empty(target: Path) -> None:
    """Raises StoreError if a folder to write is there and holds something."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise StoreError(f"{target} is there already. Name a new folder, or remove that one first.")


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `target` if all goes well."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror or error}.") from error
    try:
        yield draft
        make_readable(draft)
        draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _save(model: transformers.PreTrainedModel, folder: Path) -> None:
    """Without what the shared backbone has and this class of model leaves out, such as BERT's pooler."""
    with torch.device("meta"):
        own = type(model)(model.config).state_dict()
    state = model.state_dict()
    with suppress_transformers_output():
        model.save_pretrained(folder, state_dict={name: state[name] for name in own})


def _read_back(folder: Path, task: Task, trust_remote_code: bool) -> transformers.PreTrainedModel:
    model_class = getattr(transformers, task.head.auto_class)
    with suppress_transformers_output():
        return model_class.from_pretrained(folder, trust_remote_code=trust_remote_code).eval()


@torch.inference_mode()
def _probe(task: Task, model: transformers.PreTrainedModel) -> torch.Tensor:
    """Logits on random tokens, the same for every model of one vocabulary."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, PROBE, generator=generator).to(model.device)
    written = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    return task.head.logits(model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **written)).float()
