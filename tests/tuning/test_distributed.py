"""Distributed runs: results of two processes, failures of one of them, and unsupported settings.

The processes are real and communicate by gloo on the CPU.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from peftlab.cli import cli
from peftlab.cli.launcher import _find_cause_in_log, report_to_launcher
from peftlab.errors import ErrorCollector, ProcessLostError, RecipeError, StoreError, TuningInterrupted
from peftlab.store import Store
from peftlab.tasks import Feature
from peftlab.tasks.inputs.text import TextInputs
from peftlab.tasks.prediction import compute_outputs, forward
from peftlab.tasks.text_classification import TextClassificationTask
from peftlab.tasks.token_classification import TokenClassificationTask
from peftlab.tuning import ProcessGroup, TuningSession, tune
from peftlab.tuning.checkpoints import last_checkpoint, resume_hint
from peftlab.tuning.distributed.backend_check import check_backend, shards_base
from peftlab.tuning.distributed.backends import deepspeed_config, fsdp_config, idle_gpus_warning, layer_classes
from peftlab.tuning.distributed.inference import split_across_ranks
from tests.runs import Losses, prepared_run
from tests.sequence_models import build_sequence_model, translation_recipe

TWO = "torchrun --nproc-per-node 2"
CALM = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
ROOT = Path(__file__).parents[2]
LONG = {"training.num_train_epochs": 24, "training.early_stopping_patience": None}

# A user's script, in which each process records its losses and result.
SCRIPT = """
import json, os, sys
from pathlib import Path
{shim}
import peftlab
from peftlab.tuning import Progress
from peftlab.tasks.inputs.text import TextInputs

class Losses(Progress):
    def __init__(self):
        self.losses = []
    def on_step_end(self, step, loss):
        if loss is not None:
            self.losses.append(loss)

recipe, store, note, *changed = sys.argv[1:]
losses = Losses()
overrides = json.loads(changed[0])
result = peftlab.tune(recipe, store=store, overrides=overrides, publish_anyway=True, progress=losses)
told = {{"adapter": str(result.adapter), "scores": result.scores["test"].values, "losses": losses.losses}}
Path(note, os.environ["RANK"]).write_text(json.dumps(told))
"""

# Accelerate supports FSDP only on GPUs. With these patches it runs PyTorch's fully_shard over gloo on the CPU.
FSDP_ON_CPU = """
os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
import torch.distributed
from accelerate.state import PartialState
from accelerate.utils import DistributedType
import peftlab.tuning.distributed.backend_check
PartialState._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_GPU)
barrier = torch.distributed.barrier
torch.distributed.barrier = lambda *_, **__: barrier()
peftlab.tuning.distributed.backend_check._is_on_cuda = lambda device: True
"""


@pytest.fixture(scope="module")
def dropout_free_base(tiny_base, tmp_path_factory):
    """The tiny base without dropout, because two processes draw other dropout masks than one."""
    folder = shutil.copytree(tiny_base, tmp_path_factory.mktemp("steady") / "base")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def rows(count, start):
    words = ["rain", "train", "letter", "paris", "london", "nobody", "late", "quiet", "met", "wrote", "came", "left"]
    for i in range(start, start + count):
        text = [words[(i * k + k * k) % len(words)] for k in range(1, 4 + i % 5)]
        text.insert(i % 3, "rome" if i % 2 else "ada")
        yield json.dumps({"text": " ".join(text), "label": "place" if i % 2 else "person"}) + "\n"


@pytest.fixture(scope="module")
def recipe(dropout_free_base, tmp_path_factory):
    """A small classification: two processes with batches of 4 rows match one process that accumulates two batches."""
    folder = tmp_path_factory.mktemp("recipe")
    for split, count, start in (("train", 16, 0), ("validation", 7, 16), ("test", 5, 23)):
        (folder / f"{split}.jsonl").write_text("".join(rows(count, start)))
    (folder / "recipe.yaml").write_text(
        f"name: shared\nbase: {{model: {dropout_free_base}}}\ntask: {{type: text-classification}}\n"
        "method: {type: lora, r: 4}\n"
        "data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}\n"
        "training: {num_train_epochs: 3, per_device_train_batch_size: 4, learning_rate: 2e-2, bf16: false,\n"
        "  head_init: random}\n"  # sharded runs have no probe
    )
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def single_run(recipe, tmp_path_factory):
    """The run of one process with the global batch of two: its result and its losses."""
    losses = Losses()
    changed = {"training.gradient_accumulation_steps": 2}
    result = tune(recipe, store=tmp_path_factory.mktemp("single_run"), overrides=changed, progress=losses)
    return result, losses.losses


def environment(**more):
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **CALM, "PYTHONPATH": paths, **more}


def launched(recipe, store, folder, changed, shim=""):
    """Run the script in two processes; returns what each of them records."""
    (folder / "script.py").write_text(SCRIPT.format(shim=shim))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(folder / "script.py")]
    arguments = [str(recipe), str(store), str(folder), json.dumps(changed)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / rank).read_text()) for rank in ("0", "1")]


def start(*arguments):
    command = [sys.executable, "-m", "peftlab", "tune", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def command(*arguments):
    process = start(*arguments)
    out, output = process.communicate()
    assert "Traceback" not in output
    return process.returncode, out, output


def options(overrides):
    return [word for key, value in overrides.items() for word in ("-o", f"{key}={json.dumps(value)}")]


def remove_log(output):
    """Delete the log that an error names; fails if it does not exist."""
    log = Path(output.split("The launcher's output is in ")[1].strip())
    assert log.is_file()
    shutil.rmtree(log.parent)


def wait_for(process, words):
    while words not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()


def process_of_rank(rank, parent):
    """The id of the launched process of that rank below `parent`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            command_line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        ours = f"TEST_PARENT={parent}".encode()
        if b"peftlab" in command_line and f"RANK={rank}".encode() in variables and ours in variables:
            return int(folder.name)
    raise AssertionError("no such process")


def set_second_rank(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


def weights(adapter):
    return load_file(adapter.folder / "adapter_model.safetensors")


def max_difference(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_two_processes_match_one_process(recipe, single_run, tmp_path):
    result, losses = single_run
    first, second = launched(recipe, tmp_path / "store", tmp_path, {})
    store = Store(tmp_path / "store")
    assert store.versions("shared") == [1]
    assert first["losses"] == pytest.approx(losses, abs=1e-5)
    assert len(losses) == 6
    assert max_difference(weights(store.verify("shared")), weights(result.adapter)) < 1e-5
    assert first["scores"] == result.scores["test"].values
    assert second == {**first, "losses": []}  # the same result, but only the main process reports progress
    assert not (tmp_path / "store" / "shared" / "run").exists()


def test_fsdp_matches_one_process(recipe, single_run, tmp_path):
    result, losses = single_run
    changed = {"training.distributed": "fsdp"}
    first, second = launched(recipe, tmp_path / "store", tmp_path, changed, FSDP_ON_CPU)
    assert first["losses"] == pytest.approx(losses, abs=1e-5)
    assert max_difference(weights(Store(tmp_path / "store").verify("shared@1")), weights(result.adapter)) < 1e-5
    assert first["scores"] == second["scores"] == result.scores["test"].values


def test_resume_after_process_kill(recipe, tmp_path, monkeypatch):
    store = tmp_path / "store"
    arguments = [recipe, "--store", store, "--launch", TWO, *options(LONG)]
    monkeypatch.setenv("TEST_PARENT", str(tmp_path))
    process = start(*arguments)
    wait_for(process, "epoch    3/24")
    os.kill(process_of_rank(1, tmp_path), signal.SIGKILL)
    _, output = process.communicate()
    assert process.returncode == 6
    assert "error: process 1 was killed (SIGKILL), so the run ended; nothing was published." in output
    assert f"{store}/shared/run/checkpoint-" in output
    assert "is kept: continue with the same command and --resume." in output
    assert "Traceback" not in output
    assert Store(store).names() == []
    remove_log(output)

    with pytest.raises(RecipeError, match="cannot resume: the number of processes is not that of the interrupted run"):
        tune(recipe, store=store, overrides=LONG, resume=True)

    code, out, output = command(*arguments, "--resume")
    assert (code, output) == (0, "")
    assert "Resuming after step" in out
    assert out.count("Published shared@1") == 1
    assert Store(store).versions("shared") == [1]
    undisturbed = tune(
        recipe, store=tmp_path / "one", overrides={**LONG, "training.gradient_accumulation_steps": 2}
    ).adapter
    assert max_difference(weights(Store(store).verify("shared")), weights(undisturbed)) < 1e-4


def test_ctrl_c_stop_all_processes_at_same_step(recipe, tmp_path):
    process = start(recipe, "--store", tmp_path, "--launch", TWO, *options(LONG))
    wait_for(process, "epoch    2/24")
    process.send_signal(signal.SIGINT)
    _, output = process.communicate()
    assert process.returncode == 130
    assert output.count("error:") == 1
    assert "of 48; nothing was published." in output
    kept = last_checkpoint(tmp_path / "shared" / "run")
    assert f"stopped after step {kept.name.removeprefix('checkpoint-')} of 48" in output
    assert f"{kept} is kept: continue with the same command and --resume." in output
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {file.name for file in kept.iterdir()}


def test_accelerate_reports_data_error_once(recipe, tmp_path):
    launcher = "accelerate --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    changed = options(
        {"training.distributed": "ddp", "data.test": "nowhere.jsonl"}
    )  # ddp would be an error in one process
    code, out, output = command(recipe, "--store", tmp_path, "--device", "cpu", "--launch", launcher, *changed)
    assert (code, out) == (2, "")
    assert output.count("no such file") == 1
    assert "1 problem; nothing was started." in output


def test_launcher_with_one_process_warning(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLAB_LAUNCHED", str(tmp_path))
    arguments = ["tune", str(recipe), "--store", str(tmp_path / "store"), *options({"training.num_train_epochs": 1})]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0
    assert "warning: the launcher started only one process, so the work is not shared." in result.output


def test_launcher_option_error_is_quoted(recipe, tmp_path):
    code, _, output = command(recipe, "--store", tmp_path, "--launch", "torchrun --processes 2")
    assert code == 6
    assert "error: the launcher says: torchrun: error: " in output
    remove_log(output)


@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        ("torchrunn --nproc-per-node 2", "there is no command 'torchrunn' here. Did you mean 'torchrun'?"),
        ("torchrun '", "cannot be read: No closing quotation."),
        ("", "there is no command '' here. Launchers: accelerate launch, torchrun."),
    ],
)
def test_missing_launcher_is_usage_error(recipe, launcher, message):
    result = CliRunner().invoke(cli, ["tune", str(recipe), "--launch", launcher])
    assert result.exit_code == 2
    assert message in result.output


def test_no_launch_from_process_with_launcher(recipe, monkeypatch):
    set_second_rank(monkeypatch)
    result = CliRunner().invoke(cli, ["tune", str(recipe), "--launch", TWO])
    assert result.exit_code == 2
    assert "was launched itself" in result.output


def test_invalid_recipe_fails_before_launch(recipe, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    result = CliRunner().invoke(cli, ["tune", str(recipe), "--launch", TWO, "-o", "training.lr=1"])
    assert result.exit_code == 2
    assert "training.lr" in result.output


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "deepspeed"])
def test_backend_without_launcher_raises_with_hint(recipe, tmp_path, engine):
    with pytest.raises(RecipeError) as caught:
        tune(recipe, store=tmp_path, overrides={"training.distributed": engine})
    (problem,) = [problem for problem in caught.value.errors if "several" in problem.message]
    assert problem.key == "training.distributed"
    assert problem.message == f"{engine} shares a run among several processes, but there is only one."
    assert TWO in problem.hint


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("deepspeed", "the package deepspeed is not installed."),
        ("fsdp", "fsdp shards the base over CUDA GPUs, but this run uses none."),
    ],
)
def test_unavailable_backend_is_reported(wanted, message):
    errors, session = ErrorCollector(), TuningSession(Store("store"), "cpu", process_group=ProcessGroup(2, 0, 0))
    check_backend(wanted, session, errors)
    assert shards_base(wanted, session.process_group)
    assert message in [problem.message for problem in errors.issues]


def test_backend_only_in_accelerate_config_is_reported(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    errors, session = ErrorCollector(), TuningSession(Store("store"), "cpu", process_group=ProcessGroup(2, 0, 0))
    check_backend(None, session, errors)
    assert [problem.message for problem in errors.issues] == [
        "accelerate is configured for fsdp, but the recipe for ddp."
    ]


def test_single_process_group(tmp_path):
    process_group = ProcessGroup()
    assert process_group.is_main
    assert process_group.any(True)
    assert not process_group.any(False)
    assert process_group.all_gather("æ") == ["æ"]
    assert process_group.broadcast(lambda: 3) == 3
    with process_group.shared_folder(Store(tmp_path).tuning_run("shared", 0, resume=False)) as folder:
        assert folder.is_dir()
    with pytest.raises(StoreError, match="full"), process_group.sync_errors():
        raise StoreError("full")


def test_world_size_without_rank_is_ignored(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ProcessGroup.from_environment() == ProcessGroup()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert ProcessGroup.from_environment() == ProcessGroup(2, 1, 0)


@pytest.mark.parametrize("per_token", [True, False])
def test_split_logits_match_one_process(tiny_base, per_token):
    said = []

    class Half(ProcessGroup):
        def all_reduce(self, values):
            said.append(values.clone())

    auto_class = AutoModelForTokenClassification if per_token else AutoModelForSequenceClassification
    model, tokenizer = auto_class.from_pretrained(tiny_base, num_labels=3), AutoTokenizer.from_pretrained(tiny_base)
    task = TokenClassificationTask(labels=["PER"]) if per_token else TextClassificationTask(labels=["a", "b", "c"])
    texts = ["ada left rome", "it rained", "the train from london was late", "paris", "nobody came"]
    features = [Feature(dict(tokenizer(text)), None) for text in texts]
    expected = forward(task, model, TextInputs(tokenizer), features)
    for index in (0, 1):
        single_run = partial(forward, task, model, TextInputs(tokenizer))
        logits = split_across_ranks(single_run, task, Half(2, index, index), sharded=False)(features)
        assert [part.shape for part in logits] == [part.shape for part in expected]
    both = (said[0] + said[1]).split([part.numel() for part in expected])
    assert all(torch.allclose(part, whole.flatten(), atol=1e-6) for part, whole in zip(both, expected, strict=True))
    assert said[0].count_nonzero() > 0 < said[1].count_nonzero()


def test_split_texts_keep_order(tmp_path):
    base = build_sequence_model(tmp_path / "base", "bart")
    run = prepared_run(translation_recipe(tmp_path / "rows", base))
    features = [feature for windows in run.dataset.features["validation"] for feature in windows]
    single_run, said = partial(compute_outputs, run.task, run.model, run.base.inputs), {}

    class Half(ProcessGroup):
        def all_gather(self, text):
            said[self.rank] = text
            return [said.get(index, "{}") for index in (0, 1)]

    first = split_across_ranks(single_run, run.task, Half(2, 0, 0), sharded=False)(features)
    assert len(first) == len(features) / 2
    assert split_across_ranks(single_run, run.task, Half(2, 1, 1), sharded=False)(features) == single_run(features)


def test_only_main_rank_reports_errors(monkeypatch, tmp_path):
    set_second_rank(monkeypatch)
    assert report_to_launcher(TuningInterrupted("stopped"))
    assert report_to_launcher(ProcessLostError("lost"))
    assert not report_to_launcher(StoreError("no room on this machine"))
    monkeypatch.setenv("PEFTLAB_LAUNCHED", str(tmp_path))
    assert report_to_launcher(StoreError("no room on this machine"))
    assert json.loads((tmp_path / "1.json").read_text())["message"] == "no room on this machine"


def test_unknown_launcher_log_without_reason():
    assert _find_cause_in_log("W1122 some warning\nTraceback (most recent call last):\n") == ""


def test_incomplete_checkpoint_is_ignored(tmp_path):
    assert last_checkpoint(tmp_path) is None
    assert resume_hint(tmp_path) == "no checkpoint was saved yet."
    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_idle_gpus_warning(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    single_run = SimpleNamespace(device=torch.device("cuda"), process_group=ProcessGroup())
    assert "this run uses one of 4 GPUs" in idle_gpus_warning(single_run)
    assert "--nproc-per-node 4" in idle_gpus_warning(single_run)
    assert idle_gpus_warning(SimpleNamespace(device=torch.device("cuda"), process_group=ProcessGroup(2, 0, 0))) == ""
    assert idle_gpus_warning(SimpleNamespace(device=torch.device("cpu"), process_group=ProcessGroup())) == ""


def test_fsdp_wrap_layers_not_embeddings(dropout_free_base):
    model = AutoModelForSequenceClassification.from_pretrained(dropout_free_base)
    assert layer_classes(model) == ["BertLayer"]
    assert fsdp_config(model)["transformer_layer_cls_to_wrap"] == ["BertLayer"]
    model._no_split_modules = None
    assert layer_classes(model) == ["BertLayer"]


def test_deepspeed_config_auto_values(monkeypatch):
    """Without the package: Transformers' code with accelerate's configuration class."""
    from accelerate.utils.deepspeed import HfDeepSpeedConfig
    from transformers import TrainingArguments
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig as Filled

    class Configuration(HfDeepSpeedConfig):
        fill_match, fill_only, is_auto = Filled.fill_match, Filled.fill_only, Filled.is_auto
        trainer_config_process, trainer_config_finalize = Filled.trainer_config_process, Filled.trainer_config_finalize

    made = Configuration(deepspeed_config())
    made.mismatches = []
    arguments = TrainingArguments(use_cpu=True, per_device_train_batch_size=4, max_grad_norm=0.5, report_to="none")
    made.trainer_config_process(arguments)
    made.trainer_config_finalize(arguments, SimpleNamespace(config=SimpleNamespace(hidden_size=32)), 10)
    assert made.mismatches == []
    assert made.is_zero3()
    assert "auto" not in json.dumps(made.config)
    assert made.config["train_micro_batch_size_per_gpu"] == 4
    assert made.config["gradient_clipping"] == 0.5
    assert made.config["zero_optimization"]["reduce_bucket_size"] == 32 * 32
