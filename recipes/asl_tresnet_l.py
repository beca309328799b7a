"""TResNet-L with the asymmetric loss at 448 pixels; published mAP 86.6 on COCO 2014.

Source: Ridnik et al. 2021 (arXiv 2009.14119), train.py, which stops after 40 of its 80
epochs; here all are run.
"""

MODEL_NAME = "tresnet_l"
HEAD = "linear"
IMAGE_SIZE = 448
AUGMENTATION = "none"
AUGMENTATION_POLICY = "rand_augment"
ERASING_PROBABILITY = 1.0
FREEZE_BACKBONE = False
NUM_EPOCHS = 80
TRAIN_BATCH_SIZE = 128
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
