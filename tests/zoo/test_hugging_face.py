"""Hugging Face architectures from their configs, with random weights and small sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from penjing.prune import Plan, apply, masked_equivalence, prune
from penjing.prune.compare import run

hf = pytest.importorskip("transformers", reason="the transformers package is not installed")
TOKENS = {"input_ids": torch.arange(14).view(2, 7) % 11}
PIXELS = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))}
GENERATOR = torch.Generator().manual_seed(3)
SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZES, "vocab_size": 32, "num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0}


def bert() -> nn.Module:
    config = hf.BertConfig(vocab_size=32, max_position_embeddings=16, num_labels=5, **SIZES)
    return hf.BertForSequenceClassification(config)  # type: ignore[no-any-return]


def vit() -> nn.Module:
    config = hf.ViTConfig(image_size=32, patch_size=8, num_labels=5, **SIZES)
    return hf.ViTForImageClassification(config)  # type: ignore[no-any-return]


def llama() -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA))  # type: ignore[no-any-return]


def llama_tied() -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, tie_word_embeddings=True))  # type: ignore[no-any-return]


def swin() -> nn.Module:
    config = hf.SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=12,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=5,
    )
    return hf.SwinForImageClassification(config)  # type: ignore[no-any-return]


def convnext() -> nn.Module:
    config = hf.ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1], num_labels=5)
    return hf.ConvNextForImageClassification(config)  # type: ignore[no-any-return]


def mixtral() -> nn.Module:
    """Experts: rows sorted by expert, multiplied with a stack of weights."""
    config = hf.MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2)
    return hf.MixtralForCausalLM(config)  # type: ignore[no-any-return]


def cohere() -> nn.Module:
    """A layer norm written out, and rotations of interleaved pairs."""
    return hf.CohereForCausalLM(hf.CohereConfig(**LLAMA))  # type: ignore[no-any-return]


def wav2vec2() -> nn.Module:
    """A convolution over positions with weight norm."""
    config = hf.Wav2Vec2Config(
        **SIZES,
        conv_dim=(16, 16, 16),
        conv_kernel=(10, 3, 3),
        conv_stride=(5, 2, 2),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        num_labels=5,
    )
    return hf.Wav2Vec2ForSequenceClassification(config)  # type: ignore[no-any-return]


def t5() -> nn.Module:
    """Encoder and decoder with one embedding and one table of relative positions for all layers."""
    config = hf.T5Config(
        vocab_size=32,
        d_model=24,
        d_kv=6,
        d_ff=40,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        use_cache=False,
        decoder_start_token_id=0,
    )
    return hf.T5ForConditionalGeneration(config)  # type: ignore[no-any-return]


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor]]] = {
    "bert": (bert, TOKENS | {"attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])}),
    "vit": (vit, PIXELS),
    "llama": (llama, TOKENS),
    "llama_tied": (llama_tied, TOKENS),
    "swin": (swin, PIXELS),
    "convnext": (convnext, PIXELS),
    "mixtral": (mixtral, TOKENS),
    "cohere": (cohere, TOKENS),
    "wav2vec2": (wav2vec2, {"input_values": torch.randn(2, 800, generator=GENERATOR)}),
    "t5": (t5, TOKENS | {"decoder_input_ids": torch.arange(10).view(2, 5) % 7}),
}


def shapes(output: Any) -> list[torch.Size]:
    return [t.shape for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]


@pytest.mark.parametrize("name", MODELS)
def test_pruned_correctly(name: str) -> None:
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    result = prune(model, inputs, ratio=0.5)
    assert result.after["params"] <= 0.6 * result.before["params"]
    assert result.after["params"] == sum(p.numel() for p in result.model.parameters())
    unsolved = {p for f in result.frozen if f.kind == "unsolved" for p in f.params}
    assert all(p.endswith("relative_position_bias_table:0") for p in unsolved)  # offsets, read by position
    assert masked_equivalence(model, result, inputs) <= 1e-4
    assert shapes(run(result.model, inputs)) == shapes(run(model, inputs))
    again = apply(model, Plan.from_dict(json.loads(json.dumps(result.plan.to_dict()))), inputs)
    state = result.model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.model.state_dict().items())
    result.model.train()
    output = result.model(**inputs)
    next(t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)).square().mean().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in result.model.parameters())


@pytest.mark.parametrize("build", [bert, llama_tied, vit])
def test_saved_as_their_package_saves_and_built_again_by_the_plan(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = build().eval()
    inputs = PIXELS if build is vit else TOKENS
    pruned = prune(model, inputs, ratio=0.4)
    assert pruned.in_place
    pruned.model.save_pretrained(tmp_path, save_original_format=False)  # type: ignore[operator]
    model.config.save_pretrained(tmp_path)  # type: ignore[union-attr,operator]
    pruned.plan.save(tmp_path / "plan.json")
    whole = type(model)(hf.AutoConfig.from_pretrained(tmp_path)).eval()
    again = apply(whole, Plan.load(tmp_path / "plan.json"), inputs).model
    safetensors.torch.load_model(again, tmp_path / "model.safetensors")
    ours, theirs = (pytree.tree_leaves(run(each, inputs)) for each in (again, pruned.model))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True) if isinstance(a, Tensor))
