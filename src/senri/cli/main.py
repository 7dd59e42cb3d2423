"""The entry point: words to a command, and what a command raises to one line and an exit code."""

import os
import signal
import sys
from collections.abc import Sequence

from senri.cli.ask import ask
from senri.cli.chat import chat
from senri.cli.convert import convert
from senri.cli.demo import demo
from senri.cli.evaluate import SUMMARIES, part_command, suite
from senri.cli.export import export
from senri.cli.interruption import terminable
from senri.cli.memory import clean, diff, inspect, merge
from senri.cli.memory_size import size
from senri.cli.parser import Command, Parser, add_command, call, new_parser, refuse_empty_values
from senri.cli.read import read
from senri.cli.serve import serve
from senri.cli.train import train
from senri.errors import SenriError

COMMANDS: dict[str, Command | dict[str, Command]] = {
    "convert": convert,
    "read": read,
    "ask": ask,
    "chat": chat,
    "serve": serve,
    "demo": demo,
    "train": train,
    "eval": {**{part: part_command(part) for part in SUMMARIES}, "suite": suite},
    "memory": {"inspect": inspect, "clean": clean, "merge": merge, "diff": diff, "size": size},
    "export": export,
}
_GROUPS = {"eval": "Measure a model", "memory": "Look into a memory, clean it, merge or compare memories"}

EXIT_ERROR = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT


def build_parser() -> Parser:
    """Return the parser of the whole command line."""
    parser = new_parser("A memory of fixed size for small pretrained language models.")
    commands = parser.add_subcommands(dest="command", required=True, title="commands")
    for name, command in COMMANDS.items():
        if callable(command):
            add_command(commands, name, command)
            continue
        group = new_parser(_GROUPS[name] + ".")
        # In this order: jsonargparse wants the upper level first.
        commands.add_subcommand(name, group, help=_GROUPS[name])
        members = group.add_subcommands(dest="action", required=True, title="commands")
        for member, function in command.items():
            add_command(members, member, function)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 2 after an error, 130 after Ctrl-C.

    Args:
        words: the command line without the program's name; `sys.argv` if None.
    """
    try:
        given = list(sys.argv[1:] if words is None else words)
        refuse_empty_values(given)
        found = build_parser().parse_args(given)
        command, values = COMMANDS[found.command], found[found.command]
        if not callable(command):
            command, values = command[values.action], values[values.action]
        with terminable():
            call(command, values)
        sys.stdout.flush()
    except SenriError as error:
        print(f"senri: error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt as stop:
        print(f"senri: {str(stop) or 'interrupted; no file is half written.'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output, such as `head`, has gone; without this the interpreter complains when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
