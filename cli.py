"""Clapboard's commands: parse, call one function, print, turn our errors into "Error: ..." and exit code 1.

python cli.py build-dataset folder --input sounds --out OUT
python cli.py train --data OUT/dataset --out RUN --preset tiny
"""

import functools
import gc
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from clap.config import PRESETS, PROMPT, ClapError, ModelConfig, TrainConfig
from clap.probe_config import ProbeConfig
from pipelines.caption import Caption
from pipelines.dedup import Dedup
from pipelines.disk import BuildError
from pipelines.download import Download
from pipelines.exclude import Exclude, read_ids
from pipelines.filter import Filter
from pipelines.remote import is_remote, upload
from pipelines.sources import SOURCES, Reading, read_card, source
from pipelines.text import clean
from pipelines.train_captioner import Training

app = typer.Typer(
    help="Build audio-text datasets that explain every lost row, and train CLAP on them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
evaluate = typer.Typer(help="Measure a model on a dataset.", no_args_is_help=True)
app.add_typer(evaluate, name="evaluate")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
Out = Annotated[Path, typer.Argument(help="Folder of a build, as given to build-dataset --out.")]
Built = Annotated[Path, typer.Argument(help="Folder of a build, or a dataset's own folder.")]
Model = Annotated[
    str,
    typer.Option(help="A run, a checkpoint, a LAION .pt, a Hub id, msclap:2023, wav2clip or package.module:function."),
]
Data = Annotated[list[str], typer.Option(help="A dataset: a folder or a Hub id; may be repeated.")]
Split = Annotated[str, typer.Option(help="Split of the dataset, or all.")]
Folds = Annotated[str, typer.Option(help="Only these folds, such as 4 or 1,2.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto.")]
Prompt = Annotated[str, typer.Option(help="Sentence around each label, with {} where it goes.")]


def main() -> None:
    """Entry of the `clapboard` script."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being stopped is the same as Ctrl-C
    app(with_value(sys.argv[1:], "--retry-rejected", "transient"))


def with_value(arguments: list[str], flag: str, value: str) -> list[str]:
    """The arguments with `value` after a flag that was given without one."""
    found = []
    for argument, following in zip(arguments, [*arguments[1:], "-"], strict=True):
        found += [argument, value] if argument == flag and following.startswith("-") else [argument]
    return found


def command(name: str, *configs: type, of: typer.Typer = app) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command. Each field of `configs` becomes a flag; those given arrive as keyword arguments."""
    flags = {field.name: flag(config, field) for config in configs for field in fields(config) if field.metadata}

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(**given: Any) -> None:
            try:
                function(**{key: value for key, value in given.items() if key not in flags or value is not None})
            except KeyboardInterrupt:
                print(
                    "Stopped. Run the same command again: what has a folder to work in goes on there.", file=sys.stderr
                )
                raise typer.Exit(130) from None
            except BrokenPipeError:
                raise  # typer ends without a word: who reads our output, such as `head`, has enough
            except errors() as error:
                if os.environ.get("CLAPBOARD_DEBUG"):
                    raise
                print(f"Error: {clean(str(error))}", file=sys.stderr)
                raise typer.Exit(1) from None

        own = [p for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD]
        run.__signature__ = inspect.Signature([*own, *flags.values()])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [*own, *flags.values()]}
        return of.command(name)(run)

    return register


def flag(config: type, field: Field) -> inspect.Parameter:
    """The option of a dataclass field; its value is None where the flag is not given."""
    kind, text, default = get_type_hints(config)[field.name], field.metadata["help"], field.default
    if kind is not bool and default not in ((), "", None):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        text += f" [dim]\\[default: {shown}][/dim]"
    option = typer.Option(
        help=text, metavar=field.metadata.get("metavar"), rich_help_panel=(config.__doc__ or "").split(".")[0]
    )
    repeated = field.metadata.get("metavar") == "FIELD=NAME"
    taken = list[str] if repeated else str if get_origin(kind) is tuple else kind
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None,
                             annotation=Annotated[taken | None, option])  # fmt: skip


def fill(config: Any, settings: dict[str, Any]) -> Any:
    """A frozen dataclass with the settings that belong to it; "a,b" becomes a tuple where one is wanted."""
    hints = get_type_hints(type(config))
    values = {name: value for name, value in settings.items() if name in hints}
    for name, value in values.items():
        if get_origin(hints[name]) is tuple:
            items = value.split(",") if isinstance(value, str) else value
            kind = get_args(hints[name])[0]
            try:
                values[name] = tuple(kind(item.strip()) for item in items if item.strip())
            except ValueError as error:
                raise ClapError(f"--{name.replace('_', '-')} {value}: want numbers such as 1,2") from error
    return replace(config, **values)


def errors() -> tuple[type[Exception], ...]:
    """What is told in one sentence; anything else is a bug of ours and keeps its traceback."""
    return (BuildError, ClapError, OSError)


def table(title: str, rows: dict[str, Any]) -> None:
    """Print names and values in two columns."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, grid = Console(), Table("", "", show_header=False, box=None)
    for name, value in rows.items():
        grid.add_row(escape(name), escape(clean(str(value))))
    if title:
        console.print(clean(title), style="italic", markup=False, highlight=False, soft_wrap=True)
    console.print(grid)


# ---- datasets


@command("sources")
def sources(as_json: Json = False) -> None:
    """What can be built: each source, its licence and how to obtain it.

    Example: python cli.py sources
    """
    cards = {name: read_card(name) for name in SOURCES}
    if as_json:
        print(json.dumps(cards, indent=1))
    else:
        for name, card in cards.items():
            table(name, {key: card[key] for key in ("title", "obtain", "license", "captions", "splits")})


@command("build-dataset", Reading, Exclude, Download, Filter, Dedup, Caption)
def build_dataset(
    name: Annotated[str, typer.Argument(metavar="SOURCE", help="One of: " + ", ".join(SOURCES))],
    input: Annotated[
        str,
        typer.Option(
            metavar="PATH|URL", help="What the source reads: a folder, an archive, a table, hf://..., s3://..."
        ),
    ],
    out: Annotated[str, typer.Option(metavar="PATH|URL", help="Folder of the build; run again to continue.")],
    work: Annotated[
        Path | None, typer.Option(help="Folder of the build, where --out is a URL (s3://..., gs://..., hf://...).")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Ray workers; 0 works in this process. Default: 0 up to 8 parts, else one a core."),
    ] = None,
    ray_address: Annotated[str | None, typer.Option(help="Use this Ray cluster; OUT must be shared with it.")] = None,
    part_rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of a working part. Default: 256, or 4096 without audio.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N clips.")] = None,
    metadata_only: Annotated[
        bool, typer.Option("--metadata-only", help="Fetch and open no audio: facts come from the table.")
    ] = False,
    keep: Annotated[
        str, typer.Option(help="Working files that stay: all, audio (no raw downloads) or none.")
    ] = "audio",
    retry_rejected: Annotated[
        str | None,
        typer.Option(
            metavar="[REASON,...]",
            help="Fetch again what was rejected for these reasons; with no value, for all that may pass by itself.",
        ),
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Take in again what has changed at its server or on this machine.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what a build would take on, and stop.")] = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Build a dataset of clips with captions; every row is published or rejected with its reason.

    `python cli.py sources` says what SOURCE can be and how to obtain it; `recipe` takes several as one.

    Example: python cli.py build-dataset csv --input sounds.csv --out OUT --licenses CC0,CC-BY
    """
    from pipelines.build import METADATA_ROWS, PART_ROWS, STAGES, plan, without_audio
    from pipelines.build import build_dataset as build
    from pipelines.retry import Retry

    if "exclude_ids" in settings:
        settings["exclude_ids"] = read_ids(Path(settings["exclude_ids"]))
    if is_remote(out) and work is None:
        raise BuildError(f"--out {out} is a URL: name a folder for the working files with --work")
    origin = input if is_remote(input) or input.startswith("https://") else Path(input)
    folder = work or Path(out)
    reading, stages = fill(Reading(), settings), [fill(stage, settings) for stage in STAGES]
    check_debias(settings, stages[-1])
    if dry_run:
        planned = plan(source(name), origin, folder, reading=reading, limit=limit, workers=workers)
        print(json.dumps(planned)) if as_json else table("Plan", planned)
        return
    reasons = None if retry_rejected is None else () if retry_rejected == "transient" else names(retry_rejected)
    retry = Retry(reasons if reasons is None else tuple(reasons), refresh) if retry_rejected or refresh else None
    if metadata_only:
        gc.set_threshold(50_000)  # rows make no cycles: to look for some after every 700 takes a tenth of the time
    part_rows = part_rows or (METADATA_ROWS if metadata_only else PART_ROWS)
    stages = without_audio(stages) if metadata_only else stages
    report = build(source(name), origin, folder, reading=reading, stages=stages, workers=workers, keep=keep,
                   ray_address=ray_address, part_rows=part_rows, limit=limit, retry=retry)  # fmt: skip
    if is_remote(out):
        upload(folder, out)
    show_build(folder, report, as_json)
    if name == "recipe" and not as_json:
        show_sources(report["sources"], source(name).told(origin, reading)["ingredients"])


@command("status")
def status(out: Out, as_json: Json = False) -> None:
    """Rows, kept, rejected by reason, hours and splits of a build, also while it runs.

    Example: python cli.py status OUT
    """
    from pipelines.report import summarise

    show_build(out, summarise(out), as_json)


def show_build(out: Path, report: dict[str, Any], as_json: bool) -> None:
    """Print a build's report and where its files lie."""
    if as_json:
        print(json.dumps(report, indent=1))
        return
    from pipelines.reasons import explain

    table(clean(str(out)), {
        "rows": report["rows"], "rejected": report["rejected"],
        "kept" if report["complete"] else "not rejected so far": f"{report['kept']} ({report['hours']:.2f} hours)",
        **{f"  {reason}": f"{n}  {explain(reason)}" for reason, n in report["rejected_by_reason"].items()},
        **{f"split {split}": n for split, n in report["splits"].items()},
        **{f"generated by {name}": n for name, n in report.get("generated", {}).items()},
        **({"words de-biased": report["debiased"]} if report.get("debiased") else {}),
    })  # fmt: skip
    if not report["complete"]:
        print("Not complete: run build-dataset again with the same settings to continue.")
        return
    table("", {"dataset": out / "dataset", "card": out / "dataset" / "README.md", "report": out / "report.html",
               "rejected": out / "rejected.parquet"})  # fmt: skip
    if report["kept"] == 0:
        print("Warning: no clip was kept.", file=sys.stderr)


@command("report")
def report(out: Out) -> None:
    """Write report.json, rejected.parquet and report.html of a finished build anew.

    Example: python cli.py report OUT
    """
    from pipelines.page import write_page
    from pipelines.recipe import read_recipe
    from pipelines.report import summarise, write_report

    if not summarise(out)["complete"]:
        raise BuildError(f"{out} is not complete: run build-dataset again with the same settings, then report")
    card = (read_recipe(out / "build") or {}).get("card", {})
    write_page(out, write_report(out), card.get("title", out.absolute().name))
    print(out / "report.html")


@command("caption", Caption)
def caption(
    out: Out,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Ray workers; 0 works in this process. Default: 0 up to 8 parts, else one a core."),
    ] = None,
    ray_address: Annotated[str | None, typer.Option(help="Use this Ray cluster; OUT must be shared with it.")] = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Caption a finished build anew: its sentences, shards, report and card, without touching audio.

    What no flag changes stays as the build has it, whatever its default; --captioner "" takes the model back.

    Example: python cli.py caption OUT --captioner RUN --keywords both
    """
    from pipelines.recaption import recaption, settled

    stage = fill(settled(out), settings)
    check_debias(settings, stage)
    show_build(out, recaption(out, stage, workers, ray_address), as_json)


def check_debias(settings: dict[str, Any], stage: Caption) -> None:
    """Raise BuildError where --debias was given and there is no captioner whose sentences it could change."""
    if settings.get("debias") and not stage.captioner:
        raise BuildError("--debias is for the sentences of a captioner: give --captioner too, or leave it out")


@command("train-captioner", Training)
def train_captioner(
    captions: Annotated[list[str], typer.Argument(help="CSV files with a column caption, or datasets.")],
    out: Annotated[Path, typer.Option(help="Folder of the captioner; run again to continue.")],
    init: Annotated[str, typer.Option(help="Seq2seq model to fine-tune: folder or Hub id; none: from scratch.")] = "",
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Train a captioner, which writes sentences from keywords, on captions that people wrote.

    Example: python cli.py train-captioner train.csv --out RUN --precision bf16
    """
    from pipelines.train_captioner import train_captioner as run

    done = run(captions, out, init, fill(Training(), settings))
    print(json.dumps(done, indent=1)) if as_json else table(clean(str(out)), done)


@command("verify")
def verify(
    out: Built,
    workers: Annotated[int, typer.Option(min=0, help="Ray workers; 0 works in this process.")] = 0,
    as_json: Json = False,
) -> None:
    """Read a dataset again, every clip of it, and tell what is wrong; exits 1 if anything is.

    Example: python cli.py verify OUT --workers 4
    """
    from pipelines.verify import verify as run

    found = run(out, workers)
    problems = found["problems"]
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        for each in problems:
            print(clean(f"{each['where']} {each['what']}"))
        table(
            clean(str(out)),
            {"clips": found["clips"], "hours": f"{found['hours']:.2f}", "problems": len(problems) or "none"},
        )
    if problems:
        raise typer.Exit(1)


@command("push")
def push(
    out: Built,
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="Dataset repository on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Create it private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, list files and bytes, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Publish a dataset on the Hugging Face Hub; run again, it sends only what is missing.

    Example: python cli.py push OUT user/name --private
    """
    from pipelines.push import push as run

    done = run(out, repository, private, dry_run)
    if as_json:
        print(json.dumps(done, indent=1))
        return
    if dry_run:
        table(repository, {file["path"]: f"{file['bytes']:,} bytes" for file in done["files"]})
    table("", {"files": len(done["files"]), "bytes": f"{done['bytes']:,}", "at": done.get("url", "not sent: dry run")})


@command("export-webdataset")
def export_webdataset(
    dataset: Annotated[Path, typer.Argument(help="Folder of a dataset (OUT/dataset).")],
    out: Annotated[Path, typer.Option(help="Folder for the tars; run again to continue.")],
    per_tar: Annotated[int, typer.Option(min=1, help="Clips in a tar.")] = 512,
    as_json: Json = False,
) -> None:
    """Write a dataset as WebDataset tars in LAION's layout, which laion_clap trains from.

    Example: python cli.py export-webdataset OUT/dataset --out tars/mine
    """
    from pipelines.webdataset import export_webdataset as run

    done = run(dataset, out, per_tar)
    if as_json:
        print(json.dumps(done, indent=1))
    else:
        splits = {name: f"{each['clips']:,} clips in {each['tars']} tars" for name, each in done["splits"].items()}
        table(clean(str(out)), {"clips": f"{done['clips']:,}", **splits})


def show_sources(found: dict[str, Any], ingredients: list[dict[str, Any]]) -> None:
    """Print what each source of a recipe gave beside what is published of it."""
    from rich.console import Console
    from rich.table import Table

    grid = Table("source", "weight", box=None)
    for column in ("clips", "published", "hours", "published", "captions"):
        grid.add_column(column, justify="right")
    for each in ingredients:
        ours, published = found.get(each["name"], {"clips": 0, "hours": 0.0, "captions": 0}), each["published"]
        grid.add_row(
            each["name"], f"{each['weight']:g}", f"{ours['clips']:,}", f"{published.get('clips', '-')}",
            f"{ours['hours']:,.2f}", f"{published.get('hours', '-')}", f"{ours['captions']:,}",
        )  # fmt: skip
    Console().print(grid)


# ---- models


@command("train", TrainConfig, ModelConfig)
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the run; run again to continue.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="Settings to start from, instead of the defaults below: "
            + ", ".join(PRESETS)
            + ". Default: tiny, or finetune with --init."
        ),
    ] = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Train a CLAP on datasets.

    Example: python cli.py train --data OUT/dataset --out RUN --preset tiny --folds 1,2,3
    """
    preset = preset or ("finetune" if settings.get("init") else "tiny")
    if preset not in PRESETS:
        raise ClapError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    from clap.train import train as run

    config = fill(PRESETS[preset], settings)
    metrics = run(replace(config, model=fill(config.model, settings)), data, out, given=settings)
    if not metrics:
        return  # one of several processes, of which the first one speaks
    print(json.dumps(metrics, indent=1)) if as_json else table(f"{out}", {**metrics, "run": out, "best": out / "best"})


@command("retrieval", of=evaluate)
def retrieval(
    model: Model,
    data: Data,
    split: Split = "test",
    folds: Folds = "",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the clip of a text and the text of a clip: R@1, R@5, R@10, mAP@10, median rank.

    Example: python cli.py evaluate retrieval --model RUN --data OUT/dataset --split test
    """
    from clap.evaluate import retrieval as measure

    result = measure(load(model, device), data, split, numbers(folds))
    show_retrieval(result, as_json)


@command("zero-shot", of=evaluate)
def zero_shot(
    model: Model,
    data: Data,
    labels: Annotated[str, typer.Option(help="Labels, separated by commas. Default: those of the dataset.")] = "",
    prompt: Prompt = PROMPT,
    split: Split = "test",
    folds: Folds = "",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Classify clips by the label whose prompt is nearest, without training on them.

    Example: python cli.py evaluate zero-shot --model RUN --data OUT/dataset --split train --folds 4
    """
    from clap.evaluate import zero_shot as measure

    result = measure(load(model, device), data, names(labels), prompt, split, numbers(folds))
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        score = "map" if "map" in result else "accuracy"
        table("zero-shot", {score: f"{result[score]:.4f}", "chance": f"{result['chance']:.4f}", "n": result["n"]})
        table("per class", {name: f"{value:.4f}" for name, value in result["per_class"].items()})


@command("paper", of=evaluate)
def paper(
    model: Model,
    data_root: Annotated[Path, typer.Option(help="Folder of corpora: esc50/dataset, clotho/dataset, ...")],
    out: Annotated[Path, typer.Option(help="Folder for paper.json, paper.md, paper.png and embeddings.")],
    prompts: Annotated[
        str, typer.Option(help="paper, ensemble, or a file with a prompt a line, {} for the label.")
    ] = "paper",
    truncation: Annotated[
        str, typer.Option(help="Of long clips: auto, centre, chunks, random (the paper's); fused models: fixed-thirds.")
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of random crops and of the bootstrap.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """The evaluations of LAION-CLAP's paper on the corpora at hand, beside published figures, with intervals.

    Exits 1 if a corpus is there and cannot be scored.

    Example: python cli.py evaluate paper --model RUN --data-root DATA --out PAPER
    """
    from clap.paper import CORPORA, measure

    obtain = {name: read_card(name)["obtain"] for name in CORPORA}
    found = measure(load(model, device), data_root, out, model, prompts, truncation, seed, obtain)
    print(json.dumps(found, indent=1) if as_json else (out / "paper.md").read_text(encoding="utf-8"))
    if found["skipped"]:
        raise typer.Exit(1)


@command("captioner", of=evaluate)
def captioner(
    model: Annotated[list[str], typer.Option(help="A captioner: its folder or Hub id; may be repeated.")],
    data: Annotated[Path, typer.Option(help="Captions by people: a CSV (AudioCaps', Clotho's) or a dataset.")],
    split: Split = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N clips.")] = None,
    beams: Annotated[int, typer.Option(min=1, help="Sentences that a beam search proposes.")] = 4,
    samples: Annotated[int, typer.Option(min=0, help="Sentences that are drawn on top.")] = 0,
    as_json: Json = False,
) -> None:
    """Give captioners the keywords of held-out captions: what they leave out, what they invent, how near they come.

    Models stand beside the template, by their likeliest sentence and by the truest of all they propose ("chosen").

    Example: python cli.py evaluate captioner --model RUN --data val.csv --samples 8
    """
    from pipelines.beams import Decoding
    from pipelines.captioner import Captioner
    from pipelines.evaluate_captioner import compare, references

    captions = references(data, split, limit)
    decoding = Decoding(beams=beams, samples=samples)
    scores = compare({name: Captioner(name, decoding=decoding) for name in model}, captions)
    print(json.dumps(scores, indent=1)) if as_json else side_by_side("captioner", scores)


def side_by_side(title: str, scores: dict[str, dict[str, float]]) -> None:
    """Print a row of scores for each name."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    grid = Table(title, box=None)
    for column in next(iter(scores.values())):
        grid.add_column(column.replace("_", " "), justify="right")
    for name, row in scores.items():
        told = (f"{value:,.3f}" if value < 10 else f"{value:,.0f}" for value in row.values())
        grid.add_row(escape(clean(name)), *told)
    Console().print(grid)


@command("probe", ProbeConfig)
def probe(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of features/, result.json and the first classifier, probe/.")],
    device: Device = "auto",
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Fit a classifier on a model's audio side, and test it by the dataset's own folds or splits.

    No tested clip is chosen by: that is left to the validation split, the next fold, or a share of the training clips.

    Example: python cli.py probe --model RUN --data OUT/dataset --out PROBE --head linear
    """
    from clap.probe import probe as measure

    result = measure(load(model, device), data, out, fill(ProbeConfig(), settings))
    if as_json:
        print(json.dumps(result, indent=1))
        return
    scores: dict[str, Any] = {key: f"{result[key]:.4f}" for key in result["std"]}
    for spread, over in (("std", "folds"), ("std_seeds", "seeds")):
        scores |= {f"deviation over {over}, {key}": f"{value:.4f}" for key, value in result[spread].items()}
    table("probe", {**scores, "chance": f"{result['chance']:.4f}", "n": result["n"], "classifier": out / "probe"})
    table("per class", {name: f"{value:.4f}" for name, value in result["per_class"].items()})


@command("classify")
def classify(
    files: Annotated[list[Path], typer.Argument(help="Sounds.")],
    model: Model,
    labels: Annotated[str, typer.Option(help="Labels to choose from, separated by commas.")],
    prompt: Prompt = PROMPT,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Name the label that fits each sound best.

    Example: python cli.py classify bark.wav --model RUN --labels "dog bark,rain,siren"
    """
    from clap.evaluate import classify as measure

    found = measure(load(model, device), files, names(labels) or [], prompt)
    if as_json:
        print(json.dumps([{"file": str(f), "labels": each} for f, each in zip(files, found, strict=True)], indent=1))
    else:
        for file, each in zip(files, found, strict=True):
            table(str(file), {label: f"{share:.4f}" for label, share in each.items()})


@command("embed")
def embed(
    paths: Annotated[list[Path], typer.Argument(help="Sounds, and folders of them.")],
    model: Model,
    out: Annotated[Path, typer.Option(help="File to write: a .npz of `files` and `embeddings`.")],
    truncation: Annotated[
        str, typer.Option(help="Of long clips: auto, centre, chunks (their mean), random; fused models: fixed-thirds.")
    ] = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Embed sounds, L2-normalised, one row each.

    Example: python cli.py embed sounds --model RUN --out sounds.npz
    """
    from clap.embed import embed_files

    count = embed_files(load(model, device), paths, out, truncation)
    print(json.dumps({"files": count, "out": str(out)})) if as_json else table("", {"files": count, "out": out})


@command("import")
def import_model(
    source: Annotated[str, typer.Argument(help="A LAION-CLAP .pt, or a folder or Hub id of transformers' ClapModel.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    tokenizer: Annotated[
        str, typer.Option(help="Folder or Hub id of the text tower's tokenizer, which a .pt lacks.")
    ] = "",
) -> None:
    """Turn a published checkpoint into one of ours: config.json, model.safetensors, text/.

    Example: python cli.py import 630k-audioset-best.pt --out laion
    """
    from clap import CLAP

    CLAP.from_pretrained(source, tokenizer=tokenizer or None).save_pretrained(out)
    print(out)


@command("export")
def export(
    model: Model, out: Annotated[Path, typer.Option(help="Folder to write, which ClapModel.from_pretrained reads.")]
) -> None:
    """Turn a model with an HTSAT and a RoBERTa tower into a folder of transformers' ClapModel.

    Example: python cli.py export --model RUN --out clap-transformers
    """
    from clap import CLAP
    from clap.export import to_transformers

    to_transformers(CLAP.from_pretrained(model), out)
    print(out)


def load(model: str, device: str = "auto") -> Any:
    """The model of a run, checkpoint or Hub id, or another's system (clap/systems.py), on a device."""
    from clap.distributed import choose_device
    from clap.systems import open_model

    return open_model(model, choose_device(device))


def names(text: str) -> list[str] | None:
    """The items of "a,b", None where there are none."""
    return [item.strip() for item in text.split(",") if item.strip()] or None


def numbers(text: str) -> list[int]:
    """The numbers of "1,2"."""
    try:
        return [int(item) for item in names(text) or []]
    except ValueError as error:
        raise ClapError(f"--folds {text}: want numbers such as 4 or 1,2") from error


def show_retrieval(result: dict[str, dict[str, float]], as_json: bool) -> None:
    """Print both directions side by side."""
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        for way, scores in result.items():
            table(way.replace("_", " "), {name: f"{value:.4g}" for name, value in scores.items()})


# ---- search


@command("index")
def index(
    source: Annotated[str, typer.Argument(help="A dataset (a folder, a Hub id), or a folder of sounds.")],
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder of the index; run again to take in what has changed.")],
    truncation: Annotated[
        str, typer.Option(help="Of long clips: auto, centre, chunks (their mean); fused models: fixed-thirds.")
    ] = "auto",
    split: Split = "all",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Index sounds by their embeddings, to be searched; run again, only what is new or changed is embedded.

    Example: python cli.py index OUT/dataset --model RUN --out INDEX
    """
    from clap.search.build import build_index

    done = build_index(load(model, device), source, out, truncation=truncation, split=split, name=model)
    print(json.dumps(done, indent=1)) if as_json else table(clean(str(out)), done)
    if done["skipped"] and not as_json:
        print(f"Warning: {done['skipped']} clips do not decode: see {out / 'skipped.csv'}", file=sys.stderr)


@command("search")
def search(
    index: Annotated[Path, typer.Argument(help="Folder of an index.")],
    text: Annotated[str, typer.Argument(help="What to look for, in words.")] = "",
    like: Annotated[str, typer.Option(metavar="FILE", help="A sound to find the like of, instead of a text.")] = "",
    k: Annotated[int, typer.Option("-k", min=1, help="How many clips.")] = 10,
    sources: Annotated[str, typer.Option("--source", help="Only of these sources, such as freesound,bbc.")] = "",
    licenses: Annotated[
        str, typer.Option("--license", help="Only under these licences (each with all its versions): CC0,CC-BY.")
    ] = "",
    model: Annotated[str, typer.Option(help="The model of the index, where it is no longer where it was.")] = "",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the sounds that fit a text best, or that are most like a sound.

    Example: python cli.py search INDEX "dog barking in the rain" --license CC0,CC-BY
    """
    from clap.search.index import Index, find

    opened = Index.open(index)
    keep = opened.mask(names(sources) or (), names(licenses) or ())
    found = find(opened, load(opened.model_name(model), device), text, like, k, keep)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    rows = [(f"{each['score']:.3f}", each["id"], next(iter(each["captions"]), each["title"]), each["license"],
             each["place"]) for each in found]  # fmt: skip
    show_rows(("score", "id", "caption", "licence", "place"), rows)


@command("tag")
def tag(
    files: Annotated[list[Path], typer.Argument(help="Sounds, and folders of them.")],
    model: Model,
    labels_file: Annotated[Path, typer.Option(help="The labels to choose from, one a line.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Most labels of a sound.")] = 5,
    threshold: Annotated[float, typer.Option(help="Least cosine of a label; a sound may then have none.")] = -1.0,
    out: Annotated[Path | None, typer.Option(help="Write a CSV of file, label, score, error.")] = None,
    prompt: Prompt = PROMPT,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Tag many sounds with labels of a list, by cosine.

    Example: python cli.py tag sounds --model RUN --labels-file labels.txt --threshold 0.2 --out tags.csv
    """
    from clap.search.tag import read_labels, write_csv
    from clap.search.tag import tag as run

    found = list(run(load(model, device), files, read_labels(labels_file), prompt, k, threshold))
    if out:
        write_csv(out, found)
    if as_json:
        print(json.dumps([vars(each) | {"file": str(each.file)} for each in found], indent=1))
    else:
        rows = [(str(each.file), ", ".join(f"{label} {score:.3f}" for label, score in each.labels.items()), each.error)
                for each in found]  # fmt: skip
        show_rows(("file", "labels", "error"), rows)
    if all(each.error for each in found):
        raise ClapError("not one of these sounds decodes")


@command("dedup-semantic")
def dedup_semantic(
    index: Annotated[Path, typer.Argument(help="Folder of an index.")],
    out: Annotated[Path, typer.Option(help="Folder for groups.parquet and drop.txt.")],
    threshold: Annotated[float, typer.Option(help="Cosine from which on two clips are the same.")] = 0.95,
    as_json: Json = False,
) -> None:
    """Group clips whose embeddings are nearly the same; drop.txt is for build-dataset --exclude-ids.

    Example: python cli.py dedup-semantic INDEX --out twins --threshold 0.95
    """
    from clap.search.index import Index
    from clap.search.semantic import dedup

    done = dedup(Index.open(index), out, threshold)
    print(json.dumps(done, indent=1)) if as_json else table(clean(str(out)), done)


@command("score")
def score(
    data: Annotated[list[str], typer.Argument(help="Datasets: folders or Hub ids.")],
    model: Model,
    out: Annotated[Path, typer.Option(help="Parquet file to write: id, score, best, worst.")],
    split: Split = "all",
    texts: Annotated[str, typer.Option(help="Sentences that count: captions, generated, both.")] = "captions",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score how well captions fit their sounds, for build-dataset --scores FILE --min-score X.

    Score a dataset built without --scores: a clip that FILE does not name stays, so FILE made from a dataset that
    was filtered already brings back what was rejected.

    Example: python cli.py score OUT/dataset --model RUN --out scores.parquet
    """
    from clap.search.score import score as run

    done = run(load(model, device), data, out, split, texts)
    print(json.dumps(done, indent=1)) if as_json else table(clean(str(out)), done)


def show_rows(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print texts in columns under their names."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    grid = Table(box=None)
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(escape(clean(cell)) for cell in row))
    Console().print(grid)


@command("serve")
def serve(
    index: Annotated[Path, typer.Argument(help="Folder of an index.")],
    model: Annotated[str, typer.Option(help="The model that made the index. Default: as the index names it.")] = "",
    host: Annotated[
        str, typer.Option(help="Address to answer at; another than this machine's own opens it to others.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to answer at; 0 takes a free one.")] = 8000,
    browse: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    device: Device = "auto",
) -> None:
    """Open a web page on this machine: type a text or drop a sound, and hear what an index has near it.

    Example: python cli.py serve INDEX --open
    """
    from clap.search.index import Index
    from clap.search.serve import serve as run

    opened = Index.open(index)
    run(opened, load(opened.model_name(model), device), host, port, browse)


# ---- the whole journey


@command("demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes; run again to continue.")] = Path(
        "demo"
    ),
    as_json: Json = False,
) -> None:
    """The whole journey in minutes: synthesise sounds, build a dataset, train a small CLAP, evaluate it.

    Example: python cli.py demo --out demo
    """
    from clap import evaluate as measure
    from clap.train import train as run
    from pipelines.build import build_dataset as build
    from pipelines.demo import expected_rejections, synthesise

    sounds, data, model = out / "sounds", out / "build" / "dataset", out / "run"
    if not (sounds / "metadata.csv").exists():
        print(f"Synthesising sounds in {sounds}", file=sys.stderr)
        synthesise(sounds)
    report = build(source("folder"), sounds, out / "build", workers=0)
    if report["rejected_by_reason"] != expected_rejections():
        raise BuildError(f"the demo's broken files were rejected as {report['rejected_by_reason']}, which is wrong")
    run(replace(PRESETS["tiny"], epochs=15), str(data), model)
    clap = load(str(model))
    found, guessed = measure.retrieval(clap, str(data)), measure.zero_shot(clap, str(data))
    recall, n = found["text_to_audio"]["R@1"], report["splits"]["test"]
    if as_json:
        print(json.dumps({"report": report, "retrieval": found, "zero_shot": guessed}, indent=1))
        return
    show_build(out / "build", report, as_json=False)
    table("On held-out clips", {
        "retrieval, text to audio, R@1": f"{recall:.3f}  chance {1 / n:.3f}, {recall * n:.1f} times chance",
        "retrieval, audio to text, R@1": f"{found['audio_to_text']['R@1']:.3f}",
        "zero-shot accuracy": f"{guessed['accuracy']:.3f}  chance {guessed['chance']:.3f}",
        "run": model, "best checkpoint": model / "best",
    })  # fmt: skip


if __name__ == "__main__":
    main()
