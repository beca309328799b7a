"""evaluation/prediction_parts.py: each image once, whatever is killed, damaged or done twice; memory stays the same."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import re
import signal
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_small_run, write_dataset
from PIL import Image

import models_factory
import predictor
import testing
from dataset import image_parts, part_claims, whole_files
from dataset.image_parts import ListedPicture, find_images
from dataset.part_claims import Claims
from evaluation import prediction_parts
from evaluation.prediction_parts import PartsJob
from models import checkpoints
from predictor import Predictor
from utils import InputError

pytest.importorskip("pyarrow", reason="Parquet files need pyarrow (requirements-parquet.txt)")
import pandas as pd
import pyarrow.parquet as pq

CONTEXT = multiprocessing.get_context("fork")
CLASSES = ("red", "green", "blue")
NUM_IMAGES, LINES = 47, 10


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of ten lines, and little patience."""
    monkeypatch.setattr(image_parts, "PART_LINES", LINES)
    monkeypatch.setattr(prediction_parts, "ROWS_AT_ONCE", 8)
    monkeypatch.setattr(prediction_parts, "MANY", 5)
    monkeypatch.setattr(part_claims, "LOOK_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(part_claims, "BEAT_SECONDS", 0.0)


def make_model(folder: Path, content: bytes = b"weights") -> Predictor:
    """A model whose logits are the mean red, green and blue of an image: (mean - 128) / 16."""
    path = folder / "model.onnx"
    path.write_bytes(content)
    metadata = {"model_name": "means", "classes": CLASSES, "image_size": 32, "resize_rule": "squash"}
    return Predictor(lambda images: (images.float().mean((2, 3)) - 128) / 16, metadata, path, torch.device("cpu"))


def draw_colours() -> np.ndarray:
    """(NUM_IMAGES, 3)"""
    return np.random.default_rng(0).integers(60, 200, (NUM_IMAGES, 3), dtype=np.uint8)


def compute_by_hand(colours: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(colours.astype(float) - 128) / 16))


def make_png(colour: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (36, 40), tuple(colour.tolist())).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A list of pictures of one colour each, in a sub-folder."""
    (tmp_path / "pictures").mkdir()
    for number, colour in enumerate(draw_colours()):
        (tmp_path / "pictures" / f"{number:02}.png").write_bytes(make_png(colour))
    path = tmp_path / "list.txt"
    path.write_text("".join(f"pictures/{number:02}.png\n" for number in range(NUM_IMAGES)))
    return path


def make_job(where: Path, model: Predictor | None = None, **options: Any) -> PartsJob:
    folder = where.parent if where.suffix else where
    settings = {"TEST_FLIP": False, "TEST_SCALES": (1.0,)}
    return PartsJob(folder / "out" / "parts", model or make_model(folder), find_images(where), settings, 4, **options)


def read_parts(folder: Path) -> Any:
    """As a person reads them: the whole folder at once."""
    return pd.read_parquet(folder / "out" / "parts")


def require_all(folder: Path) -> None:
    """Each image once, in the order of the list, with its own probabilities; and nothing is left over."""
    table, expected = read_parts(folder), compute_by_hand(draw_colours())
    assert table["file"].tolist() == [f"pictures/{number:02}.png" for number in range(NUM_IMAGES)]
    np.testing.assert_allclose(np.stack([*table["probabilities"]]), expected, atol=1e-6)
    assert table["error"].isna().all()
    parts = {f"part-{number:06}.parquet" for number in range(5)}
    assert {path.name for path in (folder / "out" / "parts").iterdir()} == {*parts, "_parts.json", "_summary.json"}
    assert [path.name for path in (folder / "out").iterdir()] == ["parts"]


# ---- what is written ----


def test_a_row_for_each_line_of_a_list(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = listed.read_text().replace("pictures/03.png\n", "pictures/03.png\r\n\n")  # a blank line counts as one
    listed.write_bytes(b"\xef\xbb\xbf" + text.encode())
    make_job(listed).run()
    require_all(listed.parent)
    folder = listed.parent / "out" / "parts"
    assert [len(pd.read_parquet(path)) for path in sorted(folder.glob("*.parquet"))] == [9, 10, 10, 10, 8]
    file = pq.ParquetFile(folder / "part-000000.parquet")
    assert file.schema_arrow.names == ["file", "labels", "scores", "probabilities", "error"]
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [8, 1]
    metadata = {key.decode(): value.decode() for key, value in file.schema_arrow.metadata.items()}
    assert json.loads(metadata["classes"]) == [*CLASSES]
    assert json.loads(metadata["thresholds"]) == [0.5] * 3
    assert len(metadata["model_sha256"]) == 64
    expected = compute_by_hand(draw_colours())
    for row, probabilities in zip(read_parts(listed.parent).itertuples(), expected, strict=True):
        order = [label for label in np.argsort(-probabilities, kind="stable") if probabilities[label] >= 0.5]
        assert [*row.labels] == [CLASSES[label] for label in order]
        np.testing.assert_allclose(row.scores, probabilities[order], atol=1e-6)
    out = capsys.readouterr().out
    assert "all 5 parts are there: 47 images: " in out
    assert f'pandas.read_parquet("{folder}", columns=["file", "labels"])' in out


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def write_shards(folder: Path) -> None:
    """Two shards: the first has one name twice, labels, and what is no image; the second is of sub-folders."""
    colours = draw_colours()
    folder.mkdir(exist_ok=True)
    first = [(f"{number:02}.png", make_png(colours[number])) for number in range(20)]
    first = [*first[:5], ("04.json", b"{}"), ("notes/readme.txt", b"text"), (".hidden.png", b""), *first[5:]]
    write_tar(folder / "a-0.tar", [*first, ("04.png", make_png(colours[20]))])
    write_tar(folder / "a-1.tar", [(f"x/y/{n}.png", make_png(colours[n])) for n in range(21, NUM_IMAGES)])


@pytest.mark.parametrize("way", ["folder", "pattern", "list", "numbers"])
def test_a_part_for_each_shard(tmp_path: Path, way: str) -> None:
    folder = tmp_path / "shards"
    write_shards(folder)
    where = {"folder": folder, "pattern": folder / "a-*.tar"}.get(way, tmp_path / "which.txt")
    text = "shards/a-{0..1}.tar" if way == "numbers" else "# two\nshards/a-0.tar\nshards/a-1.tar\n"
    (tmp_path / "which.txt").write_text(text)
    job = make_job(tmp_path / "which.txt")
    job.images = find_images(where)
    job.run()
    table = read_parts(tmp_path)
    names = [*(f"a-0.tar/{number:02}.png" for number in range(20)), "a-0.tar/04.png"]
    names += [f"a-1.tar/x/y/{number}.png" for number in range(21, NUM_IMAGES)]
    assert table["file"].tolist() == [f"{folder}/{name}" for name in names]
    np.testing.assert_allclose(np.stack([*table["probabilities"]]), compute_by_hand(draw_colours()), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"parts are made of \.tar shards .* or of a \.txt list with a path a line, and .* is none of these"),
        ("", r"list\.txt names no image"),
        ("\n \r\n\n", r"list\.txt names no image"),
        ("a.png\rb.png\r", r"list\.txt ends its lines by CR alone: tr "),
        ("a.tar\rb.png\r", r"list\.txt:2: 'b\.png' does not end in \.tar"),
        ("a.tar\nb.png\n", r"list\.txt:2: 'b\.png' does not end in \.tar"),
        ("pipe:cat a.tar\n", r"list\.txt:1: .*set SHARD_COMMANDS = True"),
        ("https://host/a.png\n", r"lists addresses, and single images are not fetched"),
        ("nowhere.tar\n", r"cannot read .*nowhere\.tar \(.*list\.txt:1\): No such file"),
    ],
)
def test_what_is_no_images(tmp_path: Path, text: str | None, message: str) -> None:
    where = tmp_path / "list.txt"
    if text is None:
        where = tmp_path / "pictures"
        where.mkdir()
    else:
        where.write_bytes(text.encode())
    with pytest.raises(InputError, match=message):
        make_job(where).run()
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_list_is_read_a_block_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its parts begin is the same for any size of the blocks: compared with the lines themselves."""
    rng = np.random.default_rng(0)
    lines = [f"{'é' * int(rng.integers(1, 30))}{number}.png\n" for number in range(1003)]
    path = tmp_path / "list.txt"
    path.write_text("".join(lines).removesuffix("\n"), encoding="utf-8")
    data = path.read_bytes()
    expected = np.cumsum([len("".join(lines[start : start + LINES]).encode()) for start in range(0, 1003, LINES)])
    expected[-1] = len(data)
    plans = []
    for block in (7, 1000, 1 << 20):
        monkeypatch.setattr(image_parts, "BLOCK_BYTES", block)
        images = find_images(path)
        plans.append(images.make_plan())
        assert plans[-1]["ends"] == expected.tolist()
    assert plans[0] == plans[1] == plans[2]
    found = [picture.name for number in range(101) for picture in images.read_part(plans[0], number)]
    assert found == [line.strip() for line in lines]
    monkeypatch.setattr(image_parts, "MOST_PART_BYTES", 50)
    with pytest.raises(InputError, match="is no list of paths: its lines are too long"):
        images.make_plan()


# ---- several processes ----


def fork(work: Callable[[], object]) -> Any:
    """Do it in a process of its own."""

    def run() -> None:
        torch.set_num_threads(1)
        work()

    process = CONTEXT.Process(target=run)
    process.start()
    return process


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_two_processes_do_no_part_twice(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = listed.parent / "log"
    write_part = PartsJob.write_part
    barrier = CONTEXT.Barrier(2)

    def write_and_log(job: PartsJob, claim: Any, *rest: Any) -> None:
        if not job.tally.parts:
            barrier.wait(30)  # both are at work
        write_part(job, claim, *rest)
        with log.open("a") as file:
            file.write(f"{os.getpid()} {claim.number}\n")

    monkeypatch.setattr(PartsJob, "write_part", write_and_log)
    jobs = [make_job(listed) for _ in range(2)]
    processes = [fork(job.run) for job in jobs]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    log_lines = [line.split() for line in log.read_text().splitlines()]
    log.unlink()
    assert sorted(int(number) for _, number in log_lines) == [0, 1, 2, 3, 4]
    assert len({process for process, _ in log_lines}) == 2
    require_all(listed.parent)


def kill_at(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, let a process die at this step of its third part."""
    made: list[int] = []
    create, rename, write_part, predict = part_claims._write, os.replace, PartsJob.write_part, PartsJob.predict

    def write_claim(path: Path, text: str, flags: int) -> None:
        if flags & os.O_EXCL and len(made) == 2 and step == "claim is empty":
            create(path, "", flags)
            die()
        create(path, text, flags)
        if flags & os.O_EXCL and len(made) == 2 and step == "claimed":
            die()

    def replace(source: Path, target: Path) -> None:
        is_third = Path(target).suffix == ".parquet" and len(made) == 2
        if is_third and step == "written":
            die()
        rename(source, target)
        if is_third and step == "renamed":
            die()

    def predict_some(*arguments: Any) -> Iterator[Any]:
        for table in predict(*arguments):
            yield table
            if len(made) == 2 and step == "half written":
                die()

    def count(job: PartsJob, claim: Any, *rest: Any) -> None:
        write_part(job, claim, *rest)
        made.append(claim.number)

    monkeypatch.setattr(part_claims, "_write", write_claim)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(PartsJob, "predict", predict_some)
    monkeypatch.setattr(PartsJob, "write_part", count)


@pytest.mark.parametrize("step", ["claim is empty", "claimed", "half written", "written", "renamed"])
def test_a_kill_loses_at_most_one_part(
    listed: Path, step: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(listed)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(step, patch)
        process = fork(job.run)
        process.join()
    assert process.exitcode == -signal.SIGKILL
    folder = listed.parent / "out" / "parts"
    done = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    assert len(done) == 2 + (step == "renamed")
    assert len(list(folder.glob(".part-*.claim-*"))) == 1
    monkeypatch.setattr(part_claims, "PATIENCE_SECONDS", 0.03 if step == "claim is empty" else 1e9)
    capsys.readouterr()
    make_job(listed).run()
    out = capsys.readouterr().out
    assert f"{len(done)} of 5 parts were done: going on" in out
    assert f"in {5 - len(done)} parts\n" in out
    require_all(listed.parent)
    assert all((folder / name).stat().st_mtime_ns == changed for name, changed in done.items())


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError])
def test_a_process_leaves_between_parts_and_another_goes_on(listed: Path, error: type[BaseException]) -> None:
    """Ctrl-C, and an error: the claim is given back, and nothing half written is left."""
    folder = listed.parent / "out" / "parts"
    job: Any = make_job(listed)
    predict = job.predict

    def leave(*arguments: Any) -> Iterator[Any]:
        if job.tally.parts:
            raise error("enough")
        return predict(*arguments)

    job.predict = leave
    with pytest.raises(error):
        job.run()
    (part,) = folder.glob("*.parquet")
    assert {path.name for path in folder.iterdir()} == {part.name, "_parts.json"}
    make_job(listed).run()
    require_all(listed.parent)


# ---- claims of other machines ----


class Clock:
    """The time of this machine, which goes on while it sleeps; `on_sleep` is what others do meanwhile."""

    def __init__(self, on_sleep: Callable[[float], object]) -> None:
        self.now, self.on_sleep = 1000.0, on_sleep

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep(self.now)


def test_a_claim_of_another_machine_holds_while_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = tmp_path / ".part-000000.claim-0"
    claim.write_text("0123abcd-7")
    beats = iter(range(5))

    def beat(now: float) -> None:
        with suppress(StopIteration):
            claim.write_text(f"0123abcd-7 {next(beats)}")
            changes.append(now)

    changes: list[float] = []
    clock = Clock(beat)
    monkeypatch.setattr(part_claims, "time", clock)
    monkeypatch.setattr(part_claims, "LOOK_SECONDS", (50.0, 50.0))
    taken = Claims(tmp_path, 1).take()
    assert taken is not None
    assert (taken.number, taken.count, len(changes)) == (0, 1, 5)
    since = clock.now - changes[-1]
    assert part_claims.PATIENCE_SECONDS < since <= part_claims.PATIENCE_SECONDS + 100


def test_a_part_that_was_finished_meanwhile_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a look at the folder and the claim, as on a disk that shows files late."""
    (tmp_path / "part-000000.parquet").touch()
    looks = iter([part_claims.Found(set(), {})])
    monkeypatch.setattr(part_claims, "look", lambda folder, num_parts: next(looks, part_claims.Found({0}, {})))
    assert Claims(tmp_path, 1).take() is None
    assert [path.name for path in tmp_path.iterdir()] == ["part-000000.parquet"]


def test_who_finishes_a_part_removes_all_claims_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_claims, "PATIENCE_SECONDS", 0.02)
    (tmp_path / ".part-000000.claim-0").write_text("0123abcd-7")
    (tmp_path / ".part-000000.claim-1").write_text("0123abcd-8")
    for is_done, left in ((False, {".part-000000.claim-0", ".part-000000.claim-1"}), (True, {"part-000000.parquet"})):
        claim = Claims(tmp_path, 1).take()
        assert claim is not None
        assert claim.count == 2
        with claim:
            if is_done:
                claim.part.touch()
        assert {path.name for path in tmp_path.iterdir()} == left


def test_who_stood_still_and_goes_on_does_no_harm(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process claims a part and stands still; the second takes it over; then both finish it."""
    job = make_job(listed)
    plan = job.agree()["images"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part_claims, "name_process", lambda: "0123abcd-7")  # of another machine
        slow = Claims(job.folder, plan["num_parts"]).take()
    assert slow is not None
    monkeypatch.setattr(part_claims, "PATIENCE_SECONDS", 0.02)
    claims = Claims(job.folder, plan["num_parts"])
    with predictor.make_pool(0) as pool:
        while claim := claims.take():
            with claim:
                if claim.number == slow.number:
                    assert claim.count == 1
                    with slow:
                        job.write_part(slow, plan, prediction_parts.make_schema(job.model), pool)
                job.write_part(claim, plan, prediction_parts.make_schema(job.model), pool)
            claim.beat()  # of a claim that is gone: it does not come back
    job.finish(plan["num_parts"])
    require_all(listed.parent)


# ---- what the parts are of ----


@contextmanager
def no_lock(path: Path, **options: Any) -> Iterator[bool]:
    yield True


def test_two_that_begin_at_the_same_moment_agree(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even on a disk without locks. While the first looks at the list, the second is done with that."""
    monkeypatch.setattr(prediction_parts.locks, "hold", no_lock)
    first, second = make_job(listed), make_job(listed)
    make_plan = first.images.make_plan

    def make_plan_late() -> Any:
        plan = make_plan()
        second.agree()
        return plan

    monkeypatch.setattr(first.images, "make_plan", make_plan_late)
    assert first.agree() == second.agree()
    assert [path.name for path in (listed.parent / "out").iterdir()] == ["parts"]
    first.run()
    assert len(read_parts(listed.parent)) == NUM_IMAGES


def test_two_of_different_models_that_begin_at_the_same_moment(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_parts.locks, "hold", no_lock)
    (listed.parent / "second").mkdir()
    first, second = make_job(listed), make_job(listed, make_model(listed.parent / "second", b"other weights"))
    make_plan = first.images.make_plan
    monkeypatch.setattr(first.images, "make_plan", lambda: (second.agree(), make_plan())[1])
    with pytest.raises(InputError, match=r"holds predictions of another model, .*second/model\.onnx: delete"):
        first.agree()


def test_other_models_settings_and_images_are_refused(listed: Path, tmp_path: Path) -> None:
    make_job(listed).run()
    with pytest.raises(InputError, match=r"parts holds predictions of another model, .*set PREDICTIONS_FOLDER"):
        make_job(listed, make_model(tmp_path, b"other weights")).run()
    job = make_job(listed)
    job.settings = {**job.settings, "TEST_FLIP": True}
    with pytest.raises(InputError, match="parts was begun with TEST_FLIP False, and it is True: delete"):
        job.run()
    text = listed.read_text()
    (listed.parent / "out" / "parts" / "part-000001.parquet").unlink()
    for changed, message in (
        (text + "one more.png\n", "its parts are of other images, a list of 752 bytes; delete"),
        (text.replace("46.png", "45.png"), r"list\.txt has changed since its parts were begun: from line 41 on"),
        (text.replace("12.png", "11.png"), r"list\.txt has changed since its parts were begun: from line 11 on"),
    ):
        listed.write_text(changed)
        with pytest.raises(InputError, match=message):
            make_job(listed).run()
    listed.write_text(text)
    make_job(listed).run()
    require_all(listed.parent)


def test_parts_that_do_not_say_where_pictures_were_made_are_of_a_cpu(
    listed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So earlier versions wrote them."""
    make_job(listed).run()
    job = make_job(listed)
    job.settings = {**job.settings, "PICTURES_ON": "gpu"}
    with pytest.raises(InputError, match="parts was begun with PICTURES_ON cpu, and it is gpu: delete"):
        job.run()
    job.settings = {**job.settings, "PICTURES_ON": "cpu"}
    capsys.readouterr()
    job.run()
    assert "5 of 5 parts were done: going on" in capsys.readouterr().out


def test_other_shards_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards")
    where = tmp_path / "which.txt"
    where.write_text("shards/a-{0..1}.tar\n")
    make_job(where).run()
    (tmp_path / "out" / "parts" / "part-000000.parquet").unlink()
    with (tmp_path / "shards" / "a-0.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(InputError, match=r"a-0\.tar has [\d,]+ bytes, and had [\d,]+ when this began"):
        make_job(where).run()
    where.write_text("shards/a-0.tar\n")
    with pytest.raises(InputError, match="its parts are of other images, 2 shards; delete"):
        make_job(where).run()


def test_a_folder_of_something_else_is_left_alone(listed: Path) -> None:
    folder = listed.parent / "out" / "parts"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"parts is there, without _parts\.json: delete it, or move it away"):
        make_job(listed).run()
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


# ---- images that cannot be read ----


def damage(listed: Path) -> dict[str, str]:
    """{image: why it cannot be read}"""
    folder = listed.parent / "pictures"
    (folder / "03.png").unlink()
    (folder / "17.png").write_text("no image")
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    (folder / "41.png").write_bytes(buffer.getvalue()[:1500])
    return {"03": "No such file", "17": "it is text", "41": "premature end|truncated|Premature"}


def test_damaged_images_are_listed_and_counted(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = damage(listed)
    make_job(listed, skips_bad=True).run()
    table = read_parts(listed.parent)
    assert table["file"].tolist() == [f"pictures/{number:02}.png" for number in range(NUM_IMAGES)]
    bad = table[table["error"].notna()]
    assert bad["file"].tolist() == [f"pictures/{name}.png" for name in damaged]
    assert bad[["labels", "scores", "probabilities"]].isna().all().all()
    for error, reason in zip(bad["error"], damaged.values(), strict=True):
        assert re.search(reason, error), error
    whole = table["error"].isna()
    expected = compute_by_hand(draw_colours())[whole]
    np.testing.assert_allclose(np.stack([*table["probabilities"][whole]]), expected, atol=1e-6)
    out = capsys.readouterr().out
    assert "47 images by this process, 3 of them damaged" in out
    assert "all 5 parts are there: 47 images, 3 of them without labels, with their `error`" in out


def test_a_damaged_image_stops_the_process_unless_it_is_to_be_listed(listed: Path) -> None:
    damage(listed)
    with pytest.raises(
        InputError, match=r'cannot read image .*(03|17|41).png: .*\(BAD_IMAGES = "skip" lists such images'
    ):
        make_job(listed).run()
    assert not list((listed.parent / "out" / "parts").glob(".part*"))


def test_a_disk_that_fails_is_no_damaged_image(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_bytes(path: str) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("dataset.decoding.read_bytes", read_bytes)
    with pytest.raises(InputError, match=r"^cannot read image .*: Input/output error$"):
        make_job(listed, skips_bad=True).run()
    assert not list(listed.parent.rglob("part-*"))


def test_a_folder_that_is_gone_is_no_damaged_images(listed: Path) -> None:
    (listed.parent / "pictures").rename(listed.parent / "elsewhere")
    with pytest.raises(InputError, match=r"none of the (10|7) images of part \d can be read; .*No such file"):
        make_job(listed, skips_bad=True).run()
    assert not list(listed.parent.rglob("part-*"))


@pytest.mark.parametrize(("size", "num_rows"), [(30 * 512, 7), (31 * 512 + 20, 7)])
def test_a_shard_that_is_cut_short(tmp_path: Path, size: int, num_rows: int) -> None:
    """Between two members, and within one: the images before are kept, or it stops. Members are two blocks here."""
    write_shards(tmp_path / "shards")
    where = tmp_path / "which.txt"
    where.write_text("shards/a-{0..1}.tar\n")
    os.truncate(tmp_path / "shards" / "a-1.tar", size)
    with pytest.raises(InputError, match=r'a-1\.tar is .*\(BAD_IMAGES = "skip" keeps the images before'):
        make_job(where).run()
    job = make_job(where, skips_bad=True)
    job.folder = tmp_path / "out" / "skipped"
    job.run()
    table = pd.read_parquet(job.folder / "part-000001.parquet")
    assert len(table) == size // 1024 + 1
    assert table["error"].isna().tolist() == [True] * (len(table) - 1) + [False]
    assert "a-1.tar" in table["error"].iloc[-1]


def test_a_shard_that_is_cut_short_is_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its damage is a row, with its address, and counted for itself."""
    write_shards(tmp_path / "shards")
    where, shard = tmp_path / "which.txt", tmp_path / "shards" / "a-1.tar"
    where.write_text("shards/a-{0..1}.tar\n")
    os.truncate(shard, 31 * 512 + 20)
    job = make_job(where, skips_bad=True)
    job.run()
    table = read_parts(tmp_path)
    assert table["file"].tolist()[-1] == str(shard)
    out = capsys.readouterr().out
    num_images = len(table) - 1
    assert f"{num_images} images by this process, " in out
    assert f"there: {num_images} images; 1 shard damaged, with the reason in the last row: " in out
    assert json.loads((job.folder / "_summary.json").read_text())["damaged"] == 0


@pytest.mark.parametrize("content", [b"", b"no tar\n" * 100, b"\x1f\x8b\x08\x00" + bytes(100), bytes(2048)])
def test_a_shard_of_which_nothing_can_be_read_stops(tmp_path: Path, content: bytes) -> None:
    write_shards(tmp_path / "shards")
    where = tmp_path / "which.txt"
    where.write_text("shards/a-{0..1}.tar\n")
    (tmp_path / "shards" / "a-1.tar").write_bytes(content)
    if not any(content) and content:  # an empty tar is whole
        (tmp_path / "shards" / "a-0.tar").write_bytes(content)
        message = r"^there is no image in 2 parts: .*parts$"
    else:
        message = r"a-1\.tar is no whole tar file .*; no image comes before that"
    with pytest.raises(InputError, match=message):
        make_job(where, skips_bad=True).run()


def test_a_short_list_of_which_nothing_can_be_read_stops(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_parts, "MANY", 100)
    for text, message in (
        ("no.png\nnone.png\n", "none of the 2 images of part 0 can be read; .*No such file"),
        ("no.png\n", "the only image of part 0 cannot be read; .*No such file"),
    ):
        listed.write_text(text)
        with pytest.raises(InputError, match=message):
            make_job(listed, skips_bad=True).run()
        (listed.parent / "out" / "parts" / "_parts.json").unlink()
        (listed.parent / "out" / "parts").rmdir()


def test_a_name_that_is_no_utf_8_is_found(listed: Path) -> None:
    (listed.parent / "pictures" / "03.png").rename(listed.parent / "pictures" / "\udce9.png")
    listed.write_bytes(listed.read_bytes().replace(b"/03.png", b"/\xe9.png"))
    make_job(listed).run()
    table = read_parts(listed.parent)
    assert table["file"][3] == "pictures/\\udce9.png"
    np.testing.assert_allclose(np.stack([*table["probabilities"]]), compute_by_hand(draw_colours()), atol=1e-6)
    (listed.parent / "utf16.txt").write_text(listed.read_text(errors="replace"), encoding="utf-16")
    with pytest.raises(InputError, match=r"utf16\.txt is UTF-16: save it as UTF-8"):
        find_images(listed.parent / "utf16.txt").make_plan()


def test_parts_that_were_damaged_later_and_files_of_others(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = listed.parent / "out" / "parts"
    make_job(listed).run()
    content = (folder / "part-000002.parquet").read_bytes()
    for damaged in (b"", b"PAR1" + bytes(len(content) - 8)):
        (folder / "part-000002.parquet").write_bytes(damaged)
        with pytest.raises(InputError, match=r"part-000002\.parquet is damaged, delete it and start again"):
            make_job(listed).run()
    (folder / "part-000002.parquet").unlink()
    for name in ("part-000005.parquet", "part-0000002.parquet", "part-mine.parquet"):
        (folder / name).write_bytes(content)
    capsys.readouterr()
    make_job(listed).run()
    captured = capsys.readouterr()
    assert "4 of 5 parts were done: going on" in captured.out
    others = "part-0000002.parquet, part-000005.parquet, part-mine.parquet"
    assert f"has Parquet files that are none of its parts, and are read with them: {others}\n" in captured.err


def test_one_is_one(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed.write_text("pictures/00.png\n")
    make_job(listed).run()
    out = capsys.readouterr().out
    assert re.search(r"1 image by this process, [\d.]+ images/s, in 1 part\nthe only part is there: 1 image: ", out)
    make_job(listed).run()
    assert "1 of 1 part was done: going on\n0 images by this process" in capsys.readouterr().out


def test_the_same_rows_for_another_scheduler(listed: Path) -> None:
    damage(listed)
    model = make_model(listed.parent)
    make_job(listed, model, skips_bad=True).run()
    names = listed.read_text().split()
    pictures = [ListedPicture(name, str(listed.parent / name)) for name in names]
    table = prediction_parts.predict_pictures(model, pictures, prediction_parts.make_schema(model))
    parts = pq.read_table(listed.parent / "out" / "parts")
    same = ["file", "labels", "error"]
    assert table.select(same).to_pylist() == parts.select(same).to_pylist()
    ours, theirs = (each["probabilities"].combine_chunks().flatten() for each in (table, parts))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)  # in batches of another size
    assert len(ours) == (NUM_IMAGES - 3) * len(CLASSES)
    assert prediction_parts.predict_pictures(model, [], prediction_parts.make_schema(model)).num_rows == 0


# ---- memory ----


def test_no_more_than_a_few_batches_are_read_ahead(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_parts, "PART_LINES", 1000)
    job, num_read, ahead = make_job(listed), 0, []
    run = job.model.run

    def count_read(plan: Any, number: int) -> Iterator[Any]:
        nonlocal num_read
        for picture in type(job.images).read_part(job.images, plan, number):
            num_read += 1
            yield picture

    def count_ahead(images: torch.Tensor) -> torch.Tensor:
        ahead.append(num_read - 4 * len(ahead))
        return run(images)

    monkeypatch.setattr(job.images, "read_part", count_read)
    job.model.run = count_ahead
    job.run()
    assert len(ahead) == 12
    assert max(ahead) <= (predictor.BATCHES_AHEAD + 1) * 4


def test_memory_does_not_grow_with_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(image_parts, "PART_LINES", 1000)
    path = tmp_path / "list.txt"
    path.write_bytes(b"".join(b"folder/of/pictures/%09d.jpg\n" % number for number in range(100)) * 4000)
    size = path.stat().st_size
    images = find_images(path)
    tracemalloc.start()
    plan = images.make_plan()
    num_images = sum(1 for number in (0, 200, 399) for _ in images.read_part(plan, number))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (plan["num_parts"], num_images) == (400, 3000)
    assert size > 12_000_000
    assert peak < size / 2


# ---- testing.py ----


def test_testing_predicts_in_parts_what_it_predicts_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    dataset = write_dataset(tmp_path / "set", num_train=1)
    torch.manual_seed(0)
    model = models_factory.make_model("squeezenet1_1", 3, "linear", image_size=32)
    content = {"model_state": model.state_dict(), "model_name": "squeezenet1_1", "head": "linear"}
    content |= {"classes": [*CLASSES], "image_size": 32, "resize_rule": "squash", "best_threshold": 0.5, "config": {}}
    checkpoints.save(tmp_path / "trained_models" / "best_model.pt", content)
    images = dataset / "images" / "test-resized"
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in sorted(images.iterdir())))
    arguments = [*make_small_run(dataset, tmp_path), "--TEST_BATCH_SIZE=5"]
    testing.main([*arguments, f"--TEST_IMAGES_DIR={images}", "--PREDICTION_FILES=probabilities"])
    (file,) = (tmp_path / "predictions").glob("*_probabilities.csv")
    expected = pd.read_csv(file)
    in_parts = [*arguments, f"--TEST_IMAGES_DIR={tmp_path / 'list.txt'}", "--PREDICTION_FILES=parts"]
    testing.main(in_parts)
    table = pd.read_parquet(tmp_path / "predictions" / "parts")
    assert table["file"].tolist() == expected["image_path"].tolist()
    settings = json.loads((tmp_path / "predictions" / "parts" / "_parts.json").read_text())["settings"]
    assert "TEST_FLIP" in settings
    assert "TH_MULTI_LABEL" not in settings, "the model has a threshold of its own"
    np.testing.assert_allclose(np.stack([*table["probabilities"]]), expected[[*CLASSES]], atol=1e-6)
    capsys.readouterr()
    testing.main(in_parts)
    out = capsys.readouterr().out
    assert "2 of 2 parts were done: going on\n0 images by this process" in out
    assert "all 2 parts are there: 12 images" in out
    assert "begun with TEST_FLIP False, and it is True" in fails(testing.main, [*in_parts, "--TEST_FLIP=True"])
    assert "RESUME is never" in fails(testing.main, [*in_parts, "--RESUME=never"])
    assert whole_files.has_ended(whole_files.name_process()) is False
