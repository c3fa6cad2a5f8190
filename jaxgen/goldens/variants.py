"""Golden family of variant effects: the window embedding and the variant search of the eQTL probe."""

import jax.numpy as jnp
import numpy as np

from jaxgen.data.variants import variant_index
from jaxgen.goldens.core import Case, golden
from jaxgen.heads.variant import allele_embedding


@golden("vep", inputs=("ref", "alt", "variant_idx", "ref_ids", "alt_ids"))
def variant_effect(case: Case) -> dict[str, np.ndarray]:
    arrays, config = case.arrays, case.config
    ref, alt, index = (jnp.asarray(arrays[name]) for name in ("ref", "alt", "variant_idx"))
    computed = {
        name: np.asarray(allele_embedding(ref, alt, index, config["window_bp"], options["bp_per_token"]))
        for name, options in config["cases"].items()
    }
    if "ref_ids" in arrays:
        ids = arrays["ref_ids"], arrays["alt_ids"]
        computed["found_idx"] = variant_index(*ids)
        computed["found_rc_idx"] = variant_index(*(x[:, ::-1] for x in ids), reverse=True)
    return computed
