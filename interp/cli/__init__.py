"""The command line: `interp <group> <command>`.

Each group is one module of this package with a `typer.Typer` called `app`, or plain functions for commands without a
group. They import what they need inside their functions, so that `interp --help` imports neither torch nor pandas.
Results go to stdout (tables for people, `--json` for machines), progress and messages to stderr.

Exit codes: 0 done, 1 a part of the work failed, 2 wrong usage or configuration, 3 something is missing, 130 Ctrl-C.
"""

from __future__ import annotations

import errno
import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from interp.cli import (
    circuits,
    compare,
    facts,
    memorization,
    models,
    recall,
    reproduce,
    study,
    sweep,
    tasks,
    work,
    zoo,
)
from interp.cli.console import err, say
from interp.errors import InterpError

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class _Commands(TyperGroup):
    """The root group: what is raised on purpose becomes one line on stderr and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InterpError as error:
            say("error", str(error))
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            if error.errno not in _DISK:
                raise
            say("error", f"{os.strerror(error.errno)}: {error.filename or 'the disk'}")
            raise typer.Exit(3) from error
        except KeyboardInterrupt as error:
            say("interrupted", "nothing half-written stays behind")
            raise typer.Exit(130) from error


app = typer.Typer(
    name="interp",
    cls=_Commands,
    help="A microscope and a scalpel for memory in neural networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from interp import __version__

        print(f"interp {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if not err.is_terminal:
        # Bars of other libraries are for terminals; a log gets lines.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


app.add_typer(models.app, name="models")
tasks.app.command("run")(recall.run)
app.add_typer(tasks.app, name="tasks")
app.add_typer(memorization.app, name="memorization")
app.add_typer(study.app, name="study")
app.add_typer(sweep.app, name="sweep")
app.add_typer(reproduce.app, name="reproduce")
app.add_typer(zoo.app, name="zoo")
for _command in (work.locate, work.ablate, work.patch, work.atlas, work.report):
    app.command()(_command)
app.command()(circuits.channels)
app.command()(circuits.circuit)
app.command()(facts.facts)
app.command()(facts.trace)
app.command()(facts.edit)
app.command("compare-heads")(compare.compare_heads)
