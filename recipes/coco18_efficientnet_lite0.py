"""Fine-tuning on a few thousand photographs in a quarter of an hour on two CPU cores.

Set DATASET_FOLDER: `python training.py recipes/coco18_efficientnet_lite0.py --DATASET_FOLDER FOLDER`. Found on 4,000
MS-COCO photographs of 18 classes: the head needs a rate of 1e-2, since its BatchNorm starts at logits of size 1;
without pos_weight mAP and weighted F1 end higher; pretrained BatchNorm statistics, kept, make a step a sixth quicker
and lose nothing; and trained on crops at 224 pixels the model sees whole images best at 256, where objects are as
large as in its crops (Touvron et al. 2019).
"""

MODEL_NAME = "efficientnet_lite0"
IMAGE_SIZE = 256
GROWING_IMAGE_SIZES = (224, 224, 224, 224, 224, 224)
NUM_EPOCHS = 8
UNFREEZE_BACKBONE_EPOCH = 3
FROZEN_FEATURE_VIEWS = 1
KEEP_BACKBONE_STATISTICS = True
SCHEDULE = "cosine"
HEAD_BASE_LR = 1e-2
BACKBONE_BASE_LR = 2e-4
USE_POS_WEIGHT = False
IMAGE_CACHE = "memory"
