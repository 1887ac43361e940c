"""Show a tuning run: a progress bar in a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Self

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from peftlab.cli.console import bar_for, megabytes, out, score_tables, table
from peftlab.data import Ledger
from peftlab.store import Manifest
from peftlab.tasks import TASKS, Task
from peftlab.tasks.inputs.encoding import ProgressCallback
from peftlab.tuning import Progress as Listener
from peftlab.tuning import TuningResult

if TYPE_CHECKING:
    from peftlab.base import Base


MIN_SHARE = 0.001
"""Smaller shares of unknown text are not printed."""


class TuningDisplay(Listener):
    """Prints the progress of a run. As a context manager it removes the bar in any case."""

    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("[green]{task.fields[score]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=out,
            disable=not out.is_terminal,
        )
        self.task_id: TaskID | None = None
        self.loss = float("nan")
        self.epochs = self.total = self.first_step = self.step = 0
        self.began = time.monotonic()
        self.main_score = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def track_encoding(self, split: str) -> AbstractContextManager[ProgressCallback]:
        """Show a bar while a split is encoded."""
        return bar_for(f"encoding {split}")

    def on_data_encoded(self, task: Task, ledgers: Mapping[str, Ledger]) -> None:
        """Print the ledger as a table."""
        self.main_score = task.metric.name
        out.print(ledger_table(task.targets.noun, ledgers))
        for split, ledger in ledgers.items():
            for reason, count in {**ledger.dropped, **ledger.warnings}.items():
                out.print(Text(f"  {split}: {count} × {reason}", "dim"))
            if ledger.unknown_tokens >= MIN_SHARE or ledger.unknown_characters >= MIN_SHARE:
                shares = f"{ledger.unknown_tokens:.1%} of the tokens, {ledger.unknown_characters:.1%} of the characters"
                out.print(Text(f"  {split}: {shares} unknown to the tokenizer", "dim"))

    def on_base_loaded(self, base: "Base", num_trainable: int) -> None:
        """Print the base model, its size, and the number of trainable parameters."""
        out.print(f"\n[bold]Base[/]  {escape(base.files.model)}, from {base.files.source}, on {base.model.device}")
        precision = (
            f"in {base.quantization}; in fp32 {megabytes(base.num_bytes_fp32)}" if base.quantization else "in fp32"
        )
        out.print(f"      {megabytes(base.num_bytes)} of memory {precision}")
        out.print(
            f"      {num_trainable:,} trainable parameters, {num_trainable / base.num_parameters:.2%} "
            f"of the base model's {base.num_parameters:,}"
        )
        if base.pooling:
            out.print(f"      head: {base.pooling}")
        out.print()

    def warn(self, message: str) -> None:
        """Print a warning."""
        out.print(Text(f"warning: {message}", "yellow"))

    def info(self, message: str) -> None:
        """Print a note."""
        out.print(Text(message, "dim"))

    def track_activation_caching(self, split: str) -> AbstractContextManager[ProgressCallback]:
        """Show a bar while the outputs of the frozen layers are computed."""
        return bar_for(f"frozen layers, {split}")

    def track_cross_validation(self) -> AbstractContextManager[ProgressCallback]:
        """Show a bar while models are trained for the folds."""
        return bar_for("cross-validation", console=out)

    def on_train_begin(self, total_steps: int, epochs: int, completed_steps: int) -> None:
        """Start the bar."""
        self.epochs, self.total, self.first_step = epochs, total_steps, completed_steps
        self.began = time.monotonic()
        if completed_steps:
            out.print(f"Resuming after step {completed_steps} of {total_steps}.")
        self.task_id = self.bar.add_task("tuning", total=total_steps, completed=completed_steps, loss="–", score="")
        self.bar.start()

    def on_step_end(self, step: int, loss: float | None) -> None:
        """Update the bar."""
        self.loss, self.step = self.loss if loss is None else loss, step
        if self.task_id is not None:
            self.bar.update(self.task_id, completed=step, loss=f"{self.loss:.3f}")

    def on_epoch_loss(self, loss: float) -> None:
        """Keep the mean loss of the epoch for its line."""
        self.loss = loss

    def on_epoch_end(self, epoch: float, scores: Mapping[str, float], *, best: bool) -> None:
        """Print one line per epoch above the bar."""
        value = scores[self.main_score]
        best_mark = "  [green]best so far[/]" if best else ""
        eta = "" if out.is_terminal else f"  ETA {self._eta()}"
        out.print(
            f"epoch {epoch:>4.3g}/{self.epochs}  loss {self.loss:.3f}  "
            f"validation {self.main_score} [bold]{value:.3f}[/]{best_mark}{eta}"
        )
        if self.task_id is not None:
            self.bar.update(self.task_id, score=f"{self.main_score} {value:.3f}")

    def on_unscored_epoch_end(self, epoch: float) -> None:
        """Print the loss above the bar."""
        out.print(f"epoch {epoch:>4.3g}/{self.epochs}  loss {self.loss:.3f}")

    def on_train_end(self, stopped_early: bool) -> None:
        """Remove the bar."""
        self.bar.stop()
        if stopped_early:
            out.print("Stopped early: the validation score no longer improves.")
        out.print("Scoring the adapter, publishing it, and comparing it after a reload …\n")

    def _eta(self) -> str:
        seconds_per_step = (time.monotonic() - self.began) / max(1, self.step - self.first_step)
        seconds = round(seconds_per_step * (self.total - self.step))
        return f"{seconds // 60}:{seconds % 60:02}"


def ledger_table(targets: str, ledgers: Mapping[str, Ledger]) -> Table:
    """Make a table of the used, dropped and truncated rows of each split."""
    made = table("Data", "", "rows read", "used", "dropped", "truncated", targets, "lost")
    for split, ledger in ledgers.items():
        counts = (
            ledger.read,
            ledger.used,
            sum(ledger.dropped.values()),
            ledger.truncated,
            ledger.targets,
            ledger.num_lost_targets,
        )
        made.add_row(split, *(f"{count:,}" for count in counts))
    return made


def print_result(result: TuningResult, store: str) -> None:
    """Print the scores, the folder of the adapter, and the command that uses it; last, if it is below the probe."""
    adapter = result.adapter
    if split := adapter.manifest.main_split:
        out.print(score_tables(f"{split.capitalize()} scores", result.scores[split]))
    minutes, seconds = divmod(round(result.seconds), 60)
    out.print(
        f"\n[bold green]Published[/] {adapter} after {minutes}:{seconds:02} min, "
        f"{megabytes(adapter.size)}, in {escape(str(adapter.folder))}"
    )
    if (curves := adapter.folder / "curves.png").is_file():
        out.print(f"Curves    {escape(str(curves))}")
    store_option = "" if store == "adapters" else f" --store {escape(store)}"
    out.print(
        f"Use it    peftlab predict {adapter.name}{store_option} {escape(TASKS[result.task.type].example(result.task))}"
    )
    print_baselines(adapter.manifest)


def print_baselines(manifest: Manifest) -> None:
    """Print the score beside those of the baselines; if it is below the linear probe, say so and what to try."""
    if not (baselines := manifest.baselines):
        return
    out.print(Text(f"Baselines {baselines}"))
    if not baselines.is_above_probe:
        out.print(Text(f"The adapter is below the linear probe on the frozen base. {baselines.hint}", "yellow"))
