"""Live comparison with the installed transformers (extra `parity`): random weights that it saves, read by `jaxgen.load`.

Adapters are compared with peft, in both directions, in `tests/heads/test_adapters.py`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxgen

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}
VOCABULARY, LENGTH = 70, 24


def esm(positions: str, cls: str = "EsmForMaskedLM", **fields: Any) -> Any:
    """Nucleotide Transformer v1 is a stock ESM; v2's gated network exists in remote code alone, which the golden cases cover."""
    options = {"position_embedding_type": positions, "max_position_embeddings": 40, "pad_token_id": 1, "mask_token_id": 2}
    options |= {"token_dropout": True, "emb_layer_norm_before": True, "intermediate_size": 24, "vocab_size": VOCABULARY}
    return getattr(transformers, cls)(transformers.EsmConfig(**SHAPE | options | fields))


def bert(cls: str = "BertForMaskedLM", **fields: Any) -> Any:
    options = {"intermediate_size": 24, "max_position_embeddings": 40, "vocab_size": 4**3 + 5}
    return getattr(transformers, cls)(transformers.BertConfig(**SHAPE | options | fields))


def gpt_neo(cls: str = "GPTNeoForCausalLM", **fields: Any) -> Any:
    options: dict[str, Any] = {"num_layers": 4, "num_heads": 2, "attention_types": [[["global", "local"], 2]], "window_size": 6}
    options |= {"hidden_size": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 40, "bos_token_id": 0, "eos_token_id": 0}
    return getattr(transformers, cls)(transformers.GPTNeoConfig(**options | fields))


def mamba(**fields: Any) -> Any:
    options = {"hidden_size": 16, "num_hidden_layers": 3, "state_size": 5, "vocab_size": VOCABULARY, "time_step_rank": 3}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**options | fields))


MODELS = {
    "nt_v1": lambda: esm("absolute"),
    "nt_v1-untied": lambda: esm("absolute", tie_word_embeddings=False, token_dropout=False, emb_layer_norm_before=False),
    "esm_rotary": lambda: esm("rotary"),
    "nt_v1-classifier": lambda: esm("absolute", "EsmForSequenceClassification", num_labels=3),
    "dnabert": bert,
    "dnabert-classifier": lambda: bert("BertForSequenceClassification", num_labels=3),
    "gpt_neo": gpt_neo,
    "gpt_neo-classifier": lambda: gpt_neo("GPTNeoForSequenceClassification", num_labels=3, pad_token_id=1),
    "mamba": mamba,
    "mamba-options": lambda: mamba(tie_word_embeddings=False, use_bias=True, use_conv_bias=False, conv_kernel=3, expand=3),
}


def saved(model: Any, folder: Path) -> Any:
    """The model with weights far from their initial values, saved by transformers."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if not name.endswith(("A_log", ".D", "dt_proj.bias")):
                x += (0.05 if name.endswith("conv1d.weight") else 0.1) * torch.randn_like(x)
    model.eval().save_pretrained(folder)
    return model


def rows(padded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of two rows; with padding, the second is 6 tokens shorter."""
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(5, VOCABULARY - 2, (2, LENGTH)), np.ones((2, LENGTH), bool)
    ids[:, 3] = 2  # <mask>: ESM rescales embeddings by how many there are
    if padded:
        ids[1, -6:], mask[1, -6:] = 1, False
    return ids, mask


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_same_outputs(name: str, padded: bool, tmp_path: Path) -> None:
    """At real tokens: what stands at padding means nothing in either library."""
    theirs = saved(MODELS[name](), tmp_path)
    ids, mask = rows(padded)
    if name.startswith("dnabert"):
        ids = np.minimum(ids, 4**3 + 4)
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long(), output_hidden_states=True)
    loaded = jaxgen.load(str(tmp_path))

    def outputs(model: Any) -> tuple[np.ndarray, np.ndarray]:
        found = model(ids, mask=mask, hidden_states=True)
        return np.asarray(found.predictions if name.endswith("classifier") else found.logits[mask]), np.asarray(found.hidden_states)

    ours, states = outputs(loaded)
    wanted = expected.logits.numpy()
    np.testing.assert_allclose(ours, wanted if name.endswith("classifier") else wanted[mask], atol=1e-4)
    # Matched from the last one: transformers 5 leaves the embedding out of Mamba's.
    assert len(states) - name.startswith("mamba") <= len(expected.hidden_states) <= len(states)
    for layer in range(1, len(expected.hidden_states) + 1):
        a, b = states[-layer], expected.hidden_states[-layer].numpy()
        np.testing.assert_allclose(a[mask], b[mask], atol=1e-4, err_msg=f"hidden state -{layer}")
    np.testing.assert_array_equal(outputs(jaxgen.load(str(jaxgen.export(loaded, tmp_path / "again"))))[0], ours)


@pytest.mark.parametrize("name", ["nt_v1-untied", "dnabert", "gpt_neo"])
def test_transformers_reads_what_jaxgen_writes(name: str, tmp_path: Path) -> None:
    theirs = saved(MODELS[name](), tmp_path / "theirs")
    folder = jaxgen.export(jaxgen.load(str(tmp_path / "theirs")), tmp_path / "ours")
    ids = torch.tensor(np.minimum(rows(False)[0], 4**3 + 4))
    with torch.no_grad():
        again = type(theirs).from_pretrained(folder).eval()(input_ids=ids).logits
        np.testing.assert_allclose(again.numpy(), theirs(input_ids=ids).logits.numpy(), atol=1e-6)
