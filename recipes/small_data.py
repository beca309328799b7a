"""Few photographs, from some 50 to a few thousand: the head alone, on features of a better encoder at a larger size.

Set DATASET_FOLDER: `python training.py recipes/small_data.py --DATASET_FOLDER FOLDER`. Every photograph trains the
head and validates it: cross-validation predicts each by a head that did not see it, and the threshold is chosen on all
of them. Nothing depends on a rate, a number of epochs or luck. docs/training.md says what to expect. The head compares
a photograph with those of training; `--HEAD linear` is smaller, and what fine-tuning can go on from.
"""

MODEL_NAME = "efficientnet_lite2"
FEATURES = "mean_and_max"
IMAGE_SIZE = 384
HEAD = "kernel"
HEAD_FIT = "search"
NUM_EPOCHS = 1
UNFREEZE_BACKBONE_EPOCH = 0
USE_POS_WEIGHT = False
