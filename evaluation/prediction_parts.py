"""Predicts more images than fit into memory, part by part, by any number of processes on any number of machines.

    job = PartsJob(folder, model, find_images(Path("list.txt")), settings, batch_size=64)
    job.run()               # in each process; they may begin and end at any time

In the folder lie `part-000000.parquet` and so on, in the order of the images, each with the columns of
evaluation/prediction_tables.py and `error`: why an image could not be read, null for all others. A part has its name
when it is complete. `_parts.json` says what the parts are of: the first process writes it, and all others agree with it
or stop. A process that is killed loses the part that it was at, which another, or the same command, makes anew.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset import locks
from dataset.decoding import decode_bytes, decode_image, judge_bytes, judge_image
from dataset.files import hash_file
from dataset.image_parts import Images, ListedPicture, Plan
from dataset.image_sizes import Size
from dataset.json_files import read_json
from dataset.part_claims import Claim, Claims, look, name_part
from dataset.tar_shards.scanning import DamagedShard
from dataset.whole_files import make_temporary_folder, write_text
from evaluation.pages import count
from evaluation.prediction_tables import escape, make_arrow_schema, make_arrow_table, require_pyarrow, write_parquet
from export import engines
from predictor import Predictor, Prepared, bring_to_sizes, make_pool, read_in_pool
from utils import InputError, Progress, explain, find_system_error, say, warn

if TYPE_CHECKING:
    import pyarrow as pa

PARTS = "parts"  # the value of PREDICTION_FILES, and the folder
MANIFEST, SUMMARY = "_parts.json", "_summary.json"  # readers of a folder of Parquet files pass names with _ over
VERSION = 1  # of both
ERROR = "error"  # the column
AS_BEFORE: dict[str, Any] = {"PICTURES_ON": "cpu"}  # what settings were of parts that do not note them
ROWS_AT_ONCE = 1024  # that are written together: the row groups of the Parquet files
MANY = 100  # images of one of several parts: if none of them can be read, it is not the images that are damaged
FAULTS_OF_IMAGES = {  # what the system says of a file that is not there or none of ours; all else stops the process
    errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM,
}  # fmt: skip


class ReadPicture(NamedTuple):
    """An image in all sizes of the model, or why it cannot be read."""

    name: str
    arrays: list[Prepared]  # in each size
    error: str = ""


@dataclass
class Tally:
    """What this process has done."""

    images: int = 0
    bad: int = 0
    parts: int = 0
    start: float = field(default_factory=time.perf_counter)

    def describe(self) -> str:
        rate = self.images / max(time.perf_counter() - self.start, 1e-9)
        bad = f", {self.bad:,} of them damaged" if self.bad else ""
        return f"{count(self.images, 'image')} by this process{bad}, {rate:.1f} images/s"


@dataclass
class PartsJob:
    """The prediction of `images` by `model` into `folder`.

    `settings` are the constants that predictions depend on, by name. `skips_bad`: an image that cannot be read, or of
    which a part is lost, has its reason in the column `error`; otherwise the first one stops the process.
    """

    folder: Path
    model: Predictor
    images: Images
    settings: Mapping[str, Any]
    batch_size: int
    num_workers: int = 0
    skips_bad: bool = False
    tally: Tally = field(default_factory=Tally)

    def run(self) -> None:
        """Make parts until all are there, and say how to read them. Raises InputError."""
        require_pyarrow()
        manifest = self.agree()
        plan: Plan = manifest["images"]
        num_parts = count(plan["num_parts"], "part")
        schema = make_schema(self.model)
        self.warn_of_others(plan["num_parts"])
        with make_pool(self.num_workers) as pool, Progress("predicting", plan["num_parts"]) as progress:

            def report(num_done: int) -> None:
                progress.done = num_done
                progress.show(f"{num_done:,} of {num_parts} there; {self.tally.describe()}")

            claims = Claims(self.folder, plan["num_parts"], report)
            if num_done := len(look(self.folder, plan["num_parts"]).done):
                say(f"{num_done:,} of {num_parts} {'was' if num_done == 1 else 'were'} done: going on")
            self.tally = Tally()
            try:
                while claim := claims.take():
                    with claim:
                        self.write_part(claim, plan, schema, pool)
            finally:
                pool.shutdown(cancel_futures=True)
        say(f"{self.tally.describe()}, in {count(self.tally.parts, 'part')}")
        self.finish(plan["num_parts"])

    def warn_of_others(self, num_parts: int) -> None:
        """Warn of Parquet files in the folder that are none of ours: who reads the folder reads them, too."""
        ours = {name_part(self.folder, number).name for number in range(num_parts)}
        if others := sorted({path.name for path in self.folder.glob("*.parquet")} - ours):
            names = f"{', '.join(others[:5])}{f' and {len(others) - 5:,} more' if len(others) > 5 else ''}"
            warn(f"{self.folder} has Parquet files that are none of its parts, and are read with them: {names}")

    # ---- what the parts are of ----

    def describe(self) -> dict[str, Any]:
        """What all processes have to agree on, but for the images."""
        settings = json.loads(json.dumps(self.settings))  # as it is read back: tuples become lists
        digests = [hash_file(path) for path in engines.list_files(self.model.path)]
        return {"version": VERSION, "model_sha256": digests, "settings": settings}

    def agree(self) -> dict[str, Any]:
        """The manifest, which is written first where there is none. Raises InputError where it is of something else."""
        ours, path = self.describe(), self.folder / MANIFEST
        if not path.is_file():
            with locks.hold(self.folder.with_name(f".{self.folder.name}.lock")):  # others need not read the list, too
                if not path.is_file():
                    self.publish({**ours, "model": str(self.model.path), "images": self.images.make_plan()})
        manifest = read_json(path)
        if not isinstance(manifest, dict) or manifest.get("version") != VERSION or not ours.keys() <= manifest.keys():
            raise InputError(f"{path} is of another version of this program, or damaged: choose another folder")
        advice = f"delete {self.folder}, or set PREDICTIONS_FOLDER to another"
        if manifest["model_sha256"] != ours["model_sha256"]:
            raise InputError(f"{self.folder} holds predictions of another model, {manifest['model']}: {advice}")
        theirs = AS_BEFORE | manifest["settings"]
        for name, value in ours["settings"].items():
            found = theirs.get(name, "that an earlier version did not note")
            if found != value:
                raise InputError(f"{self.folder} was begun with {name} {found}, and it is {value}: {advice}")
        try:
            self.images.require_same(manifest["images"])
        except InputError as error:
            raise InputError(f"{self.folder}: {error}; {advice}") from error
        return manifest

    def publish(self, manifest: dict[str, Any]) -> None:
        """Make the folder with the manifest in it. Of several processes, one succeeds: a folder is renamed once."""
        try:
            with make_temporary_folder(self.folder) as new:
                write_text(new / MANIFEST, json.dumps(manifest))
                new.rename(self.folder)
        except OSError as error:
            if (self.folder / MANIFEST).is_file():
                return
            if self.folder.exists():
                raise InputError(f"{self.folder} is there, without {MANIFEST}: delete it, or move it away") from error
            raise InputError(f"cannot write {self.folder}: {explain(error)}") from error

    # ---- a part ----

    def write_part(self, claim: Claim, plan: Plan, schema: pa.Schema, pool: Executor) -> None:
        """Predict the images of a part and write it, complete or not at all. Raises InputError."""
        with closing(self.predict(claim, plan, schema, pool)) as tables:
            write_parquet(claim.part, schema, tables)
        self.tally.parts += 1

    def predict(self, claim: Claim, plan: Plan, schema: pa.Schema, pool: Executor) -> Generator[pa.Table]:
        """The rows of a part, ROWS_AT_ONCE at a time. No more than a few batches of images are in memory."""
        read = make_reader(self.model, self.skips_bad)
        rows, num_rows, num_bad, last_error = Rows(self.model, schema), 0, 0, ""
        where = self.images.name_part(claim.number)  # so is the row of a shard's damage called, which is no image
        for batch in read_in_pool(pool, self.list_pictures(claim, plan), read, self.batch_size):
            claim.beat()
            rows.add(batch)
            images = [picture for picture in batch if picture.name != where]
            num_rows, num_bad = num_rows + len(images), num_bad + sum(bool(picture.error) for picture in images)
            if len(rows) >= ROWS_AT_ONCE:
                yield rows.take()
            last_error = images[-1].error if images else last_error
        if num_bad == num_rows and (num_rows >= MANY or (num_rows and plan["num_parts"] == 1)):
            which = "the only image" if num_rows == 1 else f"none of the {num_rows:,} images"
            raise InputError(f"{which} of part {claim.number} can{'not' * (num_rows == 1)} be read; {last_error}")
        if len(rows):
            yield rows.take()
        self.tally.images, self.tally.bad = self.tally.images + num_rows, self.tally.bad + num_bad

    def list_pictures(self, claim: Claim, plan: Plan) -> Iterator[ListedPicture]:
        """The pictures of a part, and damage of its shard as one that cannot be read."""
        is_empty = True
        try:
            for picture in self.images.read_part(plan, claim.number):
                claim.beat()
                yield picture
                is_empty = False
        except DamagedShard as error:
            if is_empty:  # it is the address, or the file, that is wrong
                raise InputError(f"{error}; no image comes before that") from error
            if not self.skips_bad:
                raise InputError(f'{error} (BAD_IMAGES = "skip" keeps the images before the damage)') from error
            warn(f"{error}: the images before the damage are kept")
            yield ListedPicture(self.images.name_part(claim.number), b"", str(error))

    # ---- the end ----

    def finish(self, num_parts: int) -> None:
        """Say that all parts are there, how many images could not be read, and how to read the parts.

        Raises InputError where a part is damaged, and where there is no image at all.
        """
        path = self.folder / SUMMARY
        with locks.hold(self.folder / ".summary.lock"):  # others need not look into all parts, too
            summary = read_json(path) if path.is_file() else None
            if summary is None or summary["bytes"] != measure_parts(self.folder, num_parts):
                summary = count_rows(self.folder, self.images, num_parts)
                write_text(path, json.dumps(summary))
        if not summary["images"]:
            raise InputError(f"there is no image in {count(num_parts, 'part')}: {self.folder}")
        bad = f", {summary['damaged']:,} of them without labels, with their `error`" if summary["damaged"] else ""
        if summary["damaged_shards"]:
            bad += f"; {count(summary['damaged_shards'], 'shard')} damaged, with the reason in the last row"
        parts = f"all {num_parts:,} parts are" if num_parts > 1 else "the only part is"
        say(
            f"{parts} there: {count(summary['images'], 'image')}{bad}: {self.folder}",
            f'  pandas.read_parquet("{self.folder}", columns=["file", "labels"])',
            f"  duckdb -c \"SELECT * FROM '{self.folder}/*.parquet' LIMIT 5\"",
            f'  pyarrow.dataset.dataset("{self.folder}").to_batches()    # more than fits into memory',
        )


def measure_parts(folder: Path, num_parts: int) -> int:
    """The bytes of all parts. Raises InputError."""
    try:
        return sum(name_part(folder, number).stat().st_size for number in range(num_parts))
    except OSError as error:
        raise InputError(f"cannot read the parts in {folder}: {explain(error)}") from error


def count_rows(folder: Path, images: Images, num_parts: int) -> dict[str, int]:
    """What is in all parts, by the ends of the Parquet files: rows are read only where some have an error.

    {"images": without rows of damaged shards, "damaged": those of them with an error, "damaged_shards", "bytes"}.
    Raises InputError where a part is no whole Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    num_images = num_damaged = num_shards = 0
    for number in range(num_parts):
        path, where = name_part(folder, number), images.name_part(number)
        try:
            with pq.ParquetFile(path) as file:
                metadata = file.metadata
                num_images += metadata.num_rows
                for group in range(metadata.num_row_groups):
                    column = metadata.row_group(group).column(metadata.num_columns - 1)
                    if num_bad := column.num_values - column.statistics.null_count:
                        num_damaged += num_bad
                        num_shards += file.read_row_group(group, columns=["file"])["file"].to_pylist().count(where)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{path} is damaged, delete it and start again: {error}") from error
    return {
        "images": num_images - num_shards,
        "damaged": num_damaged - num_shards,
        "damaged_shards": num_shards,
        "bytes": measure_parts(folder, num_parts),
    }


def make_schema(model: Predictor) -> pa.Schema:
    """The columns of a part: those of a table of predictions, and `error`. Raises InputError without pyarrow."""
    schema = make_arrow_schema(
        model.classes,
        thresholds=model.thresholds.tolist(),
        model_sha256=hash_file(model.path),
        has_novelty=model.compares,
        has_abstains=model.abstention is not None,
    )
    import pyarrow as pa

    return schema.append(pa.field(ERROR, pa.string()))


def predict_pictures(model: Predictor, pictures: Iterable[ListedPicture], schema: pa.Schema) -> pa.Table:
    """The rows of some pictures, which are decoded and predicted here: for a scheduler other than ours.

    An image that cannot be read has its reason in the column `error`. All are in memory at the same time.

        table = predict_pictures(model, [ListedPicture("a.jpg", "/photos/a.jpg")], make_schema(model))
    """
    rows, read = Rows(model, schema), make_reader(model)
    rows.add([read(picture) for picture in pictures])
    return rows.take()


def make_reader(model: Predictor, skips_bad: bool = True) -> Callable[[ListedPicture], ReadPicture]:
    """`read_picture` for a model. Processes may be given it."""
    return partial(
        read_picture,
        resize_rule=model.resize_rule,
        sizes=tuple(model.sizes),
        skips_bad=skips_bad,
        makes_on_gpu=model.makes_on_gpu,
    )


class Rows:
    """Rows of a part that are not yet written."""

    def __init__(self, model: Predictor, schema: pa.Schema) -> None:
        self.model, self.schema = model, schema
        self.clear()

    def clear(self) -> None:
        self.names: list[str] = []
        self.errors: list[str | None] = []
        self.probabilities: list[NDArray[np.float32]] = []
        self.novelty: list[NDArray[np.floating]] = []

    def __len__(self) -> int:
        return len(self.names)

    def add(self, batch: list[ReadPicture]) -> None:
        """Predict the images of a batch that could be read."""
        self.names += [picture.name for picture in batch]
        self.errors += [picture.error or None for picture in batch]
        whole = [picture for picture in batch if not picture.error]
        groups = [[picture] for picture in whole] if self.model.resizes else [whole] if whole else []
        for group in groups:
            views = self.model.stack([picture.arrays for picture in group])
            seen = self.model.look_in_views(views, [picture.name for picture in group])
            self.probabilities.append(seen.probabilities)
            if seen.novelty is not None:
                self.novelty.append(seen.novelty)

    def take(self) -> pa.Table:
        """The rows as a table; then there are none."""
        import pyarrow as pa

        probabilities = np.concatenate([*self.probabilities, np.zeros((0, len(self.model.classes)), np.float32)])
        is_whole = np.array([error is None for error in self.errors], dtype=bool)
        places = np.cumsum(is_whole, dtype=np.int64) - 1
        table = make_arrow_table(
            self.schema.remove(self.schema.get_field_index(ERROR)),
            [""] * len(probabilities),
            self.model.decide(probabilities),
            probabilities,
            novelty=np.concatenate(self.novelty) if self.novelty else np.zeros(0),
            abstains=self.model.abstain(probabilities),
        )
        table = table.take(pa.array(places, mask=~is_whole))  # null, where there is no prediction
        table = table.set_column(0, self.schema.field("file"), pa.array(map(escape, self.names), pa.string()))
        errors = [None if error is None else escape(error) for error in self.errors]
        table = table.append_column(self.schema.field(ERROR), pa.array(errors, pa.string()))
        self.clear()
        return table


def read_picture(
    picture: ListedPicture,
    resize_rule: str | None,
    sizes: tuple[Size, ...],
    skips_bad: bool,
    makes_on_gpu: bool = False,
) -> ReadPicture:
    """Decode a picture and bring it to each of `sizes` (`predictor.bring_to_sizes`), or say why not.

    Raises InputError unless it `skips_bad`, and in any case where not the image is at fault, but the disk.
    """
    try:
        pixels = decode_listed(picture, skips_bad)
    except InputError as error:
        cause = find_system_error(error)
        if cause is not None and cause.errno not in (None, *FAULTS_OF_IMAGES):
            raise
        if not skips_bad:
            raise InputError(f'{error} (BAD_IMAGES = "skip" lists such images, and goes on)') from error
        return ReadPicture(picture.name, [], str(error))
    return ReadPicture(picture.name, bring_to_sizes(pixels, resize_rule, sizes, makes_on_gpu))


def decode_listed(picture: ListedPicture, whole: bool) -> NDArray[np.uint8]:
    """The pixels (H, W, 3). Raises InputError where there are none and, for a `whole` image, where a part is lost."""
    if picture.error:
        raise InputError(f"cannot read {picture.name}: {picture.error}")
    if not whole:  # says what is lost
        content = picture.content
        return decode_image(content) if isinstance(content, str) else decode_bytes(content, picture.name)
    if isinstance(picture.content, str):
        decoded = judge_image(picture.content)
    else:
        decoded = judge_bytes(picture.content, picture.name)
    if decoded.lost:
        raise InputError(f"{picture.name}: {decoded.lost}")
    return decoded.pixels
