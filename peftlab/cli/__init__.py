"""The command line: each command parses, calls one function and prints."""

import errno
import os
import sys
import warnings
from typing import Any

import click

from peftlab.base.quantization import silence_bitsandbytes
from peftlab.errors import PeftlabError, RecipeError

EXIT_CODES = """\b
Exit codes:
  0    done
  1    an unforeseen fault; please report it
  2    the command, the recipe or the data is wrong
  3    an adapter, a base or a device is not there
  4    an adapter is damaged, or does not fit its base
  5    the store or a disk cannot be written, or an adapter is larger than --memory
  6    a process of a run on several devices was lost
  130  stopped by Ctrl-C
"""


class Commands(click.Group):
    """Turns every error a user can meet into its sentence and exit code, in this one place."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see `click.Group.invoke`."""
        from peftlab.cli.console import print_error, print_recipe_error
        from peftlab.cli.launcher import hand_over, hand_over_fault

        try:
            return super().invoke(ctx)
        except PeftlabError as error:
            if hand_over(error):
                pass
            elif isinstance(error, RecipeError):
                print_recipe_error(error)
            else:
                print_error(str(error))
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            print_error("stopped.")
            ctx.exit(130)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
                hand_over_fault(error)
                raise
            print_error(f"{error.strerror}: {error.filename or 'a file being written'}. Nothing was published.")
            ctx.exit(5)
        except Exception as fault:
            hand_over_fault(fault)
            raise


@click.group(cls=Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="peftlab")
def cli() -> None:
    """One frozen base model, many small experts.

    A recipe (one YAML file) pairs a base model with a task, a method and data. `peftlab tune` trains the small adapter
    it asks for and publishes it to a store; `peftlab predict` puts any number of adapters beside one resident base.
    """


def main() -> None:
    """Entry point of the `peftlab` command."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    silence_bitsandbytes()  # PEFT imports it whether or not anything is quantized
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)  # between PEFT and Transformers, not for the user
        warnings.filterwarnings("ignore", category=UserWarning, module="peft")
    cli()


def _register() -> None:
    from peftlab.cli.adapters import adapters
    from peftlab.cli.bench import bench
    from peftlab.cli.chat import chat
    from peftlab.cli.check import check
    from peftlab.cli.evaluate import evaluate
    from peftlab.cli.export import export
    from peftlab.cli.import_adapter import import_adapter
    from peftlab.cli.predict import predict
    from peftlab.cli.recipe import recipe
    from peftlab.cli.tune import tune

    for command in (check, tune, predict, chat, evaluate, export, adapters, recipe, bench):
        cli.add_command(command)
    adapters.add_command(import_adapter)


_register()
