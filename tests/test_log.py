"""The log of a run: its lines, on a terminal and off it, TensorBoard, W&B without network, and its picture."""

import io
import json
import math
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
import wandb
from PIL import Image
from rich.console import Console

from clap import curves
from clap.config import ClapError
from clap.log import Log, progress_bar, read

LINE = {"epoch": 0.5, "loss": 1.5, "lr": 1e-4, "grad_norm": 2.0, "scale_a": 14.3, "scale_t": 14.3}
SPEED = {"clips_per_second": 900.0, "data_wait": 0.02}
SCORES = {"validation/mean_recall": 0.4, "validation/text_to_audio/R@1": 0.2, "validation/audio_to_text/R@1": 0.3}


def write(run, *steps, start=0, **options):
    with Log(run, start, 10, **options) as log:
        for step in steps:
            log.tick(step, 4, 2.0 / step)
            log.write(step, {**LINE, "loss": 2.0 / step})
    return log


def scalars(run, name="loss"):
    """(step, value) of a metric as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def test_lines_after_the_step_of_a_killed_run_are_taken_out(tmp_path):
    write(tmp_path, 2, 4, 6)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    log = write(tmp_path, 5, start=4)
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == [2, 4, 5]
    assert log.latest() == {"step": 5, **LINE, "loss": 0.4}


def test_off_a_terminal_every_line_is_plain_and_tells_the_time_to_go(tmp_path, capsys):
    write(tmp_path, *range(1, 6))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5 and said[4].startswith("step 5/10  epoch 0.5  loss 0.4  ")
    assert said[4].endswith(" to go") and "\x1b" not in "".join(said)


def test_the_bar_shows_loss_speed_and_the_wait_for_data(tmp_path):
    with Log(tmp_path, 0, 10) as log:
        log.console = Console(file=io.StringIO(), force_terminal=True, width=150)
        log.bar = progress_bar(log.console)
        log.task = log.bar.add_task("training", total=10)
        for step in range(1, 4):
            log.tick(step, 4)
        assert "loss nan" in log.bar.tasks[0].description
        log.write(3, {"loss": 1.25, "data_wait": 0.021})
        log.tick(4, 4)
        log.bar.start()
        log.bar.refresh()
        log.bar.stop()
    shown = log.console.file.getvalue()
    assert "loss 1.250" in shown and "waiting for data 2%" in shown and "4/10" in shown and "ETA" in shown
    assert " 0 clips/s" not in log.bar.tasks[0].description


def test_a_quiet_log_writes_and_prints_nothing(tmp_path, capsys):
    log = write(tmp_path, 2, 4, quiet=True, tensorboard=True, wandb="clap")
    log.say("hello")
    assert not list(tmp_path.iterdir()) and capsys.readouterr() == ("", "") and log.latest() == {}


def test_tensorboard_shows_each_step_once_also_of_a_run_that_was_killed_and_went_on(tmp_path):
    write(tmp_path, 2, 4, 6, tensorboard=True)
    write(tmp_path, 6, 8, start=4, tensorboard=True)
    assert scalars(tmp_path) == [(2, 1.0), (4, 0.5), (6, 1 / 3), (8, 0.25)]


@pytest.fixture
def requests(monkeypatch):
    """The requests that reach what W&B takes for its server."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(self.path)
            self.send_error(404)

        do_GET = do_HEAD = do_PUT = do_POST

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield seen
    wandb.teardown()  # it keeps the environment that it first saw
    server.shutdown()
    server.server_close()


def test_offline_wandb_is_one_run_that_goes_on_and_sends_nothing(tmp_path, monkeypatch, requests):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for start, steps in ((0, (2, 4)), (4, (6,))):
        write(tmp_path, *steps, start=start, wandb="clap", settings={"lr": 0.125})
    wandb.teardown()  # or files may be written a moment later
    id = (tmp_path / "wandb.txt").read_text()
    files = sorted(tmp_path.glob(f"wandb/offline-run-*-{id}/run-{id}.wandb"))
    assert len(files) == len(list(tmp_path.glob("wandb/offline-run-*"))) == 2 and not requests
    written = [path.read_bytes() for path in files]
    assert all(word in written[0] for word in (b"grad_norm", b"0.125", b"clap", tmp_path.name.encode()))
    assert str(2 / 6).encode() in written[1] and str(2 / 6).encode() not in written[0]


def test_wandb_without_a_key_says_what_to_do(tmp_path, monkeypatch, requests):
    for name, value in {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_MODE": "online"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(ClapError, match=r"no run in project 'clap' .*wandb login.*WANDB_MODE=offline"):
        write(tmp_path, 2, wandb="clap")


@pytest.mark.parametrize(("package", "flag"), [("tensorboard", True), ("wandb", "clap")])
def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path, monkeypatch, package, flag):
    for name in [name for name in sys.modules if name.startswith(("torch.utils.tensorboard", "tensorboard."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ClapError, match=r'is not installed: pip install "clapboard\[track\]"'):
        write(tmp_path, 2, **{package: flag})


def picture(run, lines):
    """The run's curves.png as an image."""
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Image.open(curves.draw(run)).convert("RGB")


def colours(image, colour):
    """How many pixels of the picture have just this colour (#rrggbb)."""
    wanted = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return sum(count for count, found in image.getcolors(image.width * image.height) if found == wanted)


def test_the_curves_are_drawn_of_one_line_and_of_many(tmp_path):
    one = picture(tmp_path / "one", [{"step": 1, **LINE, **SPEED}])
    many = [{"step": i, **LINE, **SPEED, "loss": 2 + math.sin(i / 200)} for i in range(1, 4_001)]
    long = picture(tmp_path / "long", [*many, {"step": 4_000, **SCORES}])
    assert one.size == long.size and colours(one, curves.RED) > 10
    assert colours(long, curves.RED) > 200 and colours(long, curves.STAR) > 20 > colours(one, curves.STAR)
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_best_step_is_the_first_of_the_highest():
    lines = [{"step": step, curves.BEST: score} for step, score in ((5, 0.1), (10, 0.3), (15, 0.3), (20, 0.2))]
    found = curves.best([{"step": 1, "loss": 1.0}, *lines])
    assert found and found["step"] == 10


def test_a_running_mean_is_of_neighbours_and_of_fewer_at_the_ends():
    assert curves.running_mean([0.0, 3.0, 6.0, 30.0], 1).tolist() == pytest.approx([1.5, 3.0, 13.0, 18.0])


def test_a_run_without_lines_has_no_curves(tmp_path):
    with pytest.raises(ClapError, match="train a while first"):
        curves.draw(tmp_path)
