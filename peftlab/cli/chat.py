"""`peftlab chat`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from peftlab.cli.options import device_option, precision_option, quantization_option, store_option, trust_option
from peftlab.cli.predict import resolve_first
from peftlab.errors import PeftlabError, suggest

if TYPE_CHECKING:
    from peftlab.runtime import Bank

BASE = "the base"


@click.command()
@click.argument("adapters", metavar="ADAPTER[,ADAPTER…]")
@click.option("--system", metavar="TEXT", help="What the system says at the beginning.")
@store_option
@device_option
@quantization_option
@precision_option
@trust_option
def chat(adapters: str, system: str | None, store: str, **settings: Any) -> None:
    """Talk with adapters of task causal-lm or preference, which are swapped while they share one base.

    The first one begins; /swap NAME lets another go on with the same chat, /base the bare base, /help lists the rest.
    Ctrl-C stops a reply. Where the input is no terminal, each line is a message and each reply is printed.
    """
    names = list(dict.fromkeys(name.strip() for name in adapters.split(",") if name.strip()))
    tasks = resolve_first(names, store)
    for name, task in tasks.items():
        if not task.chats:
            raise click.UsageError(f"{name} is for {task.type}; a chat needs adapters of causal-lm or preference.")

    from peftlab.cli.console import out, print_notes
    from peftlab.runtime import load

    bank = load(*names, store=store, **settings)
    print_notes(bank.notes)
    if sys.stdin.isatty():
        out.print(f"[bold]{names[0]}[/] on {bank.base.files.model}. /help lists the commands.", style="dim")
    Conversation(bank, names, system).run()


class Conversation:
    """A chat that goes on while its speakers are swapped."""

    def __init__(self, bank: "Bank", names: list[str], system: str | None) -> None:
        self._bank, self._names = bank, names
        self._speaker, self._bare = names[0], False
        self._opening = [{"role": "system", "content": system}] if system else []
        self._chat = list(self._opening)

    def run(self) -> None:
        """Until the input ends."""
        for line in _lines(lambda: f"{BASE if self._bare else self._speaker}> "):
            if line.startswith("/"):
                if not self._command(*line.split(maxsplit=1)):
                    return
            elif line:
                self._say(line)

    def _say(self, line: str) -> None:
        from peftlab.cli.console import print_error

        self._chat.append({"role": "user", "content": line})
        said: list[str] = []
        pieces = self._bank.reply(self._chat, adapter=self._speaker, bare=self._bare)
        try:
            with closing(pieces), suppress(KeyboardInterrupt):  # which stops the reply, not the chat
                for piece in pieces:
                    said.append(piece)
                    click.echo(piece, nl=False)
        except (PeftlabError, ValueError) as error:
            self._chat.pop()
            print_error(str(error))
            return
        click.echo()
        self._chat.append({"role": "assistant", "content": "".join(said).strip()})

    def _command(self, command: str, rest: str = "") -> bool:
        """Obey, and tell whether to go on."""
        from peftlab.cli.console import print_error

        if command not in COMMANDS:
            print_error(f"no command '{command}'. {suggest(command, COMMANDS, what='There')}")
            return True
        COMMANDS[command].obey(self, rest)
        return command != "/quit"

    def swap(self, name: str) -> None:
        """Another adapter speaks from here on."""
        from peftlab.cli.console import print_error

        if name in self._names:
            self._speaker, self._bare = name, False
        else:
            print_error(f"no adapter '{name}' in this chat. {suggest(name, self._names, what='Here')}")

    def to_base(self, _: str) -> None:
        """The base speaks, without any adapter."""
        self._bare = True

    def begin(self, system: str) -> None:
        """Forget what was said; the system says this from here on."""
        self._opening = [{"role": "system", "content": system}] if system else []
        self._chat = list(self._opening)

    def clear(self, _: str) -> None:
        """Forget what was said."""
        self._chat = list(self._opening)

    def undo(self, _: str) -> None:
        """Forget the last message and its reply."""
        self._chat = self._chat[:-2] if len(self._chat) > len(self._opening) else self._chat

    def help(self, _: str) -> None:
        """List the commands."""
        for name, command in COMMANDS.items():
            click.echo(f"  {f'{name} {command.argument}':<14} {command.meaning}")


class Command(NamedTuple):
    """What a line that begins with a slash means."""

    obey: Callable[[Conversation, str], None]
    meaning: str
    argument: str = ""


COMMANDS = {
    "/swap": Command(Conversation.swap, "let another adapter go on with this chat", "NAME"),
    "/base": Command(Conversation.to_base, "let the base go on, without an adapter"),
    "/system": Command(Conversation.begin, "begin anew, with this message of the system", "TEXT"),
    "/undo": Command(Conversation.undo, "take back your last message and its reply"),
    "/clear": Command(Conversation.clear, "begin anew"),
    "/help": Command(Conversation.help, "this list"),
    "/quit": Command(lambda *_: None, "leave; so does Ctrl-D"),
}


def _lines(prompt: Callable[[], str]) -> Iterator[str]:
    """What is typed, after a prompt in a terminal; or the lines of a pipe."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    with suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and history
    while True:
        try:
            yield input(prompt()).strip()
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:  # a line given up
            click.echo()
