"""Part `embed`: the embed job's batches on sequences of mixed lengths, against the usual loop over batches of 8 in file order.

The model has the shape of a small Nucleotide Transformer v1, which transformers has as ESM, with the same random weights; embeddings of
the two are compared before anything is timed. Compilation is not in the times: it is paid once per padded length.
"""

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.harness import Contender, Goal, Note, Options, Row, compare, have

GOAL = Goal("ratio", ">=", 3.0)
BATCH_TOKENS, BUCKETS, PEER_BATCH = 8192, 10, 8


def run(options: Options) -> Iterator[Row | Note]:
    """From texts to the matrix of mean-pooled embeddings, tokenization included."""
    if not have("torch") or not have("transformers"):
        yield Note("embed", "torch or transformers is not installed, so there is nothing to compare with (make bench installs them)")
        return
    import jaxgen
    from jaxgen.models import nucleotide_transformer as nt
    from jaxgen.models.registry import get_family

    shape = {"d_model": 64, "n_layer": 1, "n_heads": 4, "d_inner": 128} if options.smoke else {}
    config = nt.ConfigV1(**{"d_model": 512, "n_layer": 2, "n_heads": 8, "d_inner": 2048} | shape)
    texts = sequences(8 if options.smoke else 64, 600 if options.smoke else 5900)
    from flax import nnx

    model = get_family("nt_v1").build(config, nnx.Rngs(0))
    with tempfile.TemporaryDirectory() as folder:
        jaxgen.export(model, folder)
        theirs = hf_loop(folder, texts)
    ours = exporter(model, texts)
    apart = float(np.abs(ours() - theirs()).max())
    if apart > 1e-3:
        raise AssertionError(f"embeddings differ from those of transformers by {apart:.1e}")
    yield Note(
        "embed", f"embeddings agree with transformers to {apart:.1e}; jaxgen compiled {BUCKETS} lengths at most, before the clock ran"
    )
    lengths = [len(text) for text in texts]
    case = f"{len(texts)} sequences of {min(lengths)}-{max(lengths)} bases, nt_v1 d {config.d_model}, {config.n_layer} layers"
    contenders = [Contender("jaxgen", ours, len(texts)), Contender("HF loop, batches of 8", theirs, len(texts))]
    yield from compare("embed", case, contenders, max(1, options.repeats // 2), unit="sequences/s", goal=GOAL, clock=options.clock)


def sequences(n: int, longest: int) -> list[bytes]:
    """Log-normal lengths, as those of genes' regulatory regions and reads: many short ones, few long ones."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(longest / 6), 0.9, n), 60, longest).astype(int)
    return [np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, length)].tobytes() for length in lengths]


def exporter(model: Any, texts: list[bytes]) -> Callable[[], np.ndarray]:
    """The plan and the batches of the embed job."""
    import jax
    from flax import nnx

    from jaxgen import tokenizers
    from jaxgen.data.segments import Encoder, Plan, Segments
    from jaxgen.data.sequences import Sequences
    from jaxgen.heads.embedder import Embedder

    graphdef, state = nnx.split(Embedder(model))
    embed = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))

    def export() -> np.ndarray:
        encoder = Encoder(Sequences.from_list(texts), tokenizers.get("nt_v1"), True)
        segments = Segments.of(encoder, "forward", 1000, "error", [str(i) for i in range(len(texts))], "benchmark")
        plan = Plan.of(segments, BUCKETS, BATCH_TOKENS, 1000)
        out, waiting = np.empty((len(texts), model.config.d_model), np.float32), None
        for step in [*plan.steps(0, 1), None]:
            made = None
            if step is not None:
                tokens, mask = encoder.batch(segments, step.segments, step.width)
                made = step.segments, embed(state, {"tokens": tokens, "mask": mask})
            if waiting is not None:
                real = waiting[0] >= 0
                out[waiting[0][real]] = np.asarray(waiting[1])[real]
            waiting = made
        return out

    return export


def hf_loop(folder: str, texts: list[bytes]) -> Callable[[], np.ndarray]:
    """Batches of 8 in file order, padded to the longest, mean over the attention mask: the published extraction script's loop."""
    import os

    import torch
    import transformers

    from jaxgen import tokenizers

    tokenizers.get("nt_v1").save(folder)
    tokenizer = transformers.EsmTokenizer(os.path.join(folder, "vocab.txt"), eos_token=None)
    model = transformers.EsmForMaskedLM.from_pretrained(folder).eval()
    strings = [text.decode() for text in texts]

    @torch.no_grad()
    def export() -> np.ndarray:
        rows = []
        for start in range(0, len(strings), PEER_BATCH):
            inputs = tokenizer(
                strings[start : start + PEER_BATCH], return_tensors="pt", padding="longest", truncation=True, max_length=1000
            )
            hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]
            mask = inputs["attention_mask"].unsqueeze(-1)
            rows.append(((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)).numpy())
        return np.concatenate(rows)

    return export
