"""A space for search.py: which head, loss and rates suit features of a frozen backbone; minutes on two CPU cores.

Set DATASET_FOLDER: `python search.py recipes/search_head.py --DATASET_FOLDER FOLDER`. The backbone is that of
frozen_features.py. Hundreds of heads train on features that are computed once; each figure is over all training
images, predicted by heads that did not see them (five folds). The winner is a recipe for training.py.
"""

MODEL_NAME = "efficientnet_lite0"
UNFREEZE_BACKBONE_EPOCH = 0
FROZEN_FEATURE_VIEWS = 1
AUGMENTATION = "none"  # the trials see the images as they are, and so does a run of the winner
SCHEDULE = "cosine"
HEAD = choices("linear", "linear_bn")
LOSS = choices("bce_with_logits", "asymmetric")
HEAD_BASE_LR = log_range(3e-4, 3e-2)
NUM_EPOCHS = choices(5, 10, 20, 40)
TRAIN_BATCH_SIZE = choices(32, 128)
WEIGHT_DECAY = choices(0.0, 1e-5, 1e-4)
LABEL_SMOOTHING = range_of(0.0, 0.2)
USE_POS_WEIGHT = choices(False, True)
