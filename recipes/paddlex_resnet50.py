"""PaddleX's run: ResNet-50 with ML-Decoder and asymmetric loss; published mAP 83.50 on COCO 2017.

Source: PaddleX and PaddleClas, MLDecoder/ResNet50_ml_decoder_448.yaml;
batch of one GPU.
"""

MODEL_NAME = "resnet50"
HEAD = "ml_decoder"
IMAGE_SIZE = 448
AUGMENTATION = "none"
AUGMENTATION_POLICY = "rand_augment"
ERASING_PROBABILITY = 1.0
FREEZE_BACKBONE = False
NUM_EPOCHS = 40
TRAIN_BATCH_SIZE = 64
OPTIMIZER = "adamw"
WEIGHT_DECAY = 1e-4
DECAY_NORMS_AND_BIASES = False
EMA_DECAY = 0.9997
USE_DIFFERENTIAL_LR = False
LEARNING_RATE = 1e-4
SCHEDULE = "cosine"
WARMUP_EPOCHS = 5.0
LOSS = "asymmetric"
LOSS_REDUCTION = "sum"
