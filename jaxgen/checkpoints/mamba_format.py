"""Key-table rows of the Mamba mixer, which several public models share."""

from jaxgen.checkpoints.key_table import LINEAR, Row


def ssm_rows(public: str, ours: str, conv_bias: bool) -> list[Row]:
    """Key-table rows of what lies between the projections."""
    rows = [
        Row(f"{public}conv1d.weight", f"{ours}conv.kernel", "e 1 w -> w e"),
        Row(f"{public}x_proj.weight", f"{ours}x_proj.kernel", LINEAR),
        Row(f"{public}dt_proj.weight", f"{ours}dt_proj.kernel", LINEAR),
        Row(f"{public}dt_proj.bias", f"{ours}dt_proj.bias"),
        Row(f"{public}A_log", f"{ours}A_log"),
        Row(f"{public}D", f"{ours}D"),
    ]
    return [*rows, Row(f"{public}conv1d.bias", f"{ours}conv.bias")] if conv_bias else rows


def projection_rows(public: str, ours: str, bias: bool, also: str = "") -> list[Row]:
    """Key-table rows of the projections; `also` is a public prefix that may hold them a second time."""
    rows = []
    for name in ("in_proj", "out_proj"):
        for theirs, mine, layout in (("weight", "kernel", LINEAR), ("bias", "bias", None))[: 1 + bias]:
            repeated = (f"{also}{name}.{theirs}",) if also else ()
            rows.append(Row(f"{public}{name}.{theirs}", f"{ours}{name}.{mine}", layout, also_public=repeated))
    return rows
