"""`peftlab chat`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from peftlab.cli.adapter_names import resolve_tasks, split_adapter_names
from peftlab.cli.console import out, print_error, print_notes
from peftlab.cli.heavy import runtime
from peftlab.cli.help_layout import Command, argument, option
from peftlab.cli.options import device_option, precision_option, quantization_option, store_option, trust_option
from peftlab.errors import PeftlabError, suggest
from peftlab.tasks.generation.reply_text import trim_reply

if TYPE_CHECKING:
    from peftlab.runtime import Bank
    from peftlab.runtime.streaming import ReplyStream

BASE_PROMPT = "base model"


@click.command(cls=Command, example="peftlab chat persona-a,persona-b")
@argument(
    "adapters",
    metavar="ADAPTER[,ADAPTER…]",
    description="Adapters of task causal-lm or preference, each as name or name@version; the first one starts.",
)
@option("--system", metavar="TEXT", help="System prompt of the chat.")
@store_option
@device_option
@quantization_option
@precision_option
@trust_option
def chat(adapters: str, system: str | None, store: str, **settings: Any) -> None:
    """Chat with one or several adapters.

    All adapters share one base model in memory. In the chat, /swap NAME continues with another adapter, /base continues
    with the base model alone, and /help lists all commands. Ctrl-C stops a reply.

    If the input is not a terminal, each line is a message and each reply is printed.
    """
    names = split_adapter_names(adapters)
    for name, task in resolve_tasks(names, store).items():
        try:
            task.outputs.chat_generation(name, task.type)
        except ValueError as error:
            raise click.UsageError(f"{error}.") from None
    bank = runtime.load(*names, store=store, **settings)
    print_notes(bank.warnings)
    if sys.stdin.isatty():
        out.print(f"[bold]{names[0]}[/] on {bank.base.files.model}. /help lists the commands.", style="dim")
    Conversation(bank, names, system).run()


class Conversation:
    """A chat that keeps its messages if the user switches to another adapter."""

    def __init__(self, bank: "Bank", names: list[str], system: str | None) -> None:
        self._bank, self._names = bank, names
        self._adapter, self._base_only = names[0], False
        self.set_system_prompt(system or "")

    def run(self) -> None:
        """Reply to messages and run commands until the input ends."""
        for line in _read_lines(lambda: f"{BASE_PROMPT if self._base_only else self._adapter}> "):
            if line.startswith("/"):
                if not self._run_command(*line.split(maxsplit=1)):
                    return
            elif line:
                self._send(line)

    def _send(self, message: str) -> None:
        """Add a message to the chat, and print and add the reply."""
        self._messages.append({"role": "user", "content": message})
        reply: list[str] = []
        chunks = self._bank.reply(self._messages, adapter=self._adapter, base_only=self._base_only)
        try:
            with closing(chunks), suppress(KeyboardInterrupt):  # Ctrl-C stops the reply, not the chat
                for chunk in chunks:
                    reply.append(chunk)
                    click.echo(chunk, nl=False)
        except (PeftlabError, ValueError) as error:
            self._messages.pop()
            print_error(str(error))
            return
        click.echo()
        print_notes(_cut_notes(chunks))
        self._messages.append({"role": "assistant", "content": trim_reply("".join(reply))})

    def _run_command(self, name: str, argument: str = "") -> bool:
        """Run a command → whether the chat continues."""
        if name not in COMMANDS:
            print_error(f"no command '{name}'. {suggest(name, COMMANDS, what='Commands')}")
        elif argument and not COMMANDS[name].argument:
            print_error(f"{name} takes no argument; found '{argument}'.")
        else:
            COMMANDS[name].run(self, argument)
            return name != "/quit"
        return True

    def swap(self, name: str) -> None:
        """Let another adapter reply from now on."""
        if name in self._names:
            self._adapter, self._base_only = name, False
        else:
            print_error(f"no adapter '{name}' in this chat. {suggest(name, self._names, what='Adapters')}")

    def use_base(self, _: str) -> None:
        """Let the base model reply without an adapter."""
        self._base_only = True

    def set_system_prompt(self, system: str) -> None:
        """Start a new chat with this system prompt; an empty one means none."""
        self._system = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._system)

    def clear(self, _: str) -> None:
        """Start a new chat with the same system prompt."""
        self._messages = list(self._system)

    def undo(self, _: str) -> None:
        """Remove the last message and its reply."""
        self._messages = self._messages[:-2] if len(self._messages) > len(self._system) else self._messages

    def help(self, _: str) -> None:
        """Print the commands."""
        for name, command in COMMANDS.items():
            click.echo(f"  {f'{name} {command.argument}':<14} {command.help}")


class ChatCommand(NamedTuple):
    """A command that starts with a slash."""

    run: Callable[[Conversation, str], None]
    help: str
    argument: str = ""


COMMANDS = {
    "/swap": ChatCommand(Conversation.swap, "continue this chat with another adapter", "NAME"),
    "/base": ChatCommand(Conversation.use_base, "continue this chat with the base model, without an adapter"),
    "/system": ChatCommand(Conversation.set_system_prompt, "start a new chat with this system prompt", "TEXT"),
    "/undo": ChatCommand(Conversation.undo, "remove your last message and its reply"),
    "/clear": ChatCommand(Conversation.clear, "start a new chat"),
    "/help": ChatCommand(Conversation.help, "show this list"),
    "/quit": ChatCommand(lambda *_: None, "leave; Ctrl-D does the same"),
}


def _cut_notes(reply: "ReplyStream") -> Iterator[str]:
    """What was cut of a chat or its reply."""
    if reply.truncated:
        yield "the chat is longer than the adapter's input: its beginning was cut. /clear starts a new chat."
    if reply.finished is False:
        yield "the reply was cut at max_new_tokens."


def _read_lines(prompt: Callable[[], str]) -> Iterator[str]:
    """Read lines from the terminal after a prompt, or from a pipe."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    with suppress(ImportError):
        import_module("readline")  # gives input() arrow keys and a history; missing on Windows
    while True:
        try:
            yield input(prompt()).strip()
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:  # discards the line
            click.echo()
