"""The publishing step: write the adapter's files, reload them into a fresh base, and compare logits."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from peftlab.base import Base, lm_head_modules
from peftlab.recipe import recipe_yaml
from peftlab.store import (
    Adapter,
    BaseInfo,
    BaselineInfo,
    BaseMemory,
    DataInfo,
    LedgerInfo,
    Manifest,
    ParameterCounts,
    build_manifest,
)
from peftlab.tasks import Scores
from peftlab.tuning.checkpoints import resume_hint
from peftlab.tuning.publish_checks import check_served, reload_with_peft
from peftlab.tuning.report.files import draw_plots, write_card
from peftlab.tuning.run import Run
from peftlab.tuning.session import TuningSession


def publish(run: Run, scores: Mapping[str, Scores], baselines: BaselineInfo | None, session: TuningSession) -> Adapter:
    """Write the adapter of a trained run to the store, in the main process; all processes return the adapter.

    Raises:
        IntegrityError: the adapter, reloaded into a fresh base, gives other outputs than in training.
        StoreError: the store cannot be written.
    """
    store, seconds, warn, name = session.store, session.seconds, session.progress.warn, run.recipe.name

    def publish_on_main() -> str:
        try:
            return str(store.publish(name, lambda folder: write_adapter(run, scores, baselines, seconds, folder, warn)))
        except Exception as error:
            error.add_note(f"Nothing was published. {resume_hint(store.run_folder(name))}")
            raise

    return store.resolve(run.process_group.broadcast(publish_on_main))


def write_adapter(
    run: Run,
    scores: Mapping[str, Scores],
    baselines: BaselineInfo | None,
    seconds: float,
    folder: Path,
    warn: Callable[[str], None],
) -> Manifest:
    """Write PEFT's files, recipe, plots and model card of a trained run into `folder`, and return the manifest.

    `warn` is told of a plot or card that could not be written.

    Raises:
        IntegrityError: the adapter gives other outputs than in training, reloaded into a fresh base or in a bank.
    """
    config = run.model.peft_config["default"]
    # PEFT saves the local folder of the base; other machines need its name
    config.base_model_name_or_path, config.revision = run.base.files.model, run.base.files.revision
    run.model.save_pretrained(folder, save_embedding_layers=False)
    reloaded = reload_with_peft(run, folder)
    recipe = recipe_yaml(run.recipe, folder)  # `folder` is only renamed later, so relative paths stay valid
    (folder / "recipe.yaml").write_text(recipe, encoding="utf8")
    draw_plots(run, scores, folder, warn)
    manifest = run_manifest(run, scores, seconds, reloaded.difference, baselines)
    check_served(run, Adapter(run.recipe.name, 0, folder, manifest), reloaded)
    write_card(run, manifest, recipe, folder, warn)
    return manifest


def run_manifest(
    run: Run,
    scores: Mapping[str, Scores],
    seconds: float,
    reload_difference: float,
    baselines: BaselineInfo | None = None,
) -> Manifest:
    """The manifest of a trained run."""
    ledger = {split: LedgerInfo.model_validate(ledger.as_dict()) for split, ledger in run.dataset.ledgers.items()}
    return build_manifest(
        run.recipe.name,
        run.task,
        describe_base(run.base, trust_remote_code=run.recipe.base.trust_remote_code),
        method=run.recipe.method.type,
        max_length=run.dataset.max_length,
        parameters=ParameterCounts(trained=run.num_trainable, base=run.base.num_parameters),
        head_modules=tuple(run.base.head_modules),
        seconds=seconds,
        data=DataInfo(sha256=run.dataset.rows.content_hash, ledger=ledger),
        scores=scores,
        reload_difference=reload_difference,
        started_from=run.start.info() if run.start else None,
        baselines=baselines,
        validation=_describe_validation(run),
    )


def _describe_validation(run: Run) -> str | None:
    """How the run was validated, if not by a validation split."""
    if run.has_validation:
        return None
    return f"{len(run.dataset.folds)}-fold cross-validation" if run.dataset.folds else "none"


def describe_base(base: Base, *, trust_remote_code: bool) -> BaseInfo:
    """The manifest's part about a loaded base."""
    modules = dict(base.model.named_modules())
    pretrained_head = tuple(name for name in lm_head_modules(base.model) if isinstance(modules[name], torch.nn.Linear))
    return BaseInfo(
        model=base.files.model,
        revision=base.files.revision,
        fingerprint=base.fingerprint,
        inputs_fingerprint=base.inputs_fingerprint,
        trust_remote_code=trust_remote_code,
        quantization=base.quantization,
        pretrained_head=pretrained_head,
        memory=BaseMemory(fp32=base.num_bytes_fp32, in_memory=base.num_bytes),
    )
