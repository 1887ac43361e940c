"""AdaLoRA's part of a run: after every step ranks are shared out anew, and the loss keeps directions orthogonal."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback

from peftlab.errors import ErrorCollector
from peftlab.recipe import AdaLora
from peftlab.tuning.progress import Progress
from peftlab.tuning.run import Run

STATE = "rank_allocation.safetensors"
MOMENTS = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaLoraCallback(TrainerCallback):
    """Tells PEFT's AdaLoRA how many steps there are and each one that is done, and keeps its state in checkpoints.

    Masked directions stay in the adapter as zeros: PEFT's own way, to cut them out on saving, makes a checkpoint that
    training cannot go on from.
    """

    def __init__(self, run: Run, section: AdaLora, progress: Progress) -> None:
        self.tuner, self.section, self.progress = run.model.base_model, section, progress
        self.config = run.model.peft_config["default"]
        self.pattern: dict[str, list[bool]] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Work out the schedule, and take up the state of the checkpoint that the run goes on from.

        Raises:
            RecipeError: there are no steps in which ranks could fall.
        """
        self._schedule(state.max_steps)
        if state.global_step:
            self._recall(_checkpoint(args, state) / STATE)

    def _schedule(self, steps: int) -> None:
        first = steps // 10 if self.section.tinit is None else self.section.tinit
        last = 3 * steps // 10 if self.section.tfinal is None else self.section.tfinal
        with ErrorCollector() as errors:
            if first + last >= steps:
                message = f"{first} steps before ranks fall and {last} after (tfinal) leave none of this run's {steps}."
                errors.add(message, key="method.tinit", hint="Lower tinit or tfinal, or train for more epochs.")
        self.config.tinit, self.config.tfinal, self.config.total_step = first, last, steps

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One step is done, its gradients still there."""
        self.config.rank_pattern = self.pattern
        self.tuner.update_and_allocate(state.global_step + 1)
        self.pattern, self.config.rank_pattern = self.config.rank_pattern, None

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Beside Trainer's files."""
        moments = {f"{kind}/{name}": tensor for kind in MOMENTS for name, tensor in self._moments(kind).items()}
        metadata = {"rank_pattern": json.dumps(self.pattern)}
        save_file(moments, _checkpoint(args, state) / STATE, metadata=metadata)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say so where the best checkpoint is one from before ranks had fallen."""
        if (rank := average_rank(self.tuner)) > self.config.target_r:
            self.progress.warn(
                f"the best epoch came before ranks had fallen: they are {rank:.1f} on average, not target_r: "
                f"{self.config.target_r}."
            )

    def _moments(self, kind: str) -> dict[str, Tensor]:
        moments: dict[str, Tensor] = getattr(self.tuner.rankallocator, kind)
        return moments

    def _recall(self, file: Path) -> None:
        if not file.is_file():
            self.progress.warn(f"{file} is missing: which directions matter is learned anew from here on.")
            return
        with safe_open(file, framework="pt", device=str(self.tuner.device)) as state:
            self.pattern = json.loads(state.metadata()["rank_pattern"])
            for key in state.keys():  # noqa: SIM118  # it is no dictionary
                kind, _, name = key.partition("/")
                self._moments(kind)[name] = state.get_tensor(key)


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def average_rank(model: torch.nn.Module) -> float:
    """Directions that are not masked, a layer."""
    ranks = [int(p.count_nonzero()) for name, p in model.named_parameters() if ".lora_E." in name]
    return sum(ranks) / len(ranks)


def orthogonality_loss(model: torch.nn.Module) -> Tensor:
    """‖P Pᵀ - I‖ of every P and Q, on average (equation 4 of the paper, with PEFT's norm)."""
    squares = [p @ p.T if ".lora_A." in name else p.T @ p for name, p in _directions(model)]
    return torch.stack([(s - torch.eye(len(s), device=s.device)).norm() for s in squares]).mean()


def _directions(model: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return [(n, p) for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n]
