"""The ``quadgrad`` command. typer and rich are imported only when it runs; the library never needs them."""

# No `from __future__ import annotations` here: typer reads the annotations below when it runs.

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    import typer

__all__ = ["main", "make_app"]

INSTALL = 'pip install "quadgrad[cli,plots]"'
PICTURE_FORMATS = (".pdf", ".png", ".svg")


def main() -> None:
    """Run the command line; the entry point of ``quadgrad``."""
    require("typer", "rich")
    make_app()()


def make_app() -> "typer.Typer":
    """Return the command line application; each ``add_...`` function below adds one command."""
    import typer

    app = typer.Typer(no_args_is_help=True, add_completion=False)

    @app.callback()
    def describe() -> None:
        """Integrals you can differentiate."""

    add_demo(app)
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
        require("matplotlib")
        if not output.absolute().parent.is_dir():
            raise typer.BadParameter(f"there is no folder {output.absolute().parent}", param_hint="--output")
        if output.suffix not in PICTURE_FORMATS:
            endings = ", ".join(PICTURE_FORMATS)
            raise typer.BadParameter(f"{output.name} should end in one of {endings}", param_hint="--output")
        from rich.console import Console

        from quadgrad.demo.run import run

        raise typer.Exit(0 if run(output, seed, Console()) else 1)


def require(*packages: str) -> None:
    """Exit with one line that says what to install when a package is missing."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        print(f"quadgrad needs {' and '.join(missing)} for this: {INSTALL}", file=sys.stderr)
        raise SystemExit(1)
