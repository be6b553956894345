"""What the experiments share, by the data that they are trained on; each config file adds what its net needs."""

from fcn_jax import config as experiment


def start(model: str, variant: str) -> experiment.Config:
    """The experiment of that net on that data. Raises ConfigError for a variant that does not exist."""
    config = experiment.default()
    config.name = model if variant == "shapes" else f"{model}-{variant}"
    config.model.name = model
    VARIANTS[experiment.choose(variant, VARIANTS)](config)
    return config


def shapes(config: experiment.Config) -> None:
    """The embedded data set, drawn as it is read: minutes on two CPU cores, from random parameters."""
    config.model.update(width=0.25, fc_width=256, dropout=0.0)
    config.input.scale = (1 / 32, 1 / 32, 1 / 32)  # what He's initialisation expects: inputs of about unit variance
    config.data.batch_size = 4
    config.data.shapes.update(height=128, width=128, train_images=100_000, val_images=200)
    config.optim.update(name="adamw", lr=1.5e-3, beta2=0.99, weight_decay=1e-4, lr_multipliers=(), clip_norm=1.0)
    config.optim.update(schedule="cosine", warmup_steps=50)
    config.train.update(steps=2400, eval_every=800, checkpoint_every=400, log_every=100)


def camvid(config: experiment.Config) -> None:
    """Street scenes, 480×360, from ImageNet's VGG-16 without its classifier: fc6 and fc7 are narrow and start anew."""
    config.model.fc_width = 512
    config.init.weights = "weights/VGG_ILSVRC_16_conv_layers.caffemodel"
    config.init.skip = ("fc*", "score_*")
    config.data.update(name="camvid", root="data/camvid", batch_size=2)
    config.data.augment.update(flip=True, scale=(0.6, 1.2), crop=(224, 320), color=0.1)
    config.optim.update(name="adamw", lr=1e-4, weight_decay=1e-4, clip_norm=1.0, lr_multipliers=())
    config.optim.update(schedule="poly", warmup_steps=50, frozen=("conv1_*", "conv2_*"))
    config.train.update(steps=2700, eval_every=900, checkpoint_every=150, log_every=20)


def voc2012(config: experiment.Config) -> None:
    """The recipe of the FCN release: whole images one by one, a summed loss, heavy momentum, SBD's training images."""
    config.model.padding = "caffe"
    config.init.weights = "weights/VGG_ILSVRC_16_layers.caffemodel"
    config.init.skip = ("fc8", "score_*")
    config.data.update(name="voc2012", root="data/VOCdevkit", train_split="sbd_train", val_split="seg11valid")
    config.data.voc.sbd_root = "data/benchmark_RELEASE"
    config.loss.normalization = "sum"
    config.optim.update(lr=1e-10, momentum=0.99, weight_decay=5e-4)
    config.train.update(steps=100_000, eval_every=4000, checkpoint_every=1000, log_every=20)


def folder(config: experiment.Config) -> None:
    """One's own images, masks and class names under `data.root`; nothing but the paths needs to be given."""
    config.model.fc_width = 512
    config.data.update(name="folder", root="data/folder", batch_size=4)
    config.data.augment.update(flip=True, scale=(0.75, 1.5), crop=(256, 256), color=0.1)
    config.optim.update(name="adamw", lr=1e-4, weight_decay=1e-4, clip_norm=1.0, lr_multipliers=())
    config.optim.update(schedule="poly", warmup_steps=100)
    config.train.update(steps=5000, eval_every=500, checkpoint_every=250, log_every=20)


VARIANTS = {"shapes": shapes, "camvid": camvid, "voc2012": voc2012, "folder": folder}
