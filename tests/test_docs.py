"""The pages of docs/: every command in them is run, page after page, and what they name exists.

A block is run if it is ```sh (line by line) or ```python; with a file's name behind the language it is saved under that
name; ```text is only shown. `<!-- not run: why -->` above a block says why nobody could run it here.
"""

import csv
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from conftest import ROOT, write
from server import Server, serve
from test_paper import esc50

import cli
from clap.config import PRESETS
from pipelines.demo import expected_rejections, synthesise
from pipelines.report import summarise

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("quickstart", "dataset", "train", "evaluate", "search")]
BLOCK = re.compile(r"^(?:<!-- not run: (?P<why>.*?) ?-->\n)?```(?P<kind>.*)\n(?P<text>(?s:.*?))^```$", re.MULTILINE)
COMMAND = re.compile(r"\bcli\.py ([a-z](?:\\\n|[^\n`#&|>])*)")
LESS = {  # flags that make a command small enough for a test, by how it begins
    "train-captioner": "--epochs 1 --pieces 90 --width 24 --layers 1",
    "train ": "--epochs 1 --batch-size 8",
    "probe": "--epochs 2",
    "build-dataset csv --input urls.csv": "--allow-private-addresses --attempts 1",
}
ELSEWHERE = {"--nproc-per-node"}  # torchrun's


class Block(NamedTuple):
    kind: str  # what stands behind the backticks
    text: str
    why: str | None  # it is not run


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(m["kind"], m["text"], m["why"]) for m in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def lines(text: str) -> list[str]:
    """The commands of a block."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


# ---- running them


class Reader(NamedTuple):
    """Somebody who follows the pages in a folder; `closing` ends what a page has started."""

    folder: Path
    names: dict[str, str]  # what a page names, and what stands in for it here
    closing: ExitStack

    def follow(self, block: Block) -> None:
        """Run or save a block."""
        text = block.text
        for name, here in self.names.items():
            text = text.replace(name, here)
        language, _, file = block.kind.partition(" ")
        if file:
            (self.folder / file).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, block.kind, "exec"), {})
        elif language == "sh":
            for line in lines(text):
                self.run(line)

    def run(self, line: str) -> None:
        """Run a command: ours in this process, others in a shell."""
        if line.startswith("python cli.py serve"):
            self.closing.enter_context(served(line))
        elif line.startswith("python cli.py "):
            ours(shlex.split(line, comments=True)[2:])
        else:
            done = subprocess.run(["bash", "-euc", line], capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def ours(arguments: list[str]) -> None:
    """Run a command of cli.py, made small."""
    line = " ".join(arguments)
    arguments += " ".join(more for start, more in LESS.items() if line.startswith(start)).split()
    with pytest.raises(SystemExit) as ended:
        cli.app(cli.with_value(arguments, "--retry-rejected", "transient"))
    assert ended.value.code == 0, f"python cli.py {line}"


@contextmanager
def served(line: str) -> Iterator[None]:
    """A command that answers until Ctrl-C."""
    with subprocess.Popen(shlex.split(line), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and " clips at http://127.0.0.1:" in process.stdout.readline(), line
            yield
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130, line
        finally:
            process.kill()  # nothing, where it has ended


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """A reader in a folder with cli.py, what the pages want, and no way to the Hub."""
    (tmp_path / "cli.py").symlink_to(ROOT / "cli.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tiny = PRESETS["tiny"]
    monkeypatch.setitem(PRESETS, "tiny", replace(tiny, model=replace(tiny.model, clip_seconds=1, pann_widths=(8,) * 4)))
    few_sounds(tmp_path / "demo/sounds")
    esc50(tmp_path / "ESC-50")
    with serve() as web:
        yield Reader(tmp_path, {**addresses(web, tmp_path), "8000": str(free_port())}, ExitStack())


def few_sounds(folder: Path) -> None:
    """The demo's sounds, one for each label, in all splits."""
    synthesise(folder, clips=20)
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows[:20]):
        row["split"] = {3: "validation", 6: "test"}.get(i % 10, "train")
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def addresses(web: Server, folder: Path) -> dict[str, str]:
    """What stands for a table's addresses: two that work, and one that works at the second time."""
    web.body = write(folder / "web/busy.wav", hertz=500).read_bytes()
    for i, name in enumerate(("bark.wav", "rain.wav")):
        web.files[f"/{name}"] = write(folder / "web" / name, hertz=300 + 100 * i).read_bytes()
    return {"https://example.org/busy.wav": f"{web.url}/status/503/1", "https://example.org": web.url}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.slow
def test_the_pages_can_be_followed_from_the_first_command_to_the_last(reader: Reader) -> None:
    for page in PAGES:
        with reader.closing:
            for block in blocks(page):
                if block.why is None:
                    reader.follow(block)
    assert rejected("demo/build") == rejected("OUT") == expected_rejections()
    assert rejected("OUT-TABLE") == {"license": 1} and rejected("OUT-WEB") == {}


def rejected(out: str) -> dict[str, int]:
    found: dict[str, int] = summarise(Path(out))["rejected_by_reason"]
    return found


# ---- what they name


def test_every_block_is_run_or_saved_or_says_why_not() -> None:
    for page in DOCS:
        for block in blocks(page):
            assert block.why is None or len(block.why.split()) > 2, f"{page.name}: no reason\n{block.text}"
            language, _, file = block.kind.partition(" ")
            assert file or language in ("sh", "python", "text"), f"{page.name}: ```{block.kind}\n{block.text}"
            assert page in PAGES or language == "text", f"{page.name} is not run: its blocks are ```text"
        fences = re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), f"{page.name}: a fence is not closed"


def flags() -> dict[str, set[str]]:
    """Flags of every command."""

    def of(found: typer.core.TyperGroup, prefix: str) -> Iterator[tuple[str, set[str]]]:
        for name, command in found.commands.items():
            if isinstance(command, typer.core.TyperGroup):
                yield from of(command, f"{name} ")
            else:
                opts = (opt for each in command.params for opt in (*each.opts, *each.secondary_opts))
                yield prefix + name, {opt for opt in opts if opt.startswith("-")} | {"--help"}

    root = typer.main.get_command(cli.app)
    assert isinstance(root, typer.core.TyperGroup)
    return dict(of(root, ""))


def named(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Every command of ours that a page shows, and its words."""
    for shown in COMMAND.findall(page.read_text(encoding="utf-8")):
        words = shown.replace("\\\n", " ").split()
        yield (" ".join(words[:2]) if words[0] == "evaluate" else words[0]), words


@pytest.mark.parametrize("page", [*DOCS, ROOT / "README.md"], ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_command_and_flag_that_a_page_names_is_there(page: Path) -> None:
    known = flags()
    for name, words in named(page):
        assert name in known, f"{page.name}: no command {name!r}"
        asked = {word for word in words if re.fullmatch(r"--?[a-z][a-z0-9-]*", word)}
        assert asked <= known[name], f"{page.name}: {name} has no {sorted(asked - known[name])}"
    inline = re.findall(r"(?<!`)`(--[a-z][a-z0-9-]*)[^`]*`(?!`)", page.read_text(encoding="utf-8"))
    everything = set().union(*known.values(), ELSEWHERE, {"--build-arg"})
    assert set(inline) <= everything, sorted(set(inline) - everything)


def test_every_command_stands_in_a_page() -> None:
    shown = {name for page in PAGES for name, _ in named(page)}
    assert set(flags()) <= shown, sorted(set(flags()) - shown)


@pytest.mark.parametrize("page", [*DOCS, ROOT / "README.md"], ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_to_files_and_headings_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
