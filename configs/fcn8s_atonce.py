"""FCN-8s at once: pool4 and pool3 are scaled by 0.01 and 0.0001 before they are scored, and no stage comes before.

python train.py --config configs/fcn8s_atonce.py           embedded shapes
python train.py --config configs/fcn8s_atonce.py:camvid    street scenes, data/camvid
python train.py --config configs/fcn8s_atonce.py:voc2012   300,000 steps; 65.4 mean IU on seg11valid (paper)
python train.py --config configs/fcn8s_atonce.py:folder    one's own images
"""

from configs import recipes


def get_config(variant="shapes"):
    variants = {name: recipes.VARIANTS[name] for name in ("shapes", "camvid", "voc2012", "folder")}
    config = recipes.start("fcn8s_atonce", variant, variants)
    if variant == "voc2012":
        config.train.steps = 300_000
    return config
