"""Fine-tuning on a few thousand photographs within half an hour on two CPU cores.

Set DATASET_FOLDER: `python training.py recipes/coco18_efficientnet_lite0.py --DATASET_FOLDER FOLDER`. Found on 4,000
MS-COCO photographs of 18 classes: the head needs a rate of 1e-2, since its BatchNorm starts at logits of size 1, and
without pos_weight mAP and weighted F1 end higher than with it.
"""

MODEL_NAME = "efficientnet_lite0"
IMAGE_SIZE = 224
NUM_EPOCHS = 8
UNFREEZE_BACKBONE_EPOCH = 3
KEEP_BACKBONE_STATISTICS = True
SCHEDULE = "cosine"
HEAD_BASE_LR = 1e-2
BACKBONE_BASE_LR = 2e-4
USE_POS_WEIGHT = False
