"""Tables of results in the terminal."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from senri.evaluation.outcome import Table as Content


def show_table(console: Console, content: "Content") -> None:
    """Print a table of results."""
    table = Table(title=content.title, title_justify="left")
    for index, column in enumerate(content.columns):
        table.add_column(column, justify="left" if not index else "right", overflow="fold")
    for row in content.rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)
