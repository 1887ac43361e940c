"""Merge an adapter into a copy of its base: one plain Transformers model."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from peft import PeftModel

from peftlab.base import model_class, suppress_transformers_output
from peftlab.base.pooled_code import IMPORTS, pooled_model_code
from peftlab.errors import IntegrityError
from peftlab.interop.comparison import compare_logits
from peftlab.interop.generation_files import exported_generation, save_tokenizer
from peftlab.interop.output_folder import new_folder
from peftlab.methods import method_info
from peftlab.runtime.bank import Bank, load
from peftlab.store import Adapter
from peftlab.tasks import Task
from peftlab.tasks.generation.settings import end_tokens
from peftlab.tasks.inputs.inputs import Inputs
from peftlab.tasks.inputs.text import TextInputs

BATCH_SHAPE = (8, 32)  # rows × tokens of the batch on which models are compared
_POOLED_CARD = """\
# {adapter}, merged into its base

A model for {task}. Transformers loads the encoder (`AutoModel`); its classes have no head that pools in this way, so
these lines add it:

```python
import torch
from safetensors.torch import load_file
{imports}

{code}

folder = "path/to/this/folder"

model = {name}()
model.load_state_dict(load_file(f"{{folder}}/model.safetensors"), strict=False)
model.eval()
```
"""


@dataclass(frozen=True)
class Merged:
    """A merged model.

    Attributes:
        adapter: The adapter.
        folder: Where the model was written.
        difference: The largest difference between its logits and those of the adapter in a bank, on random tokens.
        largest_logit: The largest of these logits.
    """

    adapter: Adapter
    folder: Path
    difference: float
    largest_logit: float


def merge(
    name: str,
    folder: str | Path,
    *,
    store: str | Path = "adapters",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Merged:
    """Add an adapter's delta to the weights of its base, and save model and tokenizer as Transformers does.

    The model is loaded again and compared before `folder` appears. Transformers has no class for a head that pools: its
    `AutoModel` loads the encoder, and a README.md shows the code that adds the head. If the adapter was tuned on a
    quantized base, the quantized weights are dequantized first, and the merged weights are not quantized again.

    Args:
        name: `name` or `name@version`.
        folder: It must be empty or not exist.
        store: As for `load`.
        device: As for `load`.
        trust_remote_code: As for `load`.

    Raises:
        StoreError: `folder` is not empty, or cannot be written.
        IntegrityError: the method cannot be merged, the merged model's logits differ, or as for `load`.
        AdapterNotFoundError: no such adapter.
        BaseNotFoundError: its base is not found.
    """
    target = Path(folder)
    with new_folder(target) as temporary:
        bank = load(name, store=store, device=device, precision="fp32", trust_remote_code=trust_remote_code)
        adapter, task = bank.adapter(name), bank.task(name)
        logits = partial(_logits, task, bank.base.inputs_for(task))
        if reason := method_info(adapter.manifest.method).merge_error:
            raise _merge_error(adapter, reason)
        peft_model = bank.full_precision_copy(name)
        expected = logits(peft_model.get_base_model())
        merged_model = _merge_adapter(peft_model, adapter)
        _set_generation(merged_model, task, bank.base.inputs_for(task))
        _save_model(merged_model, temporary)
        _save_processor(bank, task, temporary)
        if task.head.pooling:
            _describe_pooled_head(peft_model.get_base_model(), task, adapter, temporary)
        merged = logits(_load_model(temporary, task, trust_remote_code).to(peft_model.device))
        comparison = compare_logits(merged, expected)
        if not comparison.is_equal:
            raise IntegrityError(
                f"{adapter} was not exported: after merging, {comparison}. Please report this with the adapter."
            )
        served = logits(bank.model(name))
        return Merged(adapter, target, compare_logits(merged, served).difference, comparison.largest_logit)


def _merge_adapter(peft_model: PeftModel, adapter: Adapter) -> transformers.PreTrainedModel:
    try:
        return peft_model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError, TypeError, AttributeError) as error:
        raise _merge_error(adapter, str(error)) from error


def _merge_error(adapter: Adapter, reason: str) -> IntegrityError:
    method = adapter.manifest.method
    return IntegrityError(f"{adapter} ({method}) cannot be merged into its base: {reason.removesuffix('.')}.")


def _save_model(model: transformers.PreTrainedModel, folder: Path) -> None:
    """Save a model without layers that only the shared backbone has, such as BERT's pooler."""
    with torch.device("meta"):
        names = type(model)(model.config).state_dict()
    state = model.state_dict()
    with suppress_transformers_output():
        model.save_pretrained(folder, state_dict={name: state[name] for name in names})


def _describe_pooled_head(model: transformers.PreTrainedModel, task: Task, adapter: Adapter, folder: Path) -> None:
    """Write the code that loads the model with its head, and name the class that Transformers loads without it."""
    code = pooled_model_code(model, task.head, "folder")
    card = _POOLED_CARD.format(imports=IMPORTS, adapter=adapter, task=task.type, code=code, name=type(model).__name__)
    (folder / "README.md").write_text(card, encoding="utf8")
    config = json.loads((folder / "config.json").read_text(encoding="utf8"))
    config["architectures"] = [type(model.base_model).__name__]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf8")


def _save_processor(bank: Bank, task: Task, folder: Path) -> None:
    """Save the processor with which the adapter was tuned, with its chat template."""
    inputs = bank.base.inputs_for(task)
    if isinstance(inputs, TextInputs):
        save_tokenizer(task, inputs, folder)
    else:
        inputs.processor.save_pretrained(folder)


def _set_generation(model: transformers.PreTrainedModel, task: Task, inputs: Inputs) -> None:
    """Let the model generate with the adapter's settings, and end with its end tokens."""
    if isinstance(inputs, TextInputs) and (config := exported_generation(task, inputs, end_tokens(model))):
        model.generation_config = config


def _load_model(folder: Path, task: Task, trust_remote_code: bool) -> transformers.PreTrainedModel:
    with suppress_transformers_output():
        return model_class(folder, task).from_pretrained(folder, trust_remote_code=trust_remote_code).eval()


@torch.inference_mode()
def _logits(task: Task, inputs: Inputs, model: transformers.PreTrainedModel) -> torch.Tensor:
    """A model's logits for random inputs."""
    batch = inputs.random_batch(model, *BATCH_SHAPE)
    return task.head.logits(model(**batch, **task.head.random_extra_inputs(inputs.mask(batch)))).float()
