"""The command line: `senri convert | read | ask | chat | serve | demo | eval | memory | export`, one command a file."""

from senri.cli.main import build_parser, main

__all__ = ["build_parser", "main"]
