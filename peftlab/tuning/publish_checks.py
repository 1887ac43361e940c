"""Checks before an adapter is published: plain PEFT and a bank give the outputs of the trained model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from peftlab.base import load_with_head
from peftlab.errors import IntegrityError
from peftlab.runtime.preview import BankPreview
from peftlab.store import Adapter
from peftlab.tasks import Feature
from peftlab.tasks.prediction import forward
from peftlab.tuning.probe import extreme_features
from peftlab.tuning.run import Run

MAX_ROWS = 8
TOLERANCE = 1e-4  # of logits
TOLERANCE_8BIT = 0.05  # 8-bit layers round activations, and amplify what rounding differs before them


@dataclass(frozen=True)
class ReloadedOutputs:
    """Outputs of an adapter that plain PEFT reloaded into a fresh base.

    Attributes:
        difference: The largest difference to the outputs of the trained model.
        features: The rows.
        alone: The output of each row, computed by itself.
        batched: The same, computed in one batch.
    """

    difference: float
    features: Sequence[Feature]
    alone: list[Tensor]
    batched: list[Tensor]


def reload_with_peft(run: Run, folder: Path) -> ReloadedOutputs:
    """Reload the adapter in `folder` with plain PEFT, and compare it with the trained model.

    Raises:
        IntegrityError: the difference is larger than rounding explains.
    """
    section = run.recipe.base
    fresh, _ = load_with_head(
        run.base.files,
        run.task,
        quantization=section.quantization,
        device=run.model.device.type,
        trust_remote_code=section.trust_remote_code,
    )
    run.base.inputs.configure_model(fresh)
    reloaded = PeftModel.from_pretrained(fresh, folder).eval()
    features = probe_features(run)
    trained, batched = (forward(run.task, model, run.base.inputs, features) for model in (run.model, reloaded))
    alone = [forward(run.task, reloaded, run.base.inputs, [feature])[0] for feature in features]
    difference = max_difference(trained, batched)
    if not difference <= TOLERANCE:  # also for NaN
        raise IntegrityError(
            f"the adapter was trained but not published: reloaded into a fresh base, its logits differ by "
            f"{difference:.3g} (allowed {TOLERANCE:g}). Please report this with the recipe."
        )
    return ReloadedOutputs(difference, features, alone, batched)


def check_served(run: Run, adapter: Adapter, expected: ReloadedOutputs) -> None:
    """Compare the outputs of a bank with those of plain PEFT, for rows alone and in one batch.

    Raises:
        IntegrityError: the difference is larger than rounding explains.
    """
    bank = BankPreview(adapter, device=run.model.device.type)
    alone = [bank.outputs([feature])[0] for feature in expected.features]
    tolerance = TOLERANCE_8BIT if run.base.quantization == "8bit" else TOLERANCE
    for outputs, peft_outputs, how in (
        (alone, expected.alone, "by itself"),
        (bank.outputs(expected.features), expected.batched, "in a batch"),
    ):
        difference, allowed = max_difference(outputs, peft_outputs), tolerance * max(1.0, _largest(peft_outputs))
        if not difference <= allowed:
            raise IntegrityError(
                f"the adapter was trained but not published: for a row {how}, a bank gives other logits than plain "
                f"PEFT, by {difference:.3g} (allowed {allowed:.3g}). Please report this with the recipe."
            )


def probe_features(run: Run) -> list[Feature]:
    """Labelled rows for the comparison: the extreme ones, then the first."""
    chosen = extreme_features(run.dataset)
    others = (feature for feature in run.train_features if not any(feature is one for one in chosen))
    return [*chosen, *others][:MAX_ROWS]


def max_difference(outputs: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest difference between outputs of the same rows; infinite if their shapes differ."""
    pairs = list(zip(outputs, others, strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return float("inf")
    return max((float((one - other).abs().max()) for one, other in pairs if one.numel()), default=0.0)


def _largest(outputs: Sequence[Tensor]) -> float:
    finite = [output[torch.isfinite(output)] for output in outputs]
    return max((float(output.abs().max()) for output in finite if output.numel()), default=0.0)
