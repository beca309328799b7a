"""All weights, on a few thousand photographs, in half an hour on two CPU cores.

Set DATASET_FOLDER: `python training.py recipes/fine_tuning.py --DATASET_FOLDER FOLDER`. The head is found first, on the
frozen backbone: fine-tuning from a good head changes the pretrained features less (Kumar et al. 2022). Trained on crops
at 256 to 288 pixels the model sees whole images best at 384, where objects are as large as in its crops (Touvron et al.
2019). Smoothed labels raise mAP; they move probabilities towards .5, which
`python testing.py --CALIBRATION platt` takes back. Takes up to 13 GB of memory.
"""

MODEL_NAME = "efficientnet_lite2"
FEATURES = "mean_and_max"
IMAGE_SIZE = 384
GROWING_IMAGE_SIZES = (256, 256, 256, 288, 288)
HEAD = "linear"
HEAD_FIT = "search"
NUM_EPOCHS = 6
UNFREEZE_BACKBONE_EPOCH = 2
KEEP_BACKBONE_STATISTICS = True
SCHEDULE = "cosine"
WARMUP_EPOCHS = 1.2
HEAD_BASE_LR = 3e-4
BACKBONE_BASE_LR = 2e-4
USE_POS_WEIGHT = False
LABEL_SMOOTHING = 0.1
IMAGE_CACHE = "memory"
