"""`vopros providers`: who will be asked, in which order, on what."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from core.cli import echo_table, printable

if TYPE_CHECKING:
    from providers.registry import Configured, Plan

commands = typer.Typer(
    name="providers",
    help="Show who is asked first, who next, and on what.",
    invoke_without_command=True,
)


@commands.callback()
def show(context: typer.Context) -> None:
    """Show who is asked first, who next, and on what; nobody is asked."""
    settings = context.obj.settings()
    from providers.registry import make_plan

    plan, _ = make_plan(settings)
    if plan.is_auto:
        typer.echo("auto: the first candidate that can be opened is asked")
    echo_table([("asked", "name", "type", "model", "host", "origin"), *_rows(plan)])
    for reason in plan.passed_over:
        typer.echo(f"passed over: {printable(reason)}")


def _rows(plan: "Plan") -> Iterator[tuple[str, ...]]:
    turn = "candidate" if plan.is_auto else "first"
    for configured in plan.candidates:
        yield _row(turn, configured)
    for configured in plan.fallback:
        yield _row("next", configured)


def _row(turn: str, configured: "Configured") -> tuple[str, ...]:
    options = configured.options
    model = options.model_shown or configured.demonstrates or "-"
    shown = (options.type, model, options.host_shown or "-", configured.origin)
    return (turn, configured.name, *shown)
