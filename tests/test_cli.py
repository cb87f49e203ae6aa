"""The command line: what it prints, what it writes, and how it ends."""

import importlib.util
import subprocess
import sys
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

import quadgrad
from quadgrad._cli import main as cli
from quadgrad._demo import network, run, survival

runner = CliRunner()


def invoke(*arguments):
    return runner.invoke(cli.make_app(), list(arguments))


def test_help_lists_the_commands():
    result = invoke("--help")
    assert result.exit_code == 0
    assert "demo" in result.stdout


def test_demo_prints_numbers_beside_references_and_writes_a_picture(tmp_path):
    picture = tmp_path / "picture.png"
    random_state = torch.get_rng_state()
    result = invoke("demo", "--output", str(picture), "--seed", "1")
    assert result.exit_code == 0, result.output
    assert torch.equal(torch.get_rng_state(), random_state)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 50_000
    for number in ("55.7331", "3.4505", "-672.0622", "2832.93809", "6607.65761", "15539.58622", "6470.18833"):
        assert result.stdout.count(number) >= 2, f"{number} should stand beside its reference"
    assert "-3920.5677" in result.stdout
    assert "-595.64" in result.stdout, "the network fitted from another seed ends elsewhere"
    assert "OFF" not in result.stdout
    assert "fitting" not in result.stdout, "progress is for terminals"
    assert str(picture) in result.stdout
    assert max(map(len, result.stdout.splitlines()[:-1])) <= 80


def test_a_number_that_is_off_fails_the_command(tmp_path, monkeypatch):
    few = partial(survival.maximise, max_iter=3)
    monkeypatch.setattr(network, "maximise", lambda *arguments, max_iter: few(*arguments))
    monkeypatch.setitem(survival.LIFELINES, "scale", 55.8)
    result = invoke("demo", "--output", str(tmp_path / "picture.png"))
    assert result.exit_code == 1
    assert "Off by more than allowed: lambda" in result.stdout


@pytest.mark.parametrize("name", ["missing/picture.png", "picture.docx"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, name):
    monkeypatch.setattr(run, "run", lambda *_: pytest.fail("the demo started"))
    result = invoke("demo", "--output", str(tmp_path / name))
    assert result.exit_code == 2
    assert "--output" in result.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extras_one_line_says_what_to_install(monkeypatch, capsys, missing):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(SystemExit) as ending:
        cli.main()
    assert ending.value.code == 1
    message = capsys.readouterr().err
    assert message == f'quadgrad needs {missing} for this: pip install "quadgrad[cli,plots]"\n'


def test_demo_without_matplotlib_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    result = invoke("demo")
    assert result.exit_code == 1
    assert 'pip install "quadgrad[cli,plots]"' in result.stderr


def test_the_library_imports_without_the_extras():
    code = "import sys, quadgrad; print(sorted({'typer', 'rich', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version_names_what_matters():
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"quadgrad {quadgrad.__version__}, torch {torch.__version__.partition('+')[0]}")


def test_it_runs_as_a_module_and_imports_nothing_heavy_but_torch():
    """SciPy's statistics and SymPy, which torch.broadcast_shapes imports, would be half of the start.

    A wave's limit takes derivatives, for which torch has ways that load its compiler, with SymPy.
    """
    code = (
        "import runpy, sys\n"
        "for f, b in ('x', '2'), ('sin(x) / (1 + x)', 'inf'):\n"
        "    sys.argv = ['quadgrad', 'integrate', f, '--over', 'x', '0', b]\n"
        "    try: runpy.run_module('quadgrad', run_name='__main__')\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "heavy = {'scipy.stats', 'scipy.special', 'sympy', 'torch._dynamo', 'matplotlib', 'tensorflow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].split() == ["value", "2"]
    assert done.stdout.splitlines()[-1] == "[]"
