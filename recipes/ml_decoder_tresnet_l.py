"""TResNet-L with ML-Decoder and the asymmetric loss at 448 pixels; published mAP 90.0 on COCO 2014.

Source: Ridnik et al. 2021 (arXiv 2111.12933), train.py, which starts from its own pretrained
weights (PRETRAINED_WEIGHTS takes that file), not from timm's.
"""

MODEL_NAME = "tresnet_v2_l"
HEAD = "ml_decoder"
IMAGE_SIZE = 448
AUGMENTATION = "none"
AUGMENTATION_POLICY = "rand_augment"
ERASING_PROBABILITY = 1.0
FREEZE_BACKBONE = False
NUM_EPOCHS = 40
TRAIN_BATCH_SIZE = 56
OPTIMIZER = "adam"
WEIGHT_DECAY = 1e-4
DECAY_NORMS_AND_BIASES = False
EMA_DECAY = 0.9997
USE_DIFFERENTIAL_LR = False
LEARNING_RATE = 1e-4
SCHEDULE = "onecycle"
ONECYCLE_PEAK = 0.2
LOSS = "asymmetric"
LOSS_REDUCTION = "sum"
