"""The publishing step: write the adapter's files, reload them into a fresh base, and compare logits."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from peft import PeftModel

from peftlab.base import Base, lm_head_modules, load_with_head
from peftlab.errors import IntegrityError
from peftlab.recipe import recipe_yaml
from peftlab.store import Adapter, BaseInfo, BaseMemory, DataInfo, LedgerInfo, Manifest, ParameterCounts, build_manifest
from peftlab.tasks import Scores
from peftlab.tasks.prediction import forward
from peftlab.tuning.checkpoints import resume_hint
from peftlab.tuning.report.files import draw_plots, write_card
from peftlab.tuning.run import Run
from peftlab.tuning.session import TuningSession

NUM_PROBE_ROWS = 8
TOLERANCE = 1e-4  # of logits


def publish(run: Run, scores: Mapping[str, Scores], session: TuningSession) -> Adapter:
    """Write the adapter of a trained run to the store, in the main process; all processes return the adapter.

    Raises:
        IntegrityError: the adapter, reloaded into a fresh base, gives other outputs than in training.
        StoreError: the store cannot be written.
    """
    store, seconds, warn, name = session.store, session.seconds, session.progress.warn, run.recipe.name

    def publish_on_main() -> str:
        try:
            return str(store.publish(name, lambda folder: write_adapter(run, scores, seconds, folder, warn)))
        except Exception as error:
            error.add_note(f"Nothing was published. {resume_hint(store.run_folder(name))}")
            raise

    return store.resolve(run.process_group.broadcast(publish_on_main))


def write_adapter(
    run: Run, scores: Mapping[str, Scores], seconds: float, folder: Path, warn: Callable[[str], None]
) -> Manifest:
    """Write PEFT's files, recipe, plots and model card of a trained run into `folder`, and return the manifest.

    `warn` is told of a plot or card that could not be written.

    Raises:
        IntegrityError: the adapter, reloaded into a fresh base, gives other outputs than in training.
    """
    config = run.model.peft_config["default"]
    # PEFT saves the local folder of the base; other machines need its name
    config.base_model_name_or_path, config.revision = run.base.files.model, run.base.files.revision
    run.model.save_pretrained(folder, save_embedding_layers=False)
    difference = check_reloaded(run, folder)
    recipe = recipe_yaml(run.recipe, folder)  # `folder` is only renamed later, so relative paths stay valid
    (folder / "recipe.yaml").write_text(recipe, encoding="utf8")
    draw_plots(run, scores, folder, warn)
    manifest = run_manifest(run, scores, seconds, difference)
    write_card(run, manifest, recipe, folder, warn)
    return manifest


def check_reloaded(run: Run, folder: Path) -> float:
    """Largest difference between the logits of the trained model and of the adapter reloaded with plain PEFT.

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
    reloaded = PeftModel.from_pretrained(fresh, folder).eval()
    probe = run.train_features[:NUM_PROBE_ROWS]
    trained, loaded = (forward(run.task, model, run.base.inputs, probe) for model in (run.model, reloaded))
    difference = max(float((a - b).abs().max()) for a, b in zip(trained, loaded, strict=True))
    if not difference <= TOLERANCE:  # also for NaN
        raise IntegrityError(
            f"the adapter was trained but not published: reloaded into a fresh base, its logits differ by "
            f"{difference:.3g} (allowed {TOLERANCE:g}). Please report this with the recipe."
        )
    return difference


def run_manifest(run: Run, scores: Mapping[str, Scores], seconds: float, reload_difference: float) -> Manifest:
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
    )


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
