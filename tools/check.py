"""Everything that is wrong with a data set, found in one pass over its image files; nothing in it is changed.

    passed = check("~/my-photos", output="~/check")    # the same: python dataset_tools.py check

Under `output`: `check_dataset_result.json` (PaddleX's keys, and every finding), `exclude.txt` (a list of images for
training to leave out) and `check_dataset/`, whose index.html shows it all. Errors fail the check, warnings do not.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import dataset_readers
import utils
from dataset import whole_files
from dataset.class_names import show_names
from dataset.decoding import DECODER_ERRORS, IMAGE_FORMATS, decode_image
from dataset.files import IMAGE_EXTENSIONS, list_files, make_absolute
from dataset.formats.base import ReadOptions
from dataset.table import Table, map_classes
from dataset.tar_shards import read_bytes
from evaluation.pages import printable
from tools import check_report
from tools.findings import Finding, ImageFacts, Result
from utils import InputError

HASH_SIDE = 16  # 16 x 16 bits: with the usual 8 x 8, different photographs come as close as a re-encoded one
NEAR_BITS = 31  # of 256 that differ at most in a near duplicate; different COCO photographs differ in 78 or more
BLANK_RANGE = 8  # levels between the darkest and the brightest pixel of a picture that shows nothing
PAIRS_AT_ONCE = 2**22  # compared at a time: some 400 MB
PAIRS_MOST = 2**23  # of near duplicates: what some 4,000 frames of one still scene make
KEPT_FIRST = ("test", "val", "train")  # of copies in several splits, the exclude list names the one in the later split
UNREAD = "unread"  # in place of a split: the images of splits whose labels cannot be read


def check_dataset(
    root: str | Path,
    format: str = "auto",
    *,
    output: str | Path,
    classes: Sequence[str] | None = None,
    group_pattern: str | None = None,
    options: ReadOptions | None = None,
    exclude_list: Path | None = None,
    read: Callable[[str], Table] | None = None,
    splits: Sequence[str] | None = None,
    small_side: int = 32,
    num_threads: int | None = None,
) -> bool:
    """Check the data set in `root` and write the report under `output`; False when there is an error in it.

    `classes`, `group_pattern` and `options` are those of `read_dataset`; `read` gives the tables of `splits` in its
    place. `exclude_list` is a file of images to leave out of all splits but test. A picture with a side below
    `small_side` pixels is a warning. Raises InputError when there is nothing to check.
    """
    root, output = make_absolute(root), make_absolute(output)
    if format == "auto":
        format = dataset_readers.recognise_format(root)
    read = read or partial(
        dataset_readers.read_dataset, root, format, classes=classes, group_pattern=group_pattern, options=options
    )
    splits = splits or dataset_readers.list_splits(root, format)
    tables, findings = read_tables(root, splits, read, output / "check_dataset")
    if exclude_list:  # as in training: the test images stay what they are
        tables |= {
            split: dataset_readers.exclude(table, exclude_list, root)
            for split, table in tables.items()
            if split != "test"
        }
    facts = inspect_images(sorted({path for table in tables.values() for path in table.paths}), num_threads)
    copies, excess = find_copies(tables, facts)
    findings += [*find_bad_images(facts, small_side), *copies, *find_source_leaks(tables), *find_class_problems(tables)]
    kinds = list(check_report.KINDS)
    findings.sort(key=lambda finding: (kinds.index(finding.kind), finding.severity))
    result = Result(root, format, tables, facts, findings)
    save_exclude_list(result, excess, output / "exclude.txt")
    samples = check_report.save_report(result, output / "check_dataset")
    save_result(result, samples, output)  # last: where it says done, everything is there
    print_summary(result, output)
    return result.passed


def read_tables(
    root: Path, splits: Iterable[str], read: Callable[[str], Table], report: Path
) -> tuple[dict[str, Table], list[Finding]]:
    """The table that `read` gives of each split, and what keeps a split from being read.

    The images in `root` that only such a split names stand in the table UNREAD with unknown labels, so that they are
    looked at all the same; an earlier `report` holds none. Raises InputError when there is no image at all.
    """
    tables: dict[str, Table] = {}
    findings = []
    for split in splits:
        try:
            table = read(split)
            first = next(iter(tables), split)
            tables[split] = map_classes(table, tables.get(first, table).classes, f"of {split}", f"of {first}")
        except InputError as error:
            findings.append(Finding("labels", "error", f"{split}: {error}"))
    if findings:
        classes = next(iter(tables.values())).classes if tables else ()
        known = {path for table in tables.values() for path in table.paths}
        found = [root / name for name in list_files(root, IMAGE_EXTENSIONS)[0]]
        paths = [str(path) for path in found if str(path) not in known and not path.is_relative_to(report)]
        if paths:
            tables[UNREAD] = Table(paths, np.full((len(paths), len(classes)), -1, dtype=np.int8), classes)
    if not tables:
        raise InputError(f"{root}: no images to check" + "".join(f"; {finding.text}" for finding in findings))
    return tables, findings


# ---- one look at each image ----


def inspect_images(paths: Sequence[str], num_threads: int | None = None) -> dict[str, ImageFacts]:
    """The facts of each file. Threads, because decoding and hashing leave Python's lock; None: one for each core."""
    try:
        import imagehash  # noqa: F401  # before the threads, and before minutes of work
    except ImportError as error:
        raise InputError(f"check needs {error.name}: pip install -r requirements-data.txt") from error
    facts = {}
    with warnings.catch_warnings(), ThreadPool(num_threads) as pool, utils.Progress("checking", len(paths)) as progress:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, but it can be read
        for path, fact in zip(paths, pool.imap(inspect_image, paths, chunksize=8), strict=True):
            facts[path] = fact
            progress.step(1)
    return facts


def inspect_image(path: str) -> ImageFacts:
    """What the file at `path` holds, as training would see it."""
    import imagehash

    try:
        pixels = decode_image(path)
        with Image.open(io.BytesIO(read_bytes(path)), formats=IMAGE_FORMATS) as image:
            file_type, mode = image.format or "", image.mode
    except DECODER_ERRORS as error:  # InputError is one of them
        return ImageFacts(str(error).removeprefix(f"cannot read image {path}: "))
    picture = Image.fromarray(pixels)
    is_blank = np.ptp(picture.getextrema(), axis=1).max() <= BLANK_RANGE  # of every channel
    near_hash = b"" if is_blank else np.packbits(imagehash.phash(picture, HASH_SIDE).hash).tobytes()
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return ImageFacts("", file_type, mode, picture.width, picture.height, digest.digest(), near_hash)


# ---- findings ----


def find_bad_images(facts: Mapping[str, ImageFacts], small_side: int) -> Iterator[Finding]:
    """What is wrong with a picture by itself."""
    types = Image.registered_extensions()
    for path, fact in facts.items():
        if fact.problem:
            yield Finding("unreadable", "error", fact.problem, (path,))
            continue
        expected = types.get(Path(path).suffix.lower())
        found = "JPEG" if fact.file_type == "MPO" else fact.file_type  # cameras call both .jpg
        if expected and found != expected:
            yield Finding("wrong_extension", "warning", f"a {fact.file_type} image", (path,))
        if min(fact.width, fact.height) < small_side:
            yield Finding("small", "warning", f"{fact.width} x {fact.height} pixels", (path,))
        if not fact.near_hash:
            yield Finding("blank", "warning", "one colour all over", (path,))


def find_copies(tables: Mapping[str, Table], facts: Mapping[str, ImageFacts]) -> tuple[list[Finding], list[str]]:
    """Pictures that occur more than once, and the paths to leave out so that each occurs once.

    The first of the copies is the one to keep, test before val before train. Of near duplicates that are alike in a
    chain, those near to a picture that is kept are left out.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    splits = sorted(tables, key=lambda split: (*KEPT_FIRST, UNREAD).index(split))
    rows = [(split, index) for split in splits for index in range(len(tables[split]))]
    same: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for split, index in rows:
        fact = facts[tables[split].paths[index]]
        if not fact.problem:
            same[fact.digest].append((split, index))
    groups = list(same.values())
    findings = [finding for group in groups if len(group) > 1 for finding in judge_copies(tables, group, exact=True)]

    first = [facts[tables[split].paths[index]].near_hash for (split, index), *_ in groups]
    hashed = [number for number, near_hash in enumerate(first) if near_hash]
    hashes = np.frombuffer(b"".join(first), dtype=np.uint8).reshape(-1, HASH_SIDE**2 // 8)
    pairs = np.array(hashed, dtype=np.intp)[find_near_pairs(hashes)]  # of groups, the earlier first
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(groups), len(groups)))
    _, component = connected_components(graph, directed=False)
    alike: dict[int, list[int]] = defaultdict(list)
    for number in np.unique(pairs).tolist():
        alike[component[number]].append(number)
    for numbers in alike.values():
        findings += judge_copies(tables, [groups[number][0] for number in numbers], exact=False)

    dropped = np.zeros(len(groups), dtype=bool)
    pairs = pairs[np.argsort(pairs[:, 1], kind="stable")]
    laters, starts = np.unique(pairs[:, 1], return_index=True)
    for later, earlier in zip(laters, np.split(pairs[:, 0], starts[1:]), strict=False):  # no pairs split into one part
        dropped[later] = not dropped[earlier].all()
    excess = [row for number, group in enumerate(groups) for row in (group if dropped[number] else group[1:])]
    return findings, [tables[split].paths[index] for split, index in excess]


def judge_copies(tables: Mapping[str, Table], rows: Sequence[tuple[str, int]], exact: bool) -> Iterator[Finding]:
    """What is wrong about one picture being in all `rows` (split, index), exactly or nearly."""
    files = tuple(dict.fromkeys(tables[split].paths[index] for split, index in rows))
    picture = ("the same" if exact else "nearly the same") + (" picture" if len(files) > 1 else " file")
    splits = list(dict.fromkeys(split for split, _ in rows if split != UNREAD))
    if len(splits) > 1:
        yield Finding("leak", "error", f"{picture} in {' and '.join(splits)}", files)
    else:
        yield Finding("duplicate" if exact else "near_duplicate", "warning", f"{picture} {len(rows)} times", files)
    targets = np.stack([tables[split].targets[index] for split, index in rows])
    disputed = np.flatnonzero((targets == 1).any(axis=0) & (targets == 0).any(axis=0))
    if len(disputed):
        names = show_names([tables[rows[0][0]].classes[c] for c in disputed])
        yield Finding(
            "label_conflict", "error" if exact else "warning", f"{picture}, but only some show {names}", files
        )


def find_near_pairs(hashes: NDArray[np.uint8]) -> NDArray[np.intp]:
    """(M, 2) pairs i < j of the (N, 32) `hashes` that differ in at most NEAR_BITS bits, without comparing all pairs.

    Multi-index hashing (Norouzi, Punjani and Fleet 2012): of 16 bands of 16 bits, one differs in at most one bit if
    the whole differs in at most 31. So only what agrees in a band, but for one bit, is compared. Warns when there are
    more than PAIRS_MOST, and gives those found until then.
    """
    words = hashes.view(np.uint64)
    found, num_found = [np.empty((0, 2), dtype=np.intp)], 0
    for number, band in enumerate(hashes.view(np.uint16).T):
        order = np.argsort(band, kind="stable")
        keys = band[order].astype(np.intp)
        ends = np.cumsum(np.bincount(keys, minlength=2**16))
        for flipped in (0, *(1 << bit for bit in range(16))):
            rows = np.flatnonzero(keys & flipped == 0)  # each pair of keys from one of its sides only
            starts = np.searchsorted(keys, keys[rows] | flipped) if flipped else rows + 1
            for left, right in _expand(rows, starts, ends[keys[rows] | flipped]):
                pairs = np.sort(np.column_stack([order[left], order[right]]), axis=1)
                different = words[pairs[:, 0]] ^ words[pairs[:, 1]]
                near = np.bitwise_count(different).sum(axis=1) <= NEAR_BITS
                first_band = (np.bitwise_count(different[near].view(np.uint16)) <= 1).argmax(axis=1)
                found.append(pairs[near][first_band == number])  # each pair once
                num_found += len(found[-1])
                if num_found > PAIRS_MOST:
                    utils.warn("so many near duplicates that only some were found: leave those out, then check again")
                    return np.concatenate(found)
    return np.concatenate(found)


def _expand(
    rows: NDArray[np.intp], starts: NDArray[np.intp], ends: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Each of `rows` beside each position from its start to its end, in parts of some PAIRS_AT_ONCE."""
    counts = np.maximum(ends - starts, 0)
    cuts = np.searchsorted(np.cumsum(counts), np.arange(PAIRS_AT_ONCE, counts.sum(), PAIRS_AT_ONCE))
    for part in np.split(np.arange(len(rows)), np.unique(cuts)):
        count = counts[part]
        offsets = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        yield np.repeat(rows[part], count), np.repeat(starts[part], count) + offsets


def find_source_leaks(tables: Mapping[str, Table]) -> Iterator[Finding]:
    """Sources (`Table.groups`) with images in several splits."""
    members: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for split, table in tables.items():
        for path, group in zip(table.paths, table.groups or (), strict=bool(table.groups)):
            if group:  # else its source is not known
                members[group].setdefault(split, []).append(path)
    for group, by_split in members.items():
        if len(by_split) > 1:
            counts = ", ".join(f"{len(paths)} in {split}" for split, paths in by_split.items())
            files = tuple(dict.fromkeys(path for paths in by_split.values() for path in paths))
            yield Finding("source_leak", "error", f"images of source {group}: {counts}", files)


def find_class_problems(tables: Mapping[str, Table]) -> Iterator[Finding]:
    """Classes that a split cannot teach or cannot measure, and how many images have no label."""
    if UNREAD in tables:
        return  # what its images show is not known
    classes = np.array(next(iter(tables.values())).classes)
    present = np.array([(table.targets == 1).any(axis=0) for table in tables.values()])
    for kind, where, chosen in (
        ("class_without_images", "in no split", ~present.any(axis=0)),
        *(
            ("class_in_one_split", f"in {split} only", row & (present.sum(axis=0) == 1))
            for split, row in zip(tables, present, strict=True)
            if len(tables) > 1
        ),
    ):
        if chosen.any():
            yield Finding(kind, "warning", f"{chosen.sum()} of {len(classes)} {where}: {show_names(classes[chosen])}")
    counts = {split: int((table.targets == 0).all(axis=1).sum()) for split, table in tables.items()}
    if any(counts.values()):
        shares = ", ".join(f"{count} of {len(tables[split])} in {split}" for split, count in counts.items())
        yield Finding("no_labels", "warning", f"{shares}: right if they show none of the classes")


# ---- what is written ----


def save_exclude_list(result: Result, excess: Iterable[str], path: Path) -> None:
    """The images that cannot be read and the `excess` copies, as training's EXCLUDE_LIST takes them."""
    text = ""
    for title, paths in (
        ("cannot be read", {path for path, fact in result.facts.items() if fact.problem}),
        ("copies of pictures that stay", set(excess)),
    ):
        if paths:
            names = [result.shorten(path) for path in sorted(paths)]
            text += f"# {title}\n" + "".join(f"{'./' * name.startswith('#')}{name}\n" for name in names)
    whole_files.write_text(path, printable(text))


def save_result(result: Result, samples: Mapping[str, Sequence[Path]], output: Path) -> None:
    """check_dataset_result.json: PaddleX's keys, where val is the test split if there is no other; and the findings."""
    val = "val" if "val" in result.tables else "test"
    names = (Path(result.root, name) for name in ("label.txt", "classes.txt"))
    label_file = next((os.path.relpath(path, output) for path in names if path.is_file()), None)
    attributes: dict[str, object] = {
        "label_file": label_file,
        "num_classes": len(next(iter(result.tables.values())).classes),
    }
    for key, split in (("train", "train"), ("val", val)):
        attributes[f"{key}_samples"] = len(result.tables.get(split, ()))
        attributes[f"{key}_sample_paths"] = [path.relative_to(output).as_posix() for path in samples.get(split, ())]
    values = {
        "done_flag": True,
        "check_pass": result.passed,
        "attributes": attributes,
        "analysis": {"histogram": "check_dataset/histogram.png"},
        "class_counts": check_report.count_positives(
            {name: table for name, table in result.tables.items() if name != UNREAD}
        ),
        "dataset_path": str(result.root),
        "show_type": "image",
        "dataset_type": "MLClsDataset",
        "findings": [
            {**asdict(finding), "files": [result.shorten(path) for path in finding.files]}
            for finding in result.findings
        ],
    }
    text = printable(json.dumps(values, indent=1, ensure_ascii=False))
    whole_files.write_text(output / "check_dataset_result.json", text + "\n")


def print_summary(result: Result, output: Path) -> None:
    splits = ", ".join(f"{len(table):,} {split}" for split, table in result.tables.items())
    utils.say(f"{result.root}: {result.format}, {splits} images")
    for kind, title in check_report.KINDS.items():
        for severity in ("error", "warning"):
            found = [f for f in result.findings if (f.kind, f.severity) == (kind, severity)]
            if found:
                first = result.describe(found[0])
                joint = "; the first: " if found[0].files else ": "  # some findings are about no single image
                utils.say(f"  {severity:8}{len(found):6}  {title}{joint}{first}")
    utils.say(f"check {'passed' if result.passed else 'failed'}: {output / 'check_dataset' / 'index.html'}")
