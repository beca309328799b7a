"""Everything that is wrong with a data set, found in one pass over its image files; nothing in it is changed.

    passed = check("~/my-photos", output="~/check")    # the same: python dataset_tools.py check

Under `output`: `check_dataset_result.json` (PaddleX's keys, and every finding), `exclude.txt` (a list of images for
training to leave out) and `check_dataset/`, whose index.html shows it all. Errors fail the check, warnings do not.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import dataset_readers
import utils
from dataset import whole_files
from dataset.class_checks import judge_classes
from dataset.class_names import quote_names
from dataset.decoding import DECODER_ERRORS, judge_image, open_image
from dataset.files import IMAGE_EXTENSIONS, describe_unread, find_missing, list_files, make_absolute, scan
from dataset.formats.base import ReadOptions
from dataset.json_files import to_json
from dataset.rows import note_missing_images
from dataset.table import SPLITS, Table, map_classes
from dataset.tar_shards import read_bytes, split_member
from dataset.text_files import leave_out_lines
from evaluation.pages import count, printable
from tools import check_report
from tools.findings import KINDS, UNREAD, Finding, ImageFacts, Result
from utils import InputError

HASH_SIDE = 16  # 16 x 16 bits: with the usual 8 x 8, different photographs come as close as a re-encoded one
NEAR_BITS = 31  # of 256 that differ at most in a near duplicate; different COCO photographs differ in 78 or more
BLANK_RANGE = 8  # levels between the darkest and the brightest pixel of a picture that shows nothing
PAIRS_AT_ONCE = 2**22  # compared at a time: some 400 MB
PAIRS_MOST = 2**23  # of near duplicates: what some 4,000 frames of one still scene make
KEPT_FIRST = ("test", "val", "train")  # of copies in several splits, the exclude list names the one in the later split
NOT_READ = re.compile(r": \d+ files? (?:is|are) not read: ")  # what readers say of pictures in a folder of images
WARNING = "warning: "  # how lines of `utils.warn` begin
MAX_LABEL_ERRORS = 20  # of a split, which is read anew after each of them
WRONG_LINE = re.compile(r"(?P<file>.+?):(?P<number>\d+): ")  # how an error about a line of a file begins
WHOLE_TEXTS = (".json", ".xml")  # files that cannot be read without one of their lines
MAX_NAMES = 10  # of classes that are printed
MAX_PRINTED = 3  # findings of a kind


def check_dataset(
    root: str | Path,
    format: str = "auto",
    *,
    output: str | Path,
    classes: Sequence[str] | None = None,
    group_pattern: str | None = None,
    options: ReadOptions | None = None,
    exclude_list: Path | None = None,
    read: Callable[[str, ReadOptions], Table] | None = None,
    splits: Sequence[str] | None = None,
    small_side: int = 32,
    num_threads: int | None = None,
) -> bool:
    """Check the data set in `root` and write the report under `output`; False when there is an error in it.

    `classes`, `group_pattern` and `options` are those of `read_dataset`; `read(split, options)` gives the tables of
    `splits` in its place. `exclude_list` is a file of images to leave out of all splits but test. A picture with a
    side below `small_side` pixels is a warning. Raises InputError when there is nothing to check.
    """
    root, output = make_absolute(root), make_absolute(output)
    if format == "auto":
        format = dataset_readers.recognise_format(root)
    options = replace(options or ReadOptions(), keep_missing=True)

    def read_split(split: str) -> Table:
        if read:
            return read(split, options)
        return dataset_readers.read_dataset(
            root, format, split, classes=classes, group_pattern=group_pattern, options=options
        )

    splits = splits or dataset_readers.list_splits(root, format)
    with hear_warnings() as heard, note_missing_images() as notes:
        tables, findings = read_tables(root, splits, read_split, output / "check_dataset")
        if exclude_list:  # as in training: the test images stay what they are
            tables |= {
                split: dataset_readers.exclude(table, exclude_list, root)
                for split, table in tables.items()
                if split != "test"
            }
    findings += judge_reading(root, heard)
    paths = sorted({path for table in tables.values() for path in table.paths})
    shown = {path for sample in check_report.choose_class_samples(tables).values() for path in sample}
    facts = inspect_images(paths, num_threads, shown)
    copies, excess = find_copies(tables, facts)
    findings += find_bad_images(facts, small_side, notes)
    findings += [*copies, *find_source_leaks(tables), *find_class_problems(tables)]
    folder = f"{root}{os.sep}"
    findings = [replace(finding, text=finding.text.replace(folder, "")) for finding in findings]
    kinds = list(KINDS)
    findings.sort(key=lambda finding: (kinds.index(finding.kind), finding.severity))
    result = Result(root, format, tables, facts, findings)
    save_exclude_list(result, excess, output / "exclude.txt")
    samples = check_report.save_report(result, output / "check_dataset")
    save_result(result, samples, output)  # last: where it says done, everything is there
    print_summary(result, output)
    return result.passed


@contextmanager
def hear_warnings() -> Iterator[list[str]]:
    """Until the end of `with`, collect what `utils.warn` would print, each line once.

    An error lets them be printed after all. What else is written to stderr is printed at the end.
    """
    heard: list[str] = []
    lines = io.StringIO()
    try:
        with redirect_stderr(lines):
            yield heard
    except BaseException:
        sys.stderr.write(lines.getvalue())
        raise
    for line in dict.fromkeys(lines.getvalue().splitlines(keepends=True)):
        if line.startswith(WARNING):
            heard.append(line.removeprefix(WARNING).rstrip("\n"))
        else:
            sys.stderr.write(line)


def read_tables(
    root: Path, splits: Sequence[str], read: Callable[[str], Table], report: Path
) -> tuple[dict[str, Table], list[Finding]]:
    """The table that `read` gives of each split, without the lines that are wrong, and what is wrong with them.

    Where that is more than a line, or more than MAX_LABEL_ERRORS lines, the split has no table: the images in `root`
    that no other split names stand in the table UNREAD with unknown labels, so that they are looked at all the same;
    an earlier `report` holds none. Raises InputError when there is no image at all.
    """
    tables: dict[str, Table] = {}
    findings = []
    wrong_lines: list[tuple[str, int]] = []  # of all splits, which may stand in one file
    for split in splits:
        first = next(iter(tables), split)
        for number in range(1, MAX_LABEL_ERRORS + 1):
            try:
                with leave_out_lines(wrong_lines):
                    table = read(split)
                tables[split] = map_classes(table, tables.get(first, table).classes, f"of {split}", f"of {first}")
                break
            except InputError as error:
                if number > 1 and str(error).endswith("lists no images"):
                    break  # all of its lines are wrong
                line = find_wrong_line(str(error))
                more = "; below it are more such lines" if number == MAX_LABEL_ERRORS else ""
                findings.append(Finding("labels", "error", f"{split}: {error}{more}"))
                if line is None or line in wrong_lines:
                    break
                wrong_lines.append(line)
    if len(tables) < len(splits):
        classes = next(iter(tables.values())).classes if tables else ()
        known = {path for table in tables.values() for path in table.paths}
        found = [root / name for name in list_files(root, IMAGE_EXTENSIONS)[0]]
        paths = [str(path) for path in found if str(path) not in known and not path.is_relative_to(report)]
        if paths:
            tables[UNREAD] = Table(paths, np.full((len(paths), len(classes)), -1, dtype=np.int8), classes)
    if not tables:
        raise InputError(f"{root}: no images to check" + "".join(f"; {finding.text}" for finding in findings))
    return tables, findings


def judge_reading(root: Path, heard: Sequence[str]) -> Iterator[Finding]:
    """What the reader warned of, and which pictures below `root` are of types that are not read."""
    said = [text for text in heard if NOT_READ.search(text)]
    unread = describe_unread(root, scan(root, IMAGE_EXTENSIONS).others)
    yield from (Finding("type_not_read", "warning", text) for text in said or [unread] if text)
    yield from (Finding("reading", "warning", text) for text in heard if text not in said)


def find_wrong_line(text: str) -> tuple[str, int] | None:
    """(file, number) of the line that an error begins with, where the rest of the file can be read without it."""
    found = WRONG_LINE.match(text)
    if not found or found["file"].lower().endswith(WHOLE_TEXTS):
        return None
    is_header = found["number"] == "1" and found["file"].lower().endswith((".csv", ".tsv"))
    return None if is_header else (found["file"], int(found["number"]))


# ---- one look at each image ----


def inspect_images(
    paths: Sequence[str], num_threads: int | None = None, thumbnails: Collection[str] = ()
) -> dict[str, ImageFacts]:
    """The facts of each file, with a small picture of those in `thumbnails`.

    Threads, because decoding and hashing leave Python's lock; None: one for each core.
    """
    try:
        import imagehash  # noqa: F401  # before the threads, and before minutes of work
    except ImportError as error:
        raise InputError(f"check needs {error.name}: pip install -r requirements-data.txt") from error
    facts = {}
    tasks = [(path, path in thumbnails) for path in paths]
    with ThreadPool(num_threads) as pool, utils.Progress("checking", len(paths)) as progress:
        for path, fact in zip(paths, pool.imap(lambda task: inspect_image(*task), tasks, chunksize=8), strict=True):
            facts[path] = fact
            progress.step(1)
    return facts


def inspect_image(path: str, with_thumbnail: bool = False) -> ImageFacts:
    """What the file at `path` holds, as training would see it."""
    import imagehash

    try:
        pixels, lost, remark = judge_image(path)
        with open_image(read_bytes(path)) as image:
            file_type, mode = image.format or "", image.mode
    except DECODER_ERRORS as error:  # InputError is one of them
        return ImageFacts(str(error).removeprefix(f"cannot read image {path}: "))
    picture = Image.fromarray(pixels)
    is_blank = np.ptp(picture.getextrema(), axis=1).max() <= BLANK_RANGE  # of every channel
    near_hash = b"" if is_blank else np.packbits(imagehash.phash(picture, HASH_SIDE).hash).tobytes()
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return ImageFacts(
        file_type=file_type,
        mode=mode,
        width=picture.width,
        height=picture.height,
        digest=digest.digest(),
        near_hash=near_hash,
        lost=lost,
        remark=remark,
        thumbnail=check_report.encode_thumbnail(picture) if with_thumbnail else b"",
    )


# ---- findings ----


def find_bad_images(
    facts: Mapping[str, ImageFacts], small_side: int, notes: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Finding]:
    """What is wrong with a picture by itself. `notes` say what is known of files that do not exist, {path: text}."""
    types = Image.registered_extensions()
    missing = set(find_missing(path for path, fact in facts.items() if fact.problem and not split_member(path)))
    for path, fact in facts.items():
        if path in missing:
            yield Finding("missing", "error", notes.get(path, "there is no such file"), (path,))
            continue
        if fact.problem:
            yield Finding("unreadable", "error", fact.problem, (path,))
            continue
        if fact.lost:
            yield Finding("damaged", "warning", fact.lost, (path,))
        elif fact.remark:
            yield Finding("decoder_remark", "warning", fact.remark, (path,))
        expected = types.get(Path(path).suffix.lower())
        found = "JPEG" if fact.file_type == "MPO" else fact.file_type  # cameras call both .jpg
        if expected and found != expected:
            yield Finding("wrong_extension", "warning", f"its content is {fact.file_type}", (path,))
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
        names = quote_names([tables[rows[0][0]].classes[c] for c in disputed])
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
    """Classes that look wrong, that cannot be learned or measured, and how many images have no label."""
    if UNREAD in tables:
        return  # what its images show is not known
    for problem in judge_classes(tables):
        yield Finding("classes", problem.severity, problem.text)
    classes = np.array(next(iter(tables.values())).classes)
    known = {split: table for split, table in tables.items() if (table.targets != -1).any()}  # not those to predict
    present = np.array([(table.targets == 1).any(axis=0) for table in known.values()])
    for split, row in zip(known, present, strict=True):
        chosen = row & (present.sum(axis=0) == 1)
        is_said = "train" in tables and split != "train"  # as a class that training does not see
        if len(known) > 1 and chosen.any() and not is_said:
            text = f"{chosen.sum()} of {len(classes)} in {split} only: {quote_names(classes[chosen].tolist())}"
            yield Finding("class_in_one_split", "warning", text)
    counts = {split: int((table.targets == 0).all(axis=1).sum()) for split, table in tables.items()}
    if any(counts.values()):
        shares = ", ".join(f"{count} of {len(tables[split])} in {split}" for split, count in counts.items())
        yield Finding("no_labels", "warning", shares)


# ---- what is written ----


def save_exclude_list(result: Result, excess: Iterable[str], path: Path) -> None:
    """The images that cannot be read and the `excess` copies, as training's EXCLUDE_LIST takes them."""
    text = ""
    for title, paths in (
        ("cannot be read", list_files_of(result, "unreadable")),
        ("a part is lost", list_files_of(result, "damaged")),
        ("copies of pictures that stay", set(excess)),
    ):
        if paths:
            names = [result.shorten(path) for path in sorted(paths)]
            text += f"# {title}\n" + "".join(f"{'./' * name.startswith('#')}{name}\n" for name in names)
    whole_files.write_text(path, printable(text))


def list_files_of(result: Result, kind: str) -> set[str]:
    """The files that findings of a kind are about."""
    return {path for finding in result.findings if finding.kind == kind for path in finding.files}


def save_result(result: Result, samples: Mapping[str, Sequence[Path]], output: Path) -> None:
    """check_dataset_result.json: PaddleX's keys, the same of the test split, all counts, and the findings."""
    names = (Path(result.root, name) for name in ("label.txt", "classes.txt"))
    label_file = next((os.path.relpath(path, output) for path in names if path.is_file()), None)
    attributes: dict[str, object] = {
        "label_file": label_file,
        "num_classes": len(next(iter(result.tables.values())).classes),
    }
    for split in SPLITS:  # PaddleX has no test split
        if split != "test" or split in result.tables:
            attributes[f"{split}_samples"] = len(result.tables.get(split, ()))
            paths = [path.relative_to(output).as_posix() for path in samples.get(split, ())]
            attributes[f"{split}_sample_paths"] = paths
    values = {
        "done_flag": True,
        "check_pass": result.passed,
        "attributes": attributes,
        "analysis": {"histogram": "check_dataset/histogram.png"},
        "class_counts": check_report.count_positives(result.splits),
        "dataset_path": str(result.root),
        "show_type": "image",
        "dataset_type": "MLClsDataset",
        "findings": [
            {**asdict(finding), "files": [result.shorten(path) for path in finding.files]}
            for finding in result.findings
        ],
        "titles": {kind: KINDS[kind].title for _, kind in result.list_kinds()},
        "advice": {kind: KINDS[kind].advice for _, kind in result.list_kinds()},
    }
    whole_files.write_text(output / "check_dataset_result.json", to_json(values, indent=1) + "\n")


def print_summary(result: Result, output: Path) -> None:
    """Print what was read, the names of the classes, and of each kind of finding the first ones and what to do."""
    width = utils.make_console().width

    def say(text: str, indent: int = 0) -> None:
        blanks = " " * indent
        utils.say(
            *textwrap.wrap(
                utils.make_visible(text),
                width,
                initial_indent=blanks,
                subsequent_indent=blanks + "  ",
                break_long_words=False,  # paths and names are to be copied
                break_on_hyphens=False,
            )
        )

    counts = [f"{len(table):,} {split}" for split, table in result.splits.items()]
    say(f"{result.root}: read as {result.format}, {', '.join(counts) or 'no'} images")
    if UNREAD in result.tables:
        say(
            f"{len(result.tables[UNREAD]):,} more images lie there: they were looked at, but the labels that name them "
            "cannot be read, so that nothing is known of their splits and classes"
        )
    if result.splits:
        classes = check_report.list_classes(result.splits)
        say(f"{count(len(classes), 'class')}: {quote_names(classes, MAX_NAMES)}")
    for (severity, kind), findings in result.list_kinds().items():
        say(f"{count(len(findings), severity)}: {KINDS[kind].title}")
        for finding in findings[:MAX_PRINTED]:
            say(result.describe(finding), 4)
        if len(findings) > MAX_PRINTED:
            say(f"and {len(findings) - MAX_PRINTED:,} more", 4)
        say(f"To do: {KINDS[kind].advice}", 4)
    verdict = "check passed" if result.passed else "check failed"
    say(f"{verdict}: {check_report.count_findings(result.findings)}")
    say(f"The page with all of it: {output / 'check_dataset' / 'index.html'}")
    excluded = [
        line for line in (output / "exclude.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    if excluded:
        say(f"To leave {count(len(excluded), 'image')} out of training: --EXCLUDE_LIST {output / 'exclude.txt'}")
