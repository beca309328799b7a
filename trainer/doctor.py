"""Says in plain words what costs people days: `Doctor` looks at a run's data, first step, epochs and validations.

    doctor = Doctor()
    doctor.look_at_data(train, val)
    doctor.watch(model, optimizer, average)                     # before each epoch
    doctor.look_at_first_step(network, batch, logits, ...)      # once
    doctor.look_at_epoch(model, optimizer, average, ...)        # after each
    doctor.look_at_loading(...)                                 # after each that read images
    doctor.look_at_validation(probabilities, targets, ...)

A finding is said once a run, and kept in `findings`. The limits lie far beyond what healthy runs reach: a false alarm
costs more than a miss. Nothing here moves the run's random numbers or a module, and no step waits for the GPU but the
first.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from io import BufferedReader
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

import metrics
import utils
from dataset.batches import Batch
from dataset.decoding import stamp_files
from dataset.table import Table
from dataset.tar_shards import split_member
from losses import Objective, reduce_loss
from utils import InputError

PARTS = {"backbone", "head"}  # of a model
# the comments give what healthy runs measured: MobileNetV2 on drawn pictures, EfficientNet-Lite0 on photographs
BLOCK_BYTES = 4096  # from the middle of files of one size: tells different pictures apart
BLOWN_UP_LOSS = 3.0  # cross-entropy an entry at the first step; knowing nothing costs 0.69
LONGEST_STEP = 10.0  # of the head by SGD: see there; up to 4.4 trained well, 21 lost a seventh of the F1
STRONGEST_DECAY = 3.0  # times the loss's gradient; 1.5 already took a seventh of the F1, and 0.01 is usual
LOSS_RISE = 3.0  # of the mean loss of two epochs, times that of the first step
LEAST_STEPS = 100  # before that is judged: without warm-up ml_decoder's loss may rise sevenfold for some 10 steps
SMALLEST_RATE = 1e-6  # of a group's own; half a cosine over 1000 epochs still has 2.5 times it in its last epoch
LONGEST_WAIT = 0.5  # share of an epoch: images at hand would make it twice as fast
LEAST_LOSS_OF_TIME = 600.0  # seconds of waiting that the rest of the run has ahead
LEAST_IMAGES = 50  # of the validation split: on fewer the best threshold may well be anywhere
LEAST_POSITIVES = 20  # of a class
PATIENCE = 3  # validations in a row: a model that has just begun may look like a broken one
SMALLEST_SPREAD = 0.01  # of a class's probabilities over all images, in at least one class
EDGE = 1e-3  # beyond it and 1 - it, bfloat16 and int8 models no longer tell scores from 0 and 1
RESAMPLES = 200  # of the images without a copy, to see whether those with one stand out
SAMPLED_ENTRIES = 1000  # of each parameter, to see whether it moved


class Doctor:
    """Looks at plain values at given moments of a run, and says what is probably a mistake, and what to change.

    `findings` are what was said, {name: sentence}. One process of a run needs it: it waits for no other.
    """

    STATEFUL = ("findings", "streaks", "first_loss", "num_steps", "epochs_above")

    def __init__(self, say: Callable[[str], None] = utils.warn) -> None:
        self.say = say
        self.findings: dict[str, str] = {}
        self.streaks: dict[str, int] = {}  # validations in a row that showed a symptom
        self.first_loss: float | None = None
        self.num_steps = 0
        self.epochs_above = 0  # in a row, whose loss was far above the first
        self.multiple: float | None = None  # of the mean loss: what the first step takes, until it is taken
        self.copied: NDArray[np.bool_] | None = None  # which validation images have a copy in training
        self.moving: set[str] = set()  # of backbone, head and average: what was seen to move
        self.rates: list[float] = []  # of each group, and some weights' entries, before the epoch
        self.before: dict[str, Tensor] = {}
        self.average_before: dict[str, Tensor] = {}
        self.has_loaded = False

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from: plain Python values."""
        copied = None if self.copied is None else self.copied.tolist()
        return {"copied": copied, **{name: getattr(self, name) for name in self.STATEFUL}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.STATEFUL:
            setattr(self, name, state[name])
        self.copied = None if state["copied"] is None else np.array(state["copied"])

    def note(self, name: str, text: str) -> None:
        """Say `text` unless `name` was found before."""
        if name not in self.findings:
            self.findings[name] = text
            self.say(text)

    # ---- the data ----

    def look_at_data(self, train: Table, val: Table) -> None:
        """Whether training and validation share files or sources. Raises InputError for a file that cannot be read."""
        twins = find_shared_images(train.paths, val.paths)
        self.copied = np.array([twin is not None for twin in twins])
        if self.copied.any():
            row = int(self.copied.argmax())
            self.note(
                "copies",
                f"{self.copied.sum()} of {len(val)} validation images are copies of training images, such as "
                f"{val.paths[row]} of {twins[row]}, so that validation rates memory: `python dataset_tools.py check` "
                "lists what to leave out (EXCLUDE_LIST), near copies too",
            )
        shared = (set(train.groups or ()) & set(val.groups or ())) - {""}
        if shared:
            self.note(
                "sources",
                f"{len(shared)} source(s), such as {min(shared)}, have images both in training and in validation, "
                "which are then no new ones: `python dataset_tools.py split` keeps the sources of GROUP_PATTERN whole",
            )

    # ---- training ----

    def look_at_first_step(
        self,
        network: nn.Module,
        batch: Batch,
        logits: Tensor,
        objective: Objective,
        optimizer: Optimizer,
        batch_size: int,
    ) -> None:
        """Before the first step: logits that are none, a blown-up start; and once it is taken, how long it is.

        `network` (a model or its head, not wrapped) made `logits` (B, C) of `batch`, which is part of the step's
        `batch_size` images. The gradients that `optimizer` then finds must be unscaled.
        """
        images, targets, weights = batch
        with torch.no_grad():
            entries, _ = copy.deepcopy(objective).train().weigh_entries(logits, targets)
            mean, total = (
                reduce_loss(entries, targets, weights, reduction, objective.one_label).item()
                for reduction in ("mean", "sum")
            )
            known = ~targets.isnan()
            entropy = binary_cross_entropy_with_logits(logits[known].float(), targets[known].float()).item()
        self.first_loss = mean
        if has_probabilities(network, images, logits):
            self.note(
                "double sigmoid",
                "the head gives probabilities (0 to 1 whatever it sees), but the loss takes logits and makes them "
                "probabilities once more: gradients all but vanish; leave out the sigmoid at the end of HEAD",
            )
        if entropy > BLOWN_UP_LOSS:
            self.note(
                "blown-up start",
                f"before the first step the logits are already far from 0 and wrong (cross-entropy {entropy:.3g} an "
                "entry; knowing nothing costs 0.69): do PRETRAINED_WEIGHTS fit MODEL_NAME, and are they whole?",
            )
        self.multiple = total / mean * batch_size / len(images) if objective.reduction == "sum" and mean else 1.0
        self.hook = optimizer.register_step_pre_hook(self._look_at_gradient)

    def _look_at_gradient(self, optimizer: Optimizer, *arguments: object) -> None:
        """Judge the step that `optimizer` is about to take; the first one only.

        The head's loss is (nearly) a convex function of its weights, and 0 or more. Along the gradient it falls by rate
        * |gradient|^2 for small rates, and the longest step that can make sense has that as large as the loss (Polyak's
        step, 1987). A backbone with BatchNorm takes steps of any length, and Adam's do not depend on the loss's scale:
        they are not judged by it. But where Adam adds WEIGHT_DECAY to the gradient, the larger of both alone decides
        where a step goes (Loshchilov and Hutter 2019).
        """
        if self.multiple is None or self.first_loss is None:
            return
        descent, multiple = 0.0, self.multiple
        for group in optimizer.param_groups:
            trained = [weight for weight in group["params"] if weight.grad is not None]
            if not trained:
                continue
            part = group["name"].partition(",")[0]
            gradient = get_total_norm([weight.grad for weight in trained]).item()
            if not math.isfinite(gradient):  # fp16's scaler has yet to find its scale: this step is not taken
                return
            if part == "head":
                descent += group["lr"] * gradient**2
            decay = group["weight_decay"] * get_total_norm([weight.detach() for weight in trained]).item()
            if type(optimizer) in (torch.optim.Adam, torch.optim.RAdam) and decay > STRONGEST_DECAY * gradient > 0:
                self.note(
                    "weight decay",
                    f"WEIGHT_DECAY pulls {decay / gradient:.3g} times as hard as the loss on the {part}, which adam "
                    'and radam then do little but shrink: set OPTIMIZER = "adamw", whose decay stays apart from the '
                    "gradient, or lower it",
                )
        self.multiple = None
        length = descent / (multiple * self.first_loss) if self.first_loss else 0.0
        if isinstance(optimizer, torch.optim.SGD) and length > LONGEST_STEP:
            factor = f'LOSS_REDUCTION "sum" makes it {multiple:,.0f} times as long as "mean": set that, or '
            self.note(
                "step too long",
                f"sgd's first step of the head is {length:,.3g} times as long as the longest that can make sense: "
                f"{factor if multiple > 1 else ''}lower the rate (HEAD_BASE_LR or LEARNING_RATE)",
            )

    def watch(self, model: nn.Module, optimizer: Optimizer, average: AveragedModel | None) -> None:
        """Remember the rates, and some entries of the weights that were not seen to move yet; before each epoch."""
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.before, self.average_before = sample(model, PARTS - self.moving), {}
        if average is not None and "average" not in self.moving:
            self.before, self.average_before = sample(model, PARTS), sample(average.module, PARTS)

    def look_at_epoch(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        average: AveragedModel | None,
        loss: float,
        steps: int,
        skipped: int = 0,
        seen: int | None = None,
    ) -> None:
        """After an epoch of mean `loss` with `steps` optimizer steps, of which `seen` (None: all) were since `watch`.

        `skipped` steps were left out for a loss or gradient that was not finite; those that fp16's scaler leaves out
        while it finds its scale count in neither.
        """
        if skipped:
            self.note(
                "not finite",
                f"{skipped} step(s) of the epoch had no finite loss or gradient and were left out: lower the rates, or "
                'set CLIP_GRADIENT_NORM = 1.0 or MIXED_PRECISION = "off"',
            )
        self.num_steps += steps
        rose = self.first_loss is not None and loss > LOSS_RISE * self.first_loss
        self.epochs_above = self.epochs_above + 1 if rose and self.num_steps > LEAST_STEPS else 0
        if self.epochs_above == 2 and self.first_loss:
            self.note(
                "loss rose",
                f"the mean loss of two epochs is {loss / self.first_loss:,.3g} times that of the untrained model: the "
                "rates are too high (HEAD_BASE_LR, BACKBONE_BASE_LR, LEARNING_RATE), or set CLIP_GRADIENT_NORM = 1.0",
            )
        if steps if seen is None else seen:
            self._look_at_rates(optimizer)
            self._look_at_weights(model, average)

    def _look_at_rates(self, optimizer: Optimizer) -> None:
        for group, before in zip(optimizer.param_groups, self.rates, strict=True):
            trains = any(weight.requires_grad for weight in group["params"])
            rate = max(before, group["lr"])
            if trains and rate <= SMALLEST_RATE * group["initial_lr"]:
                part = group["name"].partition(",")[0]
                self.note(
                    f"rate of the {part}",
                    f"the {part}'s rate was {rate:.3g} for a whole epoch, so that it no longer learns: raise "
                    "LR_DECAY_FACTOR, have it drop less often (LR_MILESTONES, LR_STEP_EPOCHS), or end earlier "
                    "(NUM_EPOCHS)",
                )

    def _look_at_weights(self, model: nn.Module, average: AveragedModel | None) -> None:
        moved = find_moved(self.before, model)
        for part in {name.partition(".")[0] for name in self.before} - self.moving:
            if any(name.startswith(f"{part}.") for name in moved):
                self.moving.add(part)
            elif f"rate of the {part}" not in self.findings:
                self.note(
                    f"{part} not training",
                    f"no weight of the {part} changed in a whole epoch though it is not frozen: does the loss reach "
                    "it (no detach or no_grad on the way), and is its rate above 0?",
                )
        averages = {name: old for name, old in self.average_before.items() if name in moved}
        if average is None or not averages:
            return
        if find_moved(averages, average.module):
            self.moving.add("average")
        else:
            self.note(
                "average dead",
                "the averaged weights stood still for a whole epoch while the model moved: it would be validated as it "
                "began; lower EMA_DECAY (0: off), and is update_parameters called after each step?",
            )

    def look_at_loading(
        self,
        waiting_share: float,
        seconds: float,
        epochs_left: int,
        num_workers: int,
        num_workers_chosen: int,
        image_cache: str,
    ) -> None:
        """After an epoch that read images and took `seconds`, `waiting_share` of them without one to train on.

        `num_workers` processes load, where `num_workers_chosen` would by default. The first epoch, in which processes
        start and caches fill, does not count.
        """
        is_first, self.has_loaded = not self.has_loaded, True
        ahead = waiting_share * seconds * epochs_left
        if is_first or waiting_share <= LONGEST_WAIT or ahead < LEAST_LOSS_OF_TIME:
            return
        if num_workers < num_workers_chosen:
            advice = f"set NUM_WORKERS = None ({num_workers_chosen} processes here; it is {num_workers})"
        elif image_cache == "none":
            advice = 'set IMAGE_CACHE = "memory" or "disk"'
        else:
            advice = (
                "make the files smaller (`python dataset_tools.py resize`), or raise IMAGE_CACHE_GB if they exceed it"
            )
        self.note(
            "slow loading",
            f"the model waits for images {waiting_share:.0%} of the time: with images at hand it would be "
            f"{1 / (1 - waiting_share):.1f} times as fast, saving {utils.format_duration(ahead)}; {advice}",
        )

    # ---- validation ----

    def look_at_validation(
        self,
        probabilities: NDArray[np.floating],
        targets: ArrayLike,
        threshold: float | NDArray[np.floating],
        classes: Sequence[str],
        loss: float,
        is_last: bool = False,
    ) -> None:
        """After a validation: scores (N, C), targets (N, C), the threshold or (C,) thresholds, and the mean loss.

        `is_last`: the run's last one. Symptoms that a model at its beginning may show are said when they last.
        """
        if not math.isfinite(loss):
            self.note(
                "validation loss",
                f'the validation loss is {loss}: lower the rates, or set MIXED_PRECISION = "off"',
            )
            return
        symptoms = find_symptoms(probabilities, targets, threshold, classes)
        self.streaks = {name: self.streaks.get(name, 0) + 1 for name in symptoms}
        for name, text in symptoms.items():
            if self.streaks[name] >= PATIENCE:
                self.note(name, text)
        if is_last and self.copied is not None and self.copied.sum() >= LEAST_POSITIVES and not self.copied.all():
            self._compare_copies(probabilities, targets, threshold, self.copied)

    def _compare_copies(
        self,
        probabilities: NDArray[np.floating],
        targets: ArrayLike,
        threshold: float | NDArray[np.floating],
        copied: NDArray[np.bool_],
    ) -> None:
        """Compare F1 on the images with a copy in training with that on as many drawn of the others, many times."""
        predicted, (present, known) = metrics.predict(probabilities, threshold), metrics.as_known(targets)
        others = np.flatnonzero(~copied)
        rng = np.random.default_rng(0)

        def measure(rows: NDArray[np.intp]) -> float:
            hits = (predicted[rows] & present[rows]).sum(axis=0)
            made = (predicted[rows] & known[rows]).sum(axis=0)
            positives = present[rows].sum(axis=0)
            return float(metrics.f_beta_of(hits, made, positives) @ positives / max(positives.sum(), 1))

        drawn = [measure(rng.choice(others, copied.sum())) for _ in range(RESAMPLES)]
        of_copies, of_others, of_all = map(measure, (np.flatnonzero(copied), others, np.arange(len(copied))))
        if of_copies > max(drawn):
            self.note(
                "F1 from copies",
                f"F1 is {of_copies:.3f} on the {copied.sum()} validation images with a copy in training and "
                f"{of_others:.3f} on the {len(others)} others: {of_all:.3f}, of all, is more than new images will see",
            )


# ---- what is looked for ----


def find_shared_images(train: Sequence[str], val: Sequence[str]) -> list[str | None]:
    """For each of the `val` files one of `train` with the same bytes, or None. Raises InputError for one unreadable.

    Only files that agree in size are opened, and only those that also agree in their middle are read. Members of shards
    are left out: those may lie far away.
    """
    files, first_val = [*train, *val], len(train)
    rows = [row for row, path in enumerate(files) if split_member(path) is None]
    sizes = stamp_files([files[row] for row in rows]).reshape(-1, 2)[:, 0].tolist()
    keys: dict[int, Any] = _keep_shared(dict(zip(rows, sizes, strict=True)), first_val)
    with ThreadPool() as pool:
        for read in (_read_middle, _hash_file):
            found = pool.map(read, [files[row] for row in keys])
            keys = _keep_shared(
                {row: (key, more) for (row, key), more in zip(keys.items(), found, strict=True)}, first_val
            )
    twins = {key: files[row] for row, key in keys.items() if row < first_val}
    return [twins[keys[row]] if row in keys else None for row in range(first_val, len(files))]


def _keep_shared(keys: dict[int, Any], first_val: int) -> dict[int, Any]:
    """Those of `keys` {row: key} that a row before `first_val` and one from it on have in common."""
    shared = {key for row, key in keys.items() if row < first_val} & {
        key for row, key in keys.items() if row >= first_val
    }
    return {row: key for row, key in keys.items() if key in shared}


def _read_middle(path: str) -> bytes:
    with _open(path) as file:
        file.seek(max(0, file.seek(0, 2) // 2 - BLOCK_BYTES // 2))
        return file.read(BLOCK_BYTES)


def _hash_file(path: str) -> bytes:
    with _open(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def _open(path: str) -> BufferedReader:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"cannot read image {path}: {error.strerror}") from error


def has_probabilities(network: nn.Module, images: Tensor, logits: Tensor) -> bool:
    """Whether what `network` made of `images` lies in 0...1, and so does what it makes of noise 10,000 times as loud.

    Logits may lie there by chance; loud noise drives them out on either side, but a sigmoid or softmax keeps them in.
    """
    if not ((logits >= 0) & (logits <= 1)).all():
        return False
    noise = 1e4 * torch.randn(16, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answers = copy.deepcopy(network).eval()(noise.to(images.device))
    return bool(((answers >= 0) & (answers <= 1)).all())


def sample(module: nn.Module, parts: Collection[str]) -> dict[str, Tensor]:
    """Some entries of each parameter that trains, by name, of the `parts` (backbone, head)."""
    return {
        name: weight.detach().flatten()[:: weight.numel() // SAMPLED_ENTRIES + 1].clone()
        for name, weight in module.named_parameters()
        if weight.requires_grad and name.partition(".")[0] in parts
    }


def find_moved(before: Mapping[str, Tensor], module: nn.Module) -> set[str]:
    """The names of `before`, a `sample` of `module`, whose entries are other ones now."""
    if not before:
        return set()
    now = sample(module, PARTS)
    moved = torch.stack([(now[name] != old).any() for name, old in before.items()]).tolist()
    return {name for name, has_moved in zip(before, moved, strict=True) if has_moved}


def find_symptoms(
    probabilities: NDArray[np.floating],
    targets: ArrayLike,
    threshold: float | NDArray[np.floating],
    classes: Sequence[str],
) -> dict[str, str]:
    """{name: sentence} of what is odd about scores (N, C) and what they predict at the threshold or (C,) thresholds."""
    present, known = metrics.as_known(targets)
    if len(probabilities) < LEAST_IMAGES:
        return {}
    spread = np.ptp(probabilities, axis=0).max()
    if spread < SMALLEST_SPREAD:
        return {
            "same for every image": f"every image gets the same probabilities (up to {spread:.2g}): the model does not "
            "see what is in them; lower the rates, check that PRETRAINED_WEIGHTS fit MODEL_NAME, and give random "
            "weights more steps"
        }
    predicted = metrics.predict(probabilities, threshold)
    positives = present.sum(axis=0)
    shown = f"the threshold {np.mean(threshold):.3g}"
    if not predicted.any() and positives.sum() >= LEAST_POSITIVES:
        return {
            "all negative": f"no class is predicted for any validation image: {shown} lies above all "
            f"scores (the highest is {probabilities.max():.3g}); see THRESHOLD_GOAL and TH_MULTI_LABEL"
        }
    if predicted.all() and positives.sum() < known.sum() / 2:
        return {
            "all positive": f"every class is predicted for every validation image: {shown} lies below "
            f"all scores (the lowest is {probabilities.min():.3g}), which do not tell images apart; train longer, or "
            "with other rates"
        }
    symptoms = {}
    edge = np.ravel(threshold)[np.abs(np.ravel(threshold) - 0.5) > 0.5 - EDGE]
    if len(edge):
        symptoms["threshold at the edge"] = (
            f"the best threshold is {edge[0]:.6f}: the probabilities are crowded at "
            f"{edge[0]:.0f}, where half-precision and int8 models cannot tell them apart; USE_POS_WEIGHT "
            "and the loss's weights move them, LABEL_SMOOTHING keeps them off the edge"
        )
    never = np.flatnonzero((positives >= LEAST_POSITIVES) & ~predicted.any(axis=0))
    if len(never):
        names = ", ".join(f"{classes[c]} ({positives[c]} positives)" for c in never[:3])
        names += f" and {len(never) - 3} more" if len(never) > 3 else ""
        symptoms["never predicted"] = (
            f"{len(never)} class(es) are never predicted for a validation image: {names}; set "
            'THRESHOLD_SCOPE = "per_class", or USE_POS_WEIGHT = True'
        )
    return symptoms
