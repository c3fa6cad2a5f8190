"""Expression change under TF perturbation, methods on the same folds: configs/tf_perturbation.py:METHOD,... --config.data.path=FOLDER."""

from ml_collections import ConfigDict

from configs import common
from jaxgen.errors import InputError, nearest
from jaxgen.jobs.crossval_methods import METHODS


def get_config(variant: str = "") -> ConfigDict:
    """variant: all (default), or methods separated by commas: lel_nt, lel_pca, mlp_nt, mlp_hyena, concat, xgboost, nt_ia3, mean."""
    c = common.get_config()
    c.job = "crossval"
    c.perturbation.methods = tuple(part.strip() for part in variant.split(",") if part.strip()) or ("all",)
    for name in c.perturbation.methods:
        if name not in ("all", *METHODS):
            raise InputError(f"config variant {variant!r}: no method {name!r}{nearest(name, METHODS)}")
    return c
