"""Every constant that more than one script reads: edit a line, then `python training.py`, `python testing.py`.

The same edit for one run only: `python training.py --MODEL_NAME resnet50 --LR_MILESTONES 3,5`, or a file of
constants: `python training.py recipes/small_data.py`. `--help` shows the first ones with their present
values, `--help WORD` finds others, `--help all` lists everything. What one script alone reads stands at its top.
Sections marked * decide what is learned: their values name the checkpoint file. The types are those of limits.py: they
say which values are allowed.
"""

from pathlib import Path
from typing import Annotated, Literal

# isort: off
from limits import (
    ONCE, Above0, BatchSize, BatchSizeOr0, ClassWeights, Count, Degrees, Folds, ImageSize, Milestones, OffOrCount,
    OffOrMore, Rate, Seed, Share, ShareAbove0, ShareBelow1, ShareBetween, ShareOrNone, Sides, Workers, ZeroOrMore,
)  # fmt: skip
# isort: on

# ---- Your data ----
LOCAL_ROOT: Path = Path.home() / "ms-coco"  # holds the data set and everything a run writes
DATASET_FOLDER: Path = Path(LOCAL_ROOT) / "ms-coco-dataset"  # one data set, in any of the formats of DATASET_FORMAT

# ---- What people edit first * ----
MODEL_NAME: str = "resnet18"  # the backbone, of torchvision or timm: python model_comparison.py --search PATTERN
HEAD: Literal["linear", "linear_bn", "per_label_mlp", "cosine", "kernel", "ml_decoder", "gcn"] = "linear_bn"  # logits
IMAGE_SIZE: ImageSize = 224  # pixels: side of the square the model sees, or (height, width)
PRETRAINED_WEIGHTS: str | None = "default"  # the published ones; None: from scratch; a file; a name in docs/training.md
NUM_EPOCHS: Count = 10  # passes over the training split
TRAIN_BATCH_SIZE: BatchSize = 32  # images of a step, whatever the number of processes
BACKBONE_BASE_LR: Rate = 1e-4  # learning rate of the backbone, with USE_DIFFERENTIAL_LR
HEAD_BASE_LR: Rate = 1e-3  # learning rate of the head, with USE_DIFFERENTIAL_LR
UNFREEZE_BACKBONE_EPOCH: OffOrCount = 4  # first epoch that trains the backbone, at most NUM_EPOCHS; 0: never
LOSS: Literal[
    "bce_with_logits", "focal", "asymmetric", "asymmetric_angular", "softmax", "hill", "splc", "zlpr", "two_way"
] = "bce_with_logits"  # asymmetric_angular: with HEAD cosine, ml_decoder, gcn; softmax: one label an image
SEED: Seed = 0  # of the order, the augmentation and the new head; SPLIT_SEED draws the validation images

# ---- Files and folders ----
IMAGES_DIR: Path = Path(DATASET_FOLDER) / "images"  # coco_cls: the splits' images lie in here
LABELS_DIR: Path = Path(DATASET_FOLDER) / "labels"  # coco_cls: and their labels in here
TRAIN_IMAGES_DIR: Path = Path(IMAGES_DIR) / "train-resized"  # coco_cls: training and validation images
TRAIN_LABELS_DIR: Path = Path(LABELS_DIR) / "train"  # coco_cls: a .cls file an image, a class index a line
TEST_IMAGES_DIR: Path = Path(IMAGES_DIR) / "test-resized"  # the test split's, or any folder, file or 'pattern*.jpg'
TEST_LABELS_DIR: Path = Path(LABELS_DIR) / "test"  # coco_cls: its labels; of another folder, set both
TRAINED_MODELS_FOLDER: Path = Path(LOCAL_ROOT) / "trained_models"  # <model>/<configuration>.pt and .json
BEST_MODEL_PATH: Path = Path(TRAINED_MODELS_FOLDER) / "best_model.pt"  # copy of a run's checkpoint, see BEST_MODEL
BEST_MODEL: Literal["best", "last"] = "best"  # the highest F1 on the last run's validation images, or the last run
MODEL_PATH: Path = Path(BEST_MODEL_PATH)  # the model that testing.py and all other scripts load
PRETRAINED_MODELS_FOLDER: Path = Path(LOCAL_ROOT) / "pretrained_models"  # pretrained weights, downloaded once
CACHE_FOLDER: Path = Path(LOCAL_ROOT) / "cache"  # features and decoded images; can be deleted at any time
TENSORBOARD_FOLDER: Path = Path("runs")  # tensorboard --logdir runs

# ---- Reading ----
EXTRA_DATASET_FOLDERS: tuple[str, ...] = ()  # whose training images join in; their classes agree by name
EXCLUDE_LIST: Path | None = None  # a path a line, from DATASET_FOLDER on, of images that training leaves out
LABEL_CORRECTIONS: Path | None = None  # corrections.csv of `dataset_tools.py suspects`: labels that it puts right
BAD_IMAGES: Literal["error", "skip"] = "error"  # skip: each image is tried once, and left out if it is damaged
GROUP_PATTERN: str | None = None  # regular expression, searched in whole paths: its first group names the source
LABEL_SEPARATOR: Literal["auto", ";", ",", "|", " "] = "auto"  # csv: between the names in a cell; auto: recognised
LABEL_COLUMNS: tuple[str, ...] = ()  # csv: the columns of names, or a column for each class; (): recognised
MINUS_ONE: Literal["auto", "unknown", "absent"] = "auto"  # in lists of 1, 0, -1; auto: unknown, an error without any 0
NO_LABEL_NAMES: tuple[str, ...] = ()  # labels that say "none of the classes", such as ("none", "No Finding")
UNKNOWN_NAMES: Literal["error", "skip"] = "error"  # labels that no list of classes names; skip: left out and counted
COUNT_CROWDS: bool = True  # coco_json: an annotation of a crowd makes its class present
CHECK_LABEL_FILES: bool = True  # coco_cls: see labels edited in place; False: new and renamed files only, but at once
SHARD_COMMANDS: bool = False  # webdataset: True runs the commands in shards.txt, such as pipe:...; it is code then

# ---- Data * ----
DATASET_FORMAT: Literal[
    "auto",
    "coco_cls",
    "train_list",
    "mlcls",
    "image_folder",
    "classes_json",
    "coco_json",
    "csv",
    "webdataset",
    "roboflow",
    "label_studio",
    "cvat",
    "huggingface",
    "celeba",
    "chestxray14",
    "chexpert",
    "open_images",
    "pascal_voc",
    "blank_tags",
    "label_rows",
    "value_list",
    "automl",
    "yolo",
    "createml",
    "fiftyone",
    "via",
    "datumaro",
    "voc_xml",
    "labelme",
] = "auto"  # auto: recognised from what lies in DATASET_FOLDER
ABSENT_MEANS: Literal["absent", "unknown"] = "absent"  # unknown: labels are missing; see docs/training.md
VAL_SPLIT: ShareBetween = 0.1  # share of the training images to validate on, stratified; unused with a val split
SPLIT_SEED: Seed = 0  # draws what VAL_SPLIT and dataset_tools.py split take: every SEED validates on the same images
RESIZE_RULE: Literal["squash", "center_crop", "letterbox"] = "squash"  # center_crop loses edges, letterbox pads them
IMAGE_CACHE: Literal["none", "memory", "disk"] = "none"  # keep decoded images, shrunk to what the crops need

# ---- Augmentation of training images * ----
AUGMENTATION: Literal["none", "flip", "crop_flip"] = "crop_flip"  # the whole image or a random crop; mirrored or not
CROP_SCALE_MIN: ShareAbove0 = 0.5  # crop_flip: smallest share of an image's area that a random crop keeps
AUGMENTATION_POLICY: Literal["none", "auto_augment", "rand_augment", "trivial_augment"] = "none"  # colours and shapes
COLOR_JITTER: Share = 0.0  # share by which brightness, contrast and saturation vary, hue by half of it; 0: off
ROTATION_DEGREES: Degrees = 0.0  # degrees, by up to which an image is turned either way; 0: off
ERASING_PROBABILITY: Share = 0.0  # of a rectangle turning grey (Cutout); 0: never
ERASING_MAX_SHARE: ShareAbove0 = 0.25  # of the image's area, the largest such rectangle
MIXUP_ALPHA: OffOrMore = 0.0  # images and targets blended in pairs, shares from Beta(alpha, alpha); 0: off
CUTMIX_ALPHA: OffOrMore = 0.0  # a rectangle of another image, its share likewise; with MIXUP_ALPHA either; 0: off
MULTI_SCALE_SIZES: Sides = ()  # pixels, shorter sides that training images change between; (): IMAGE_SIZE always
MULTI_SCALE_EVERY_N_STEPS: Count = 10  # with MULTI_SCALE_SIZES: optimizer steps between two changes

# ---- Model * ----
FEATURES: Literal[
    "auto",
    "own",
    "class_token",
    "mean",
    "class_and_mean",
    "mean_and_max",
    "last_blocks",
] = "auto"  # what a head that pools sees; own: what the network's own classifier does; auto: as its authors probe it
TAKE_OVER_HEAD: bool = True  # of a checkpoint in PRETRAINED_WEIGHTS, by the classes' names; False: its backbone alone
USE_PRIOR_BIAS: bool = False  # start the last bias at log(p / (1 - p)) of each class's frequency p
MLP_HIDDEN: Count = 512  # per_label_mlp: hidden units a class
MLP_DROPOUT: ShareBelow1 = 0.5  # per_label_mlp: share of them dropped
ML_DECODER_GROUPS: Count = 100  # ml_decoder: queries, at most one a class
GCN_LINK_PROBABILITY: ShareAbove0 = 0.4  # gcn: P(other class | class) in the training labels from which two are linked
GCN_EMBEDDINGS: Path | None = None  # gcn: .npy of one row a class, or GloVe's text file; None: random
GCN_REWEIGHTS_CHANNELS: bool = False  # gcn: the metric-learning variant, which weighs features by the graph
ANGULAR_SCALE: ZeroOrMore = 23.0  # logits = scale x cosine, with HEAD cosine or asymmetric_angular; 0: by class count

# ---- Freezing the backbone * ----
FREEZE_BACKBONE: bool = True  # a short name of the next line, which takes its value
FREEZE_BACKBONE_AT_START: bool = FREEZE_BACKBONE  # the backbone is frozen from epoch 1 on
HEAD_FIT: Literal["steps", "search"] = "steps"  # while frozen; search: HEAD linear or kernel, cross-validated
FROZEN_FEATURE_VIEWS: OffOrCount = 2  # augmented views of an image to compute frozen features of; 0: anew each epoch
GROWING_IMAGE_SIZES: Sides = ()  # pixels, shorter sides of the first epochs that train the backbone; then IMAGE_SIZE
KEEP_BACKBONE_STATISTICS: bool = False  # BatchNorm statistics stay as pretrained even when the backbone trains

# ---- Optimisation * ----
UNFROZEN_BATCH_SIZE: BatchSizeOr0 = 0  # images of a step once the backbone trains; 0: TRAIN_BATCH_SIZE
CLIP_GRADIENT_NORM: OffOrMore = 0.0  # longest gradient, over all parameters, that a step takes; 0: any
OPTIMIZER: Literal["adam", "adamw", "sgd", "radam"] = "adam"  # sgd: momentum 0.9, Nesterov
SAM_RHO: OffOrMore = 0.0  # sharpness-aware steps: how far to climb first, 0.05 is usual; twice as long a step; 0: off
WEIGHT_DECAY: OffOrMore = 0.0  # 0: none
DECAY_NORMS_AND_BIASES: bool = True  # False: WEIGHT_DECAY leaves norms, biases and position embeddings alone
EMA_DECAY: ShareBelow1 = 0.0  # also average weights over steps, validate both, keep the better; 0.9997 is usual; 0: off
LORA_RANK: OffOrCount = 0  # the backbone trains only low-rank parts of its weights, with some 10 times its rate; 0: off
USE_DIFFERENTIAL_LR: bool = True  # True: BACKBONE_BASE_LR and HEAD_BASE_LR; False: LEARNING_RATE for all
LEARNING_RATE: Rate = 1e-3  # without differential LR
LAYER_DECAY: ShareAbove0 = 1.0  # what each layer below the backbone's top multiplies its rate by; 1: all alike
SCHEDULE: Literal["multistep", "step", "cosine", "onecycle", "warmup_steps"] = "multistep"  # one over the whole run
LR_MILESTONES: Milestones = (6, 8)  # multistep: epochs after which the rate drops; () never
LR_STEP_EPOCHS: Count = 40  # step: epochs between two drops
LR_DECAY_FACTOR: ShareAbove0 = 0.1  # multistep, step: what a drop multiplies by
WARMUP_EPOCHS: float = 0.0  # cosine: epochs of linear rise before the fall to 0; warmup_steps: epochs at a tenth
ONECYCLE_PEAK: ShareBetween = 0.3  # onecycle: share of the run before the highest rate
MIXED_PRECISION: Literal["auto", "off", "bf16", "fp16"] = "auto"  # auto: what the GPU does well; off on a CPU
SYNC_BATCHNORM: bool = False  # several processes: BatchNorm takes its statistics from all of a step's images

# ---- Loss * ----
LOSS_REDUCTION: Literal["mean", "sum"] = "mean"  # of a batch's entries; sum, as in the papers, multiplies sgd's steps
USE_POS_WEIGHT: bool = True  # bce_with_logits: weigh positives by negatives / positives of the training split
POS_WEIGHT_CAP: OffOrMore = 20.0  # largest such weight; 0: no cap
FOCAL_GAMMA: ZeroOrMore = 2.0  # focal: power of the distance from the target
FOCAL_ALPHA: ShareOrNone = None  # focal: weight of positives, with 1 - it for negatives; None: both 1
ASL_GAMMA_NEGATIVE: ZeroOrMore = 4.0  # asymmetric: power of the distance for negatives
ASL_GAMMA_POSITIVE: ZeroOrMore = 0.0  # asymmetric: and for positives
ASL_CLIP: Share = 0.05  # asymmetric: negatives with less probability give no loss
ASL_FOCUSING_GRADIENT: bool = False  # asymmetric: whether the power, too, has a gradient
ANGULAR_MARGIN: ZeroOrMore = 0.0  # asymmetric_angular: of the cosine, to either side
ANGULAR_BALANCE: Share = 0.7  # asymmetric_angular: weight of positives, with 1 - it for negatives
ANGULAR_GAMMA_NEGATIVE: ZeroOrMore = 0.0  # asymmetric_angular: power of the distance for negatives
ANGULAR_GAMMA_POSITIVE: ZeroOrMore = 0.0  # asymmetric_angular: and for positives
ANGULAR_CLIP: Share = 0.05  # asymmetric_angular: shift of negatives' probability, with a gamma above 0
LABEL_SMOOTHING: ShareBelow1 = 0.0  # e: 0 becomes e / 2 and 1 becomes 1 - e / 2; softmax: e / C to each class; 0: off
ENTRY_WEIGHTS: Annotated[
    tuple[Literal["ghm", "ohem", "class_weights", "threshold", "reject_large"], ...], ONCE
] = ()  # times the loss
GHM_BINS: Count = 30  # ghm: less weight where |probability - target| crowds, counted in so many bins
GHM_MOMENTUM: ShareBelow1 = 0.75  # ghm: share of the earlier count that is kept
OHEM_KEEP: ShareAbove0 = 0.3  # ohem: share of the entries that counts, the hardest
THRESHOLD_MARGIN: ShareBelow1 = 0.1  # threshold: entries as near to their target as this give no loss
POSITIVE_CLASS_WEIGHTS: ClassWeights = ()  # class_weights: of each class's positives, or one for all; (): 1
NEGATIVE_CLASS_WEIGHTS: ClassWeights = ()  # class_weights: of its negatives

# ---- Teachers and curriculum * ----
TEACHER_PROBABILITIES: tuple[str, ...] = ()  # files of a good model's probabilities for the training images; averaged
TEACHER_CHECKPOINTS: tuple[str, ...] = ()  # or models that see each training picture as it is drawn; averaged
TEACHER_WEIGHT: ShareAbove0 = 0.5  # share of the teachers in a target, the rest is the label's; 1: they replace it
TEACHER_TEMPERATURE: Above0 = 1.0  # teachers' logits are divided by it: above 1 their probabilities are softer
CURRICULUM: Path | None = None  # a file of lines path,weight, without a header; images not in it have 1

# ---- Validation and stopping * ----
LABELS_PER_IMAGE: Literal["any", "one"] = "any"  # one: exactly one each; the most probable is predicted
FOLDS: Folds = 0  # train so many runs, each validated on another part of the images, and average them; 0 or 1: off
VAL_EVERY_N_EPOCHS: Count = 1  # the last epoch always validates
EARLY_STOPPING_ENABLED: bool = False  # stop when validation F1 no longer rises
EARLY_STOPPING_PATIENCE: int = 3  # validations without a better F1 before stopping
EARLY_STOPPING_MIN_DELTA: ZeroOrMore = 0.0  # a gain in F1 no larger than this does not count for early stopping

# ---- Testing ----
TEST_SPLIT: Literal["test", "val", "train"] = "test"  # what testing.py predicts; train: for a teacher, a curriculum
TEST_BATCH_SIZE: Count = 64  # images; also for validation
TH_MULTI_LABEL: Share = 0.5  # probability threshold where a model has none of its own
INT8_CALIBRATION_IMAGES: Count = 300  # of TEST_INT8 and int8 exports: training images, to find the integers' ranges

# ---- Thresholds and calibration ----
THRESHOLD_SCOPE: Literal["global", "per_class"] = "global"  # one for all classes, or one each, rare classes' shrunk
THRESHOLD_GOAL: Literal[
    "f1",
    "f_beta",
    "precision",
    "recall",
    "cost",
    "guaranteed_recall",
    "guaranteed_precision",
] = "f1"  # of global scope: weighted over classes; guaranteed_...: a promise for new images, of global scope only
THRESHOLD_BETA: Above0 = 1.0  # f_beta: recall counts so many times as much as precision
THRESHOLD_PRECISION: ShareAbove0 = 0.95  # precision, guaranteed_precision: at least this, then the highest recall
THRESHOLD_RECALL: ShareAbove0 = 0.9  # recall, guaranteed_recall: at least this, then the highest precision
FALSE_POSITIVE_COST: Above0 = 1.0  # cost: of a label too many
FALSE_NEGATIVE_COST: Above0 = 1.0  # cost: of a label that is missing
MIN_LABELS: OffOrCount = 1 if LABELS_PER_IMAGE == "one" else 0  # of an image, its most probable ones; 0: may be none
MAX_LABELS: OffOrCount = 1 if LABELS_PER_IMAGE == "one" else 0  # of an image, its most probable ones; 0: any number
ABSTAIN: ShareBelow1 = 0.0  # share of the images to leave to a person, the most doubtful; they keep labels; 0: none
CALIBRATION: Literal["none", "temperature", "platt"] = "none"  # of probabilities in use, as fitted on validation images

# ---- Machine ----
DEVICE: str = "auto"  # auto: the GPU where there is one; else cpu, cuda, cuda:1, mps
NUM_WORKERS: Workers = None  # data loading processes; None: chosen (none on a CPU); 0: none
IMAGE_CACHE_GB: Above0 = 8.0  # largest size of the image cache; what lies beyond is decoded each time
FEATURE_CACHE_GB: Above0 = 20.0  # largest size of one run's frozen features; larger: anew each epoch
SHARD_CACHE_GB: Above0 = 50.0  # webdataset: shards from elsewhere that lie in CACHE_FOLDER at a time
PICTURES_ON: Literal["auto", "cpu", "gpu"] = "auto"  # auto: a GPU, if colours or shapes change; gpu: decodes, too
MICRO_BATCH_SIZE: BatchSizeOr0 = 0  # images computed at once, which a step adds up; it names the checkpoint; 0: all
ACTIVATION_CHECKPOINTING: bool = False  # compute the backbone twice to keep less of it in memory
COMPILE: bool = False  # torch.compile the backbone's blocks: seconds to minutes at the start; pays on GPUs

# ---- Interruptions ----
RESUME: Literal["auto", "never"] = "auto"  # auto: go on with an interrupted run of the same constants
SAVE_EVERY_MINUTES: ZeroOrMore = 10.0  # between two saves in the middle of an epoch; 0: at its end only
SAVE_EVERY_N_EPOCHS: OffOrCount = 0  # also keep model_epoch_006.pth and the like, every so many epochs; 0: none
NON_FINITE_LIMIT: Count = 10  # steps without a finite loss and gradient are left out; so many of them end the run

# ---- Reports ----
TRAIN_METRICS_EVERY_N_EPOCHS: OffOrCount = 0  # measure the training split too, every so many epochs; 0: never
LOGGERS: Annotated[
    tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...], ONCE
] = ()  # record each epoch, pictures and constants there, too; tensorboard: in TENSORBOARD_FOLDER

# ---- Classes ----
CLASSES: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip  # in index order; a classes.txt in DATASET_FOLDER (one name a line) takes their place
NUM_CLASSES: int = len(CLASSES)  # 80; a classes.txt in DATASET_FOLDER sets it
