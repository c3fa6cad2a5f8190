"""Part `variants`: the batches of score_variants on SNVs, against loops over one variant at a time, in jitted JAX and in transformers.

The model has the shape of a small Nucleotide Transformer v1, which transformers has as ESM, with the same random weights. All contenders
make the same numbers, compared before anything is timed: the log-likelihood ratio with the variant's token hidden, and the distance between
the mean hidden states of both alleles, on the forward strand. Compilation is not in the times.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Contender, Note, Options, Row, compare, have

LENGTH, BATCH = 600, 32
TOLERANCE = 1e-3


def run(options: Options) -> Iterator[Row | Note]:
    """From the genome and the variants to ratios and distances (n, 2), tokenization included."""
    from flax import nnx

    import jaxgen
    from jaxgen import tokenizers
    from jaxgen.jobs.score_variants import Windows
    from jaxgen.models import nucleotide_transformer as nt
    from jaxgen.models.registry import get_family

    n = 8 if options.smoke else 128
    shape = {"d_model": 32, "n_heads": 2, "d_inner": 48} if options.smoke else {"d_model": 256, "n_heads": 8, "d_inner": 1024}
    model = get_family("nt_v1").build(nt.ConfigV1(n_layer=2, **shape), nnx.Rngs(0))
    with tempfile.TemporaryDirectory() as folder:
        genome, variants = substitutions(Path(folder), n)
        windows = Windows(genome, variants, tokenizers.get("nt_v1"), True, LENGTH, "forward", (0,))
        contenders = [
            Contender(f"jaxgen, batches of {BATCH}", scorer(model, windows, BATCH), n),
            Contender("jitted JAX, one at a time", scorer(model, windows, 1), n),
        ]
        if have("torch") and have("transformers"):
            jaxgen.export(model, folder)
            contenders.append(Contender("HF loop, one at a time", hf_loop(folder, windows), n))
        else:
            yield Note("variants", "torch or transformers is not installed, so there is no HF loop (make bench installs them)")
        ours, *theirs = (contender.run() for contender in contenders)
        for contender, values in zip(contenders[1:], theirs):
            apart = float(np.abs(ours - values).max())
            if not apart < TOLERANCE:
                raise AssertionError(f"scores differ from those of {contender.name} by {apart:.1e}")
            yield Note("variants", f"scores agree with {contender.name} to {apart:.1e}, of up to {np.abs(ours).max():.2f}")
        case = f"{n} SNVs, windows of {LENGTH} bases, nt_v1 d {shape['d_model']}, 2 layers"
        yield from compare("variants", case, contenders, max(1, options.repeats // 2), unit="variants/s", clock=options.clock)


def substitutions(folder: Path, n: int) -> tuple[Any, Any]:
    """A random genome, and substitutions all over it."""
    from jaxgen.data.genome import Genome
    from jaxgen.data.variants import Variants

    rng = np.random.default_rng(0)
    dna = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, 100_000)].tobytes()
    (folder / "g.fa").write_bytes(b">c\n" + dna + b"\n")
    positions = np.sort(rng.choice(len(dna) - LENGTH, n, replace=False)) + LENGTH // 2
    refs = [dna[at : at + 1] for at in positions]
    alts = [b"ACGT"[(i := (b"ACGT".index(ref) + 1) % 4) : i + 1] for ref in refs]
    contigs = np.zeros(n, np.int32)
    return Genome.open(folder / "g.fa", cache_dir=folder), Variants(contigs, positions, refs, alts, ["."] * n, {})


def scorer(model: Any, windows: Any, batch: int) -> Callable[[], np.ndarray]:
    """The job's windows and module, `batch` variants at a time, results fetched one batch late."""
    import jax
    from flax import nnx

    from jaxgen.heads.variant import VariantScorer

    bases = tuple(windows.tokenizer.bases_per_token().tolist())
    graphdef, state = nnx.split(VariantScorer(model, causal=False, bases=bases, mask_id=windows.tokenizer.mask_id))
    score = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch)[:, :2])
    n = len(windows.variants)

    def run() -> np.ndarray:
        rows, waiting = [], None
        for start in range(0, n, batch):
            output = score(state, windows.batch(np.minimum(np.arange(start, start + batch), n - 1), windows.views[0], windows.width))
            if waiting is not None:
                rows.append(np.asarray(waiting))
            waiting = output
        return np.concatenate([*rows, np.asarray(waiting)])[:n]

    return run


def hf_loop(folder: str, windows: Any) -> Callable[[], np.ndarray]:
    """What scripts for these models do: strings of both alleles, one forward pass each, and one with the changed token masked."""
    import torch
    import transformers

    windows.tokenizer.save(folder)
    tokenizer = transformers.EsmTokenizer(os.path.join(folder, "vocab.txt"), eos_token=None)
    model = transformers.EsmForMaskedLM.from_pretrained(folder).eval()
    dna, variants = windows.genome.fetch("c").tobytes().decode(), windows.variants

    @torch.no_grad()
    def run() -> np.ndarray:
        rows = []
        for at, alt in zip(variants.positions.tolist(), variants.alts):
            start = at - LENGTH // 2
            text = dna[start : start + LENGTH]
            changed = text[: LENGTH // 2] + alt.decode() + text[LENGTH // 2 + 1 :]
            ref, alternative = (tokenizer(x, return_tensors="pt")["input_ids"] for x in (text, changed))
            means = [model(ids, output_hidden_states=True).hidden_states[-1].mean(1)[0] for ids in (ref, alternative)]
            place = int((ref != alternative)[0].nonzero()[0, 0])
            hidden = ref.clone()
            hidden[0, place] = tokenizer.mask_token_id
            log_p = model(hidden).logits[0, place].log_softmax(-1)
            rows.append([log_p[alternative[0, place]] - log_p[ref[0, place]], torch.linalg.norm(means[1] - means[0])])
        return np.array(rows, np.float32)

    return run
