"""The arrows between the rooms, what the wheel holds, and that --help stays light."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from typer.testing import CliRunner

import cli as module


def imports(path: Path) -> set[str]:
    """Packages that a file imports anywhere, by their first name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def test_pipelines_and_clap_never_import_each_other_nor_the_command_line():
    for room, others in {"pipelines": ("clap", "cli"), "clap": ("pipelines", "cli")}.items():
        for path in (ROOT / room).rglob("*.py"):
            assert not {name.split(".")[0] for name in imports(path)} & set(others), path


def test_the_data_flows_one_way_through_the_stages():
    stages = {"exclude", "filter", "caption", "resample", "download", "shard"}
    for path in (ROOT / "pipelines").glob("*.py"):
        uses = dict.fromkeys(("build", "prints", "recaption"), stages)
        uses |= {name: {"download"} for name in ("resample", "decode", "manifest")} | {"verify": {"shard"}}
        allowed = uses.get(path.stem, {path.stem})
        used = {name.removeprefix("pipelines.") for name in imports(path) if name.startswith("pipelines.")}
        assert not used & stages - allowed, path


@pytest.mark.parametrize("arguments", [("--help",), ("build-dataset", "--help"), ("train", "--help")])
def test_help_loads_no_heavy_package(arguments):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['clapboard', *{arguments!r}]; import cli\n"
        "try:\n cli.main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'transformers', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip().endswith("[]")


def commands() -> list[tuple[str, ...]]:
    sub = [("evaluate", info.name) for info in module.evaluate.registered_commands]
    return [(info.name,) for info in module.app.registered_commands] + sub  # type: ignore[list-item,misc]


@pytest.mark.parametrize("name", commands(), ids=" ".join)
def test_every_command_shows_a_worked_example_and_stands_in_the_readme(name):
    shown = CliRunner().invoke(module.app, [*name, "--help"]).stdout
    assert "Example: python cli.py" in shown
    assert f"cli.py {' '.join(name)}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_the_tree_as_it_is():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for room in ("pipelines", "clap"):
        for path in (ROOT / room).glob("*.py"):
            assert path.name == "__init__.py" or f" {path.name} " in text, f"{path} is not in the README's tree"


@pytest.mark.slow
def test_the_wheel_holds_pipelines_clap_cli_and_the_datacards_and_nothing_else(tmp_path):
    line = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(line, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("clapboard-*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"pipelines", "clap", "cli.py"}
    data = ("pipelines/datacards/", "pipelines/words/")
    assert all(name.endswith((".py", ".html.j2", ".toml")) or name.startswith(data) for name in names)
    assert "pipelines/datacards/folder.md" in names
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    code = "import pipelines.sources as s; print(s.read_card('csv')['title'], s.__file__)"
    said = subprocess.run([sys.executable, "-c", code], cwd=target, capture_output=True, text=True, check=True).stdout
    assert said.startswith("A table of sounds") and str(target) in said


@pytest.mark.slow
def test_the_code_is_clean():
    tools = Path(sys.executable).parent
    for line in (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",), ("hadolint", "Dockerfile")):
        done = subprocess.run([tools / line[0], *line[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
