"""Part `concat`: an epoch of the perceptron on pairs, 377 perturbations x 4,912 genes x (512 + 512) features, in seconds.

The peer is what the published script does: a Dataset that concatenates two embeddings per pair, a DataLoader with four workers (none
with --one-core, so that one process spends all the time), and the same network and Adam in PyTorch. Both go through 1/32 of the genes with
all perturbations; seconds are per whole epoch.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.harness import Contender, Goal, Note, Options, Row, compare, have

GOAL = Goal("ratio", ">=", 10.0)
PERTURBATIONS, GENES, WIDTH, SHARE = 377, 4912, 512, 32


def run(options: Options) -> Iterator[Row | Note]:
    """One row against PyTorch, or alone without it."""
    rows, genes, width, workers = (8, 6, 16, 0) if options.smoke else (PERTURBATIONS, GENES // SHARE, WIDTH, 0 if options.one_core else 4)
    rng = np.random.default_rng(0)
    tf, gene, targets = (rng.standard_normal(shape, np.float32) for shape in ((rows, width), (genes, width), (rows, genes)))
    contenders = [ours(tf, gene, targets)]
    if have("torch"):
        contenders.append(peer(tf, gene, targets, workers))
    else:
        yield Note("concat", "torch is not installed, so there is nothing to compare with (make bench installs it)")
    case = f"epoch of {PERTURBATIONS:,} x {GENES:,} pairs" if not options.smoke else "smoke"
    yield from compare("concat", case, contenders, min(options.repeats, 3), unit="s", goal=GOAL, clock=options.clock)


def ours(tf: np.ndarray, gene: np.ndarray, targets: np.ndarray) -> Contender:
    """The compiled epoch of `baselines.concat_mlp`."""
    import jax

    from jaxgen.baselines.concat_mlp import ConcatMLP, adam, init_params, train_epoch
    from jaxgen.baselines.embedding_mlp import Rows

    method = ConcatMLP()
    params = init_params(jax.random.key(0), tf.shape[1], gene.shape[1], method.hidden)
    state = [params, adam(method).init(params)]
    rows = Rows(np.arange(len(tf)), np.ones(len(tf), np.float32))
    on_device, keys = jax.device_put((tf, gene, targets, rows)), iter(jax.random.split(jax.random.key(1), 1000))

    def epoch() -> None:
        state[:] = jax.block_until_ready(train_epoch(method, *state, *on_device, next(keys)))

    return Contender("jaxgen", epoch, len(gene) / GENES)


class Pairs:
    """A torch Dataset of (concatenated embeddings, target), as published. At the top level, so that workers can import it."""

    def __init__(self, tf: Any, gene: Any, targets: Any):
        self.tf, self.gene, self.targets = tf, gene, targets

    def __len__(self) -> int:
        return self.targets.numel()

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        import torch

        row, column = divmod(index, len(self.gene))
        return torch.cat([self.tf[row], self.gene[column]]), self.targets[row, column]


def peer(tf: np.ndarray, gene: np.ndarray, targets: np.ndarray, workers: int) -> Contender:
    """The published loop in PyTorch."""
    import torch

    data = Pairs(*map(torch.tensor, (tf, gene, targets)))
    context = {"num_workers": workers, "persistent_workers": True, "multiprocessing_context": "spawn"} if workers else {}
    loader = torch.utils.data.DataLoader(data, batch_size=4096, shuffle=True, **context)  # pyright: ignore[reportArgumentType]
    widths = itertools.pairwise((2 * tf.shape[1], 512, 256, 128, 1))
    network = torch.nn.Sequential(*[layer for a, b in widths for layer in (torch.nn.Linear(a, b), torch.nn.ReLU())][:-1])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, weight_decay=1e-4)

    def epoch() -> None:
        for x, y in loader:
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(network(x).squeeze(-1), y).backward()
            optimizer.step()

    return Contender("torch DataLoader", epoch, len(gene) / GENES)
