"""The metric-learning graph variant: EfficientNetV2-S, channels weighed by a graph of classes, angular loss.

Source: Prokofiev and Sovrasov 2022 (arXiv 2209.06585), EfficientNetV2_small_gcn.yml. Set GCN_EMBEDDINGS to word vectors
of your classes (GloVe's text file, or .npy); without, they are random.
"""

MODEL_NAME = "tf_efficientnetv2_s.in21k"
HEAD = "gcn"
GCN_REWEIGHTS_CHANNELS = True
IMAGE_SIZE = 448
AUGMENTATION = "flip"
FREEZE_BACKBONE = False
NUM_EPOCHS = 60
TRAIN_BATCH_SIZE = 84
OPTIMIZER = "sgd"
SAM_RHO = 0.05
WEIGHT_DECAY = 5e-4
DECAY_NORMS_AND_BIASES = False
EMA_DECAY = 0.9993
USE_DIFFERENTIAL_LR = False
LEARNING_RATE = 0.005
SCHEDULE = "onecycle"
ONECYCLE_PEAK = 0.2
LOSS = "asymmetric_angular"
LOSS_REDUCTION = "sum"
ANGULAR_SCALE = 17.0
EARLY_STOPPING_ENABLED = True
EARLY_STOPPING_PATIENCE = 5
