"""The quickest good model: the head alone, on ImageNet features that are computed once; a minute on two CPU cores.

Set DATASET_FOLDER: `python training.py recipes/frozen_features.py --DATASET_FOLDER FOLDER`. The head is found by a
search: logistic regressions, whose penalty is chosen by cross-validation over all training images, so nothing has to be
set. Mean and maximum over an image together see small objects better than the mean alone.
"""

MODEL_NAME = "efficientnet_lite0"
FEATURES = "mean_and_max"
HEAD = "linear"
HEAD_FIT = "search"
NUM_EPOCHS = 1
UNFREEZE_BACKBONE_EPOCH = 0
USE_POS_WEIGHT = False
