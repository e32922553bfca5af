"""The typer app and its exit codes. Nothing heavy is imported until a verb runs."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

import typer

import penjing
from penjing.cli.codes import Code
from penjing.cli.interrupts import interrupts
from penjing.errors import PenjingError, RunError, at_stage, no_room
from penjing.files import from_home
from penjing.user_file import users_fault

VERBS = (
    "inspect",
    "prune",
    "factorize",
    "recover",
    "quantize",
    "export",
    "compress",
    "report",
    "bench",
    "demo",
    "run",
    "study",
    "worker",
)
_RESUMABLE = ("compress", "demo", "recover", "run", "study")
_STAGES = ("inspect", "prune", "factorize", "recover", "quantize", "export", "report")  # of one stage
_BY_THEMSELVES = ("recover", "study")  # go on where they are given again

app = typer.Typer(
    name="penjing",
    help="Take a trained network and give back a small, fast one: pruned, recovered, quantized, exported and "
    "verified.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 2 an error (its cause and remedy are printed), 3 done but the goal was not "
    "reached (the allowed loss, the budget), 130 interrupted, 143 terminated. --debug after any verb shows "
    "the traceback of an error.",
)
for _verb in VERBS:
    app.command(_verb)(import_module(f"penjing.cli.verbs.{_verb}").command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"penjing {penjing.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    show_version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """``--debug`` is read by `main` before the verb is parsed, so that it may stand anywhere."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        argv: Arguments after the program's name; by default the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or bool(os.environ.get("PENJING_DEBUG"))
    arguments = [_from_home(one) for one in arguments if one != "--debug"]
    if isinstance(sys.stdout, io.TextIOWrapper):  # an arrow must not cost the result of hours in a C locale
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error does by itself
    sys.exit(_run(arguments, debug))


def _from_home(argument: str) -> str:
    """``--out=~/small`` with the home folder put in: a shell does that only where a word begins with ``~``,
    and a folder named ``~`` would come to lie in the current one.
    """
    option, equals, value = argument.partition("=")
    return f"{option}={from_home(value)}" if equals and option.startswith("--") else argument


def _run(arguments: list[str], debug: bool) -> int:
    signals: list[int] = []
    try:
        with interrupts() as signals:
            code = _carry_out(arguments)
        if code == Code.INTERRUPTED:  # how typer gives back a KeyboardInterrupt
            raise KeyboardInterrupt
        return code if isinstance(code, int) else Code.OK
    except (KeyboardInterrupt, typer.Abort):
        if debug:
            raise
        return _interrupted(arguments, signals)
    except PenjingError as error:
        if debug:
            raise
        if signals:
            return _interrupted(arguments, signals)
        _say(f"penjing: {error}")
        return Code.WRONG
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # the reader has gone: say nothing more
        return Code.OK
    except Exception as error:
        if hasattr(error, "show"):  # a wrong option; typer does not export the class
            error.show()
            return Code.WRONG
        if debug:
            raise
        if signals:
            return _interrupted(arguments, signals)
        if fault := users_fault(error):
            _say(f"penjing: at {fault.line}: its code failed ({fault.said}). Correct the file")
            return Code.WRONG
        if isinstance(error, MemoryError) or "allocate memory" in str(error):  # NumPy's kind, and torch's
            _say(f"penjing: not enough memory ({_said(error)}). Give smaller inputs or batches")
            return Code.WRONG
        if isinstance(error, OSError) and error.filename is not None:  # of the file system, not of ours
            _say(f"penjing: {error.filename} cannot be used ({error.strerror}). Give a path that can")
            return Code.WRONG
        if no_room(error):  # told by a library, without the file
            _say(f"penjing: a file cannot be written ({error}). Make room, or choose another place")
            return Code.WRONG
        _say(f"penjing: unexpected {type(error).__name__}: {error}. This is a bug; --debug shows where")
        return Code.BUG


def _said(error: BaseException) -> str:
    """What it says, without torch's place in its own source."""
    said = str(error).partition("DefaultCPUAllocator: ")
    return said[2] or said[0]


def _carry_out(arguments: list[str]) -> object:
    verb = next((one for one in arguments if one in VERBS), "")
    try:
        with at_stage(verb if verb in _STAGES else RunError.stage):
            return app(arguments, prog_name="penjing", standalone_mode=False)
    except typer.Abort as abort:  # typer takes any file that ends too early for the end of standard input
        if isinstance(abort.__cause__, EOFError):
            raise abort.__cause__ from None
        raise


def _interrupted(arguments: list[str], signals: list[int]) -> int:
    """Whatever ended the work after a signal came of it: a library may make an error of its own of one."""
    _say(f"penjing: interrupted. {_how_to_resume(arguments)}".rstrip())
    return Code.TERMINATED if signal.SIGTERM in signals else Code.INTERRUPTED


def _how_to_resume(arguments: list[str]) -> str:
    if not arguments or arguments[0] not in _RESUMABLE:
        return ""
    by_itself = arguments[0] in _BY_THEMSELVES or "--resume" in arguments
    again = arguments if by_itself else [*arguments, "--resume"]
    return f"Go on with: penjing {shlex.join(again)}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
