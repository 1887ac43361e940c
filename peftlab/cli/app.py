"""The `peftlab` command: its subcommands, and the one place that turns errors into messages and exit codes."""

import errno
import os
import sys
import warnings
from typing import Any

import click

from peftlab.base.quantization import silence_bitsandbytes
from peftlab.cli.adapters import adapters
from peftlab.cli.bench import bench
from peftlab.cli.chat import chat
from peftlab.cli.check import check
from peftlab.cli.console import print_error, print_recipe_error
from peftlab.cli.evaluate import evaluate
from peftlab.cli.export import export
from peftlab.cli.help_layout import Group, write_exit_codes
from peftlab.cli.launcher import report_to_launcher, report_unexpected_error
from peftlab.cli.predict import predict
from peftlab.cli.recipe import recipe
from peftlab.cli.tune import tune
from peftlab.errors import PeftlabError, RecipeError, StoreError, TuningInterrupted

SECTIONS = {
    "Train": ["check", "tune"],
    "Use": ["predict", "chat", "evaluate"],
    "Manage": ["adapters", "export"],
    "Look up and measure": ["recipe", "bench"],
}
EXAMPLE = """\
peftlab tune recipes/ner-lora.yaml
peftlab predict ner-clinic "The patient took two paracetamol."\
"""
WRITE_ERRORS = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT)


class RootGroup(Group):
    """The top-level group: prints every error that a user can meet, and exits with the code of its class."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; see `click.Group.invoke`."""
        try:
            return super().invoke(ctx)
        except PeftlabError as error:
            _print_unless_reported(error)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            print_error("stopped.")
            ctx.exit(TuningInterrupted.exit_code)
        except OSError as error:
            if error.errno not in WRITE_ERRORS:
                report_unexpected_error(error)
                raise
            notes = _notes(error) or " Nothing was published."
            print_error(f"{error.strerror}: {error.filename or 'a file being written'}.{notes}")
            ctx.exit(StoreError.exit_code)
        except Exception as error:
            report_unexpected_error(error)
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes below the commands."""
        write_exit_codes(formatter)


@click.group(
    cls=RootGroup, sections=SECTIONS, example=EXAMPLE, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="peftlab")
def cli() -> None:
    """Train many small adapters for one frozen base model.

    A recipe is a YAML file that names a base model, a task, a method and data.
    `peftlab tune` trains the adapter that a recipe describes and publishes it to a store.
    `peftlab predict` runs any number of adapters on one base model in memory.
    """


for command in (check, tune, predict, chat, evaluate, adapters, export, recipe, bench):
    cli.add_command(command)


def main() -> None:
    """Entry point of the `peftlab` command."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    silence_bitsandbytes()  # PEFT imports bitsandbytes even if nothing is quantized
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)  # raised between PEFT and Transformers
        warnings.filterwarnings("ignore", category=UserWarning, module="peft")
    cli()


def _print_unless_reported(error: PeftlabError) -> None:
    """Print an error, unless this process was launched by another one that prints it."""
    if report_to_launcher(error):
        return
    if isinstance(error, RecipeError):
        print_recipe_error(error)
    else:
        print_error(f"{error}{_notes(error)}")


def _notes(error: BaseException) -> str:
    """What was added to an error on its way, such as how to resume."""
    return "".join(f" {note}" for note in getattr(error, "__notes__", ()))
