"""AdaLoRA during training: ranks are reallocated after every step, and a loss term keeps directions orthogonal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback

from peftlab.errors import ErrorCollector
from peftlab.recipe import AdaLora

STATE_FILE = "rank_allocation.safetensors"
MOMENTS = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaLoraCallback(TrainerCallback):
    """Calls PEFT's rank allocator after each step, and keeps its state in checkpoints.

    Masked directions stay in the adapter as zeros: PEFT itself removes them on saving, and training cannot resume from
    such a checkpoint.
    """

    def __init__(self, model: PeftModel, section: AdaLora, warn: Callable[[str], None]) -> None:
        self.tuner: Any = model.base_model
        self.section, self.warn = section, warn
        self.config: Any = model.peft_config["default"]
        self.pattern: dict[str, list[bool]] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the schedule, and restore the state of the checkpoint that the run resumes from.

        Raises:
            RecipeError: the schedule leaves no steps in which ranks can be reduced.
        """
        self._set_schedule(state.max_steps)
        if state.global_step:
            self._restore(_checkpoint(args, state) / STATE_FILE)
        else:
            self.tuner.rankallocator.reset_ipt()  # a model may be trained again from its initial weights

    def _set_schedule(self, steps: int) -> None:
        first = steps // 10 if self.section.tinit is None else self.section.tinit
        last = 3 * steps // 10 if self.section.tfinal is None else self.section.tfinal
        with ErrorCollector() as errors:
            if first + last >= steps:
                message = (
                    f"ranks are reduced after step {first} (tinit) and before the last {last} (tfinal) of only {steps}."
                )
                errors.add(message, key="method.tinit", hint="Lower tinit or tfinal, or train for more epochs.")
        self.config.tinit, self.config.tfinal, self.config.total_step = first, last, steps

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Reallocate the ranks before the step's gradients are reset."""
        self.config.rank_pattern = self.pattern
        self.tuner.update_and_allocate(state.global_step + 1)
        self.pattern, self.config.rank_pattern = self.config.rank_pattern, None

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the allocator's state in the checkpoint's folder."""
        moments = {f"{moment}/{name}": tensor for moment in MOMENTS for name, tensor in self._moments(moment).items()}
        metadata = {"rank_pattern": json.dumps(self.pattern)}
        save_file(moments, _checkpoint(args, state) / STATE_FILE, metadata=metadata)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Warn if the best checkpoint was saved before the ranks were reduced."""
        if (rank := average_rank(self.tuner)) > self.config.target_r:
            self.warn(
                f"the best epoch came before ranks were reduced: they are {rank:.1f} on average, not target_r: "
                f"{self.config.target_r}."
            )

    def _moments(self, name: str) -> dict[str, Tensor]:
        moments: dict[str, Tensor] = getattr(self.tuner.rankallocator, name)
        return moments

    def _restore(self, file: Path) -> None:
        if not file.is_file():
            self.warn(f"{file} is missing: the importance of directions is estimated again from this step on.")
            return
        with safe_open(file, framework="pt", device=str(self.tuner.device)) as state:
            self.pattern = json.loads(state.metadata()["rank_pattern"])
            for key in state.keys():  # noqa: SIM118  # not a dictionary
                moment, _, name = key.partition("/")
                self._moments(moment)[name] = state.get_tensor(key)


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def average_rank(model: torch.nn.Module) -> float:
    """The average over layers of the number of directions that are not masked."""
    ranks = [int(p.count_nonzero()) for name, p in model.named_parameters() if ".lora_E." in name]
    return sum(ranks) / len(ranks)


def orthogonality_loss(model: torch.nn.Module, section: AdaLora) -> Tensor:
    """`mean_orthogonality` times its weight in the recipe."""
    return section.orth_reg_weight * mean_orthogonality(model)


def mean_orthogonality(model: torch.nn.Module) -> Tensor:
    """‖P Pᵀ - I‖ of every P and Q, on average (equation 4 of the paper, with PEFT's norm)."""
    squares = [p @ p.T if ".lora_A." in name else p.T @ p for name, p in _directions(model)]
    return torch.stack([(s - torch.eye(len(s), device=s.device)).norm() for s in squares]).mean()


def _directions(model: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return [(n, p) for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n]
