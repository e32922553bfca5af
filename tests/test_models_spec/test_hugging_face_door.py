"""Folders of ``save_pretrained`` are read as the library reads them, and nothing is fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import penjing as pj
from penjing.errors import ArtifactError
from penjing.models.spec import files_of, load_model

hf = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def saved(folder: Path, kind: str, config: Any) -> Any:
    torch.manual_seed(0)
    model = getattr(hf, kind)(config).eval()
    model.save_pretrained(folder)
    return model


def bert(folder: Path) -> Any:
    config = hf.BertConfig(vocab_size=100, num_labels=4, **SIZES)
    return saved(folder, "BertForSequenceClassification", config)


@pytest.mark.parametrize("prefix", ["", "transformers:"])
def test_the_folder_gives_class_weights_and_inputs(prefix: str, tmp_path: Path) -> None:
    given = bert(tmp_path)
    loaded = load_model(f"{prefix}{tmp_path}")
    assert type(loaded.model) is type(given)
    assert not loaded.model.training
    assert loaded.kind == "transformers"
    found, wanted = loaded.model(**loaded.example_inputs), given(**loaded.example_inputs)
    assert torch.equal(found.logits, wanted.logits)
    assert {file.name for file in files_of(f"{prefix}{tmp_path}")} == {"config.json", "model.safetensors"}


def test_a_pruned_network_is_built_again_by_the_plan_beside_it(tmp_path: Path) -> None:
    given = bert(tmp_path / "whole")
    loaded = load_model(tmp_path / "whole")
    small = pj.prune(loaded.model, loaded.example_inputs, ratio=0.5)
    small.model.save_pretrained(tmp_path / "small", save_original_format=False)  # type: ignore[operator]
    given.config.save_pretrained(tmp_path / "small")
    small.plan.save(tmp_path / "small" / "plan.json")
    again = load_model(tmp_path / "small")
    assert type(again.model) is type(given)
    assert again.model.num_parameters() == small.after["params"] < 0.7 * small.before["params"]  # type: ignore[operator]
    found, wanted = (net(**loaded.example_inputs).logits for net in (again.model, small.model))
    assert torch.equal(found, wanted)
    (tmp_path / "small" / "model.safetensors").write_bytes(
        (tmp_path / "whole" / "model.safetensors").read_bytes()
    )
    with pytest.raises(ArtifactError, match=r"is \[.*\] in .*, \[.*\] in the model"):
        load_model(tmp_path / "small")


def test_images_are_fed_as_the_folder_says(tmp_path: Path) -> None:
    config = hf.ViTConfig(image_size=32, patch_size=8, num_labels=3, **SIZES)
    saved(tmp_path, "ViTForImageClassification", config)
    said: dict[str, Any] = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(said))
    loaded = load_model(tmp_path)
    assert loaded.example_inputs.shape == (2, 3, 32, 32)
    assert loaded.normalize == {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}
    path.write_text(json.dumps(said | {"do_normalize": False}))
    assert load_model(tmp_path).normalize is None
    path.write_text("[")
    with pytest.raises(ArtifactError, match=r"preprocessor_config\.json is damaged"):
        load_model(tmp_path)


def test_an_encoder_with_a_decoder_gets_words_for_both(tmp_path: Path) -> None:
    config = hf.T5Config(vocab_size=100, d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8)
    given = saved(tmp_path, "T5ForConditionalGeneration", config)
    loaded = load_model(tmp_path)
    assert torch.equal(loaded.model(**loaded.example_inputs).logits, given(**loaded.example_inputs).logits)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no folder with a config\.json, and nothing is fetched"):
        load_model("transformers:bert-base-uncased")
    bert(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    said, held = json.loads(config.read_text()), weights.read_bytes()

    config.write_text(json.dumps(said | {"architectures": ["BertForNothing"]}))
    with pytest.raises(ArtifactError, match="has no class 'BertForNothing'"):
        load_model(tmp_path)
    config.write_text(json.dumps(said | {"architectures": None}))
    with pytest.raises(ArtifactError, match="does not name the network's class"):
        load_model(tmp_path)
    config.write_text(json.dumps(said | {"architectures": ["BertForTokenClassification"], "num_labels": 9}))
    with pytest.raises(ArtifactError, match="building it fails"):
        load_model(tmp_path)
    config.write_text(json.dumps(said | {"num_hidden_layers": 3}))
    with pytest.raises(ArtifactError, match=r"lack 'bert\.encoder\.layer\.2\..* and 15 more"):
        load_model(tmp_path)
    config.write_text(json.dumps(said))
    weights.write_bytes(held[:1000])
    with pytest.raises(ArtifactError, match="building it fails"):
        load_model(tmp_path)
    weights.unlink()
    with pytest.raises(ArtifactError, match="holds no safetensors, and other weights are pickled"):
        load_model(tmp_path)
