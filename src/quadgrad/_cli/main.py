"""The ``quadgrad`` command. typer and rich are imported only when it runs; the library never needs them."""

# No `from __future__ import annotations` here: typer reads the annotations below when it runs.

import gc
import importlib.util
import platform
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from quadgrad._cli.vocabulary import nearest, vocabulary

if TYPE_CHECKING:
    import typer

__all__ = ["main", "make_app"]

INSTALL = 'pip install "quadgrad[cli,plots]"'
OVER = "--over"
PICTURE_FORMATS = (".pdf", ".png", ".svg")


def main() -> None:
    """Run the command line; the entry point of ``quadgrad``."""
    require("typer", "rich")
    try:
        make_app()()
    finally:
        gc.freeze()  # or Python would look through all of torch for garbage when it ends: 0.3 s


def make_app() -> "typer.Typer":
    """Return the command line application; each ``add_...`` function below adds one command."""
    import typer

    app = typer.Typer(no_args_is_help=True, add_completion=False)

    def show_version(wanted: bool) -> None:
        if wanted:
            print(
                f"quadgrad {sys.modules['quadgrad'].__version__}, torch {version('torch')}, Python "
                f"{platform.python_version()}"
            )
            raise typer.Exit

    @app.callback()
    def describe(
        version: Annotated[
            bool, typer.Option("--version", help="Show versions and exit.", callback=show_version, is_eager=True)
        ] = False,
    ) -> None:
        """Integrals you can differentiate.

        Most of the time that a command takes to start is torch's import.
        """

    add_demo(app)
    add_doctor(app)
    add_integrate(app)
    return app


def add_demo(app: "typer.Typer") -> None:
    """Add ``quadgrad demo``."""
    import typer

    @app.command()
    def demo(
        output: Annotated[
            Path,
            typer.Option(help="Where to write the picture (png, pdf or svg).", dir_okay=False, writable=True),
        ] = Path("quadgrad-demo.png"),
        seed: Annotated[int, typer.Option(help="Seed of the network's first weights.", min=0)] = 0,
    ) -> None:
        """Fit survival curves, measure the universe, and check every number against an independent one.

        Takes less than a minute, and writes one picture. Exit code 1 means: a number is off.
        """
        require_picture(output, "--output")
        with uncollected():
            from rich.console import Console

            from quadgrad._demo.run import run

        raise typer.Exit(0 if run(output, seed, Console()) else 1)


def add_doctor(app: "typer.Typer") -> None:
    """Add ``quadgrad doctor``."""
    import typer

    @app.command()
    def doctor(
        target: Annotated[
            str,
            typer.Argument(
                metavar="SCRIPT.PY:FUNCTION",
                help="What to examine. Arguments without a default are the script's variables of that name.",
            ),
        ],
        html: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Write the annotated source.", dir_okay=False)
        ] = None,
        directions: Annotated[int, typer.Option(min=1, help="Random directions to compare.")] = 4,
        seed: Annotated[int, typer.Option(min=0, help="Of the directions.")] = 0,
    ) -> None:
        """Find the line that severs a gradient, or makes it wrong, and say what to write instead.

        The function returns a loss, or calls backward() itself. Exit code 0: no finding. 1: a finding. 2: a mistake
        in the command.
        """
        with uncollected():
            from rich.console import Console

            from quadgrad._cli.doctor import examine
            from quadgrad.doctor.show import as_table

        try:
            report = examine(target, directions, seed)
        except ValueError as error:
            fail(str(error))
        console = Console()
        if console.is_terminal:
            console.print(as_table(report))
        else:
            print(report)
        if html is not None:
            try:
                report.save(html)
            except OSError as error:
                fail(f"--html: {error}")
        raise typer.Exit(0 if report.ok else 1)


def add_integrate(app: "typer.Typer") -> None:
    """Add ``quadgrad integrate``."""
    import typer
    import typer.core

    # So that an expression may begin with a minus sign; `refuse_extra` is as strict as typer would be.
    lenient = {"ignore_unknown_options": True, "allow_extra_args": True}

    class Command(typer.core.TyperCommand):
        """Keeps what is given several times, of which only the last would be seen."""

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            ctx.meta[OVER] = [tuple(args[i + 1 : i + 4]) for i, word in enumerate(args) if word == OVER]
            if args and "--help" not in args:
                refuse_no_limits(args, ctx.meta[OVER])
            return super().parse_args(ctx, args)

    @app.command(epilog=vocabulary(), context_settings=lenient, cls=Command)
    def integrate(
        context: typer.Context,
        expression: Annotated[str, typer.Argument(help='The integrand, in quotes: "exp(-a*x**2)".')],
        over: Annotated[
            tuple[str, str, str],
            typer.Option(
                metavar="NAME LOWER UPPER",
                help="Variable and limits: x 0 inf, or t -pi 2*a. Repeatable, the outermost first; inner limits "
                "may name outer variables.",
            ),
        ],
        param: Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="A parameter; repeatable.")] = [],  # noqa: B006
        grad: Annotated[
            str, typer.Option(metavar="NAMES", help="Differentiate by parameters, lower, upper: a,b,upper.")
        ] = "",
        rtol: Annotated[float | None, typer.Option(help="Relative tolerance.", show_default="1.5e-8")] = None,
        atol: Annotated[float, typer.Option(help="Absolute tolerance.")] = 0.0,
        points: Annotated[
            str, typer.Option(metavar="VALUES", help="Where it jumps, has a kink or is singular: 0.3,a/2.")
        ] = "",
        rule: Annotated[
            str | None,
            typer.Option(
                help="Quadrature rule: gk15 to gk61, or cc11 to cc255; of several variables gm7, gm9, gm11.",
                show_default="gk21",
            ),
        ] = None,
        max_nfev: Annotated[
            int | None,
            typer.Option(min=1, help="Most evaluations of the integrand.", show_default="30000; 5 million"),
        ] = None,
        json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
        plot: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="Draw integrand and cells (png, pdf or svg).", dir_okay=False),
        ] = None,
    ) -> None:
        """Integrate an expression, and differentiate the integral.

        Exit code 0: converged. 1: not converged, the value is printed all the same. 2: a mistake in the command.
        """
        refuse_extra(context, expression)
        if plot is not None:
            if len(context.meta[OVER]) > 2:
                fail("--plot: pictures are of one variable or two")
            require_picture(plot, "--plot")
        with uncollected():  # torch among them, which help does without
            from quadgrad._cli.integrate import as_json, as_table, draw, read, solve
        try:
            every = context.meta[OVER]
            problem = read(expression, every if len(every) > 1 else [over], param, grad, points)
            answer = solve(problem, rtol=rtol, atol=atol, rule=rule, max_nfev=max_nfev)
        except ValueError as error:
            fail(str(error))
        print(as_json(answer) if json else as_table(answer))
        for note in answer.notes:
            print(f"note: {note}", file=sys.stderr)
        if plot is not None:
            try:
                draw(problem, answer, plot)
            except OSError as error:
                fail(f"--plot: {error}")
        raise typer.Exit(0 if answer.converged else 1)


@contextmanager
def uncollected() -> Generator[None]:
    """Return a context in which no garbage is looked for: imports make none, and much to look at."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def refuse_no_limits(args: list[str], variables: list[tuple[str, ...]]) -> None:
    """Refuse a command without a variable, or without both limits of one."""
    if not any(word.startswith(OVER) for word in args):
        fail(f"name the variable and its limits: {OVER} x 0 inf")
    if any(len(words) < 3 or any(word.startswith("--") for word in words) for words in variables):
        fail(f"{OVER} takes three words, a name and two limits: {OVER} x 0 inf")


def refuse_extra(context: "typer.Context", expression: str) -> None:
    """Refuse options that do not exist, and an expression that the shell took apart."""
    for word in (expression, *context.args):
        option = word.partition("=")[0]
        if re.fullmatch("--[a-z][a-z-]+", option):
            known = [name for parameter in context.command.params for name in parameter.opts if name[:2] == "--"]
            fail(f"no such option {option}{nearest(option, known)}")
    if context.args:
        words = ascii(" ".join(context.args))[1:-1]
        fail(
            f'one expression is expected, and more was found: {words}. Put it in quotes: "exp(-x**2)"; several '
            "names or points are one word, a,b, as is --param a=2"
        )


def fail(message: str) -> NoReturn:
    """Exit for a mistake in the command."""
    print(f"quadgrad: {message}", file=sys.stderr)
    raise SystemExit(2)


def require_picture(path: Path, option: str) -> None:
    """Exit when no picture can be drawn, or written to this place."""
    import typer

    require("matplotlib")
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.absolute().parent}", param_hint=option)
    if path.suffix not in PICTURE_FORMATS:
        endings = ", ".join(PICTURE_FORMATS)
        raise typer.BadParameter(f"{path.name} should end in one of {endings}", param_hint=option)


def require(*packages: str) -> None:
    """Exit with one line that says what to install when a package is missing."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        print(f"quadgrad needs {' and '.join(missing)} for this: {INSTALL}", file=sys.stderr)
        raise SystemExit(1)
