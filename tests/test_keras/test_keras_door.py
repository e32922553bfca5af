"""Keras models go through the torch door, are pruned, and come back as native Keras files."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from penjing.artifact import load, save_artifact
from penjing.errors import ArtifactError, TraceError
from penjing.graph import couple, trace
from penjing.models import keras_door as door
from penjing.models.spec import load_model
from penjing.prune import prune

if find_spec("keras") is None:  # importing it here would choose its backend
    pytest.skip("Keras is not installed", allow_module_level=True)
pytestmark = [pytest.mark.keras]


def sequential(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((12, 12, 3)),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(4),
        ]
    )


def residual(keras: Any) -> Any:
    layers = keras.layers
    x = inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same")(x)
    y = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.DepthwiseConv2D(3, padding="same")(y)
    y = layers.Conv2D(8, 1)(y)
    squeeze = layers.Reshape((1, 1, 8))(layers.GlobalAveragePooling2D()(y))
    y = layers.Multiply()([y, layers.Conv2D(8, 1, activation="sigmoid")(squeeze)])
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(4)(x))


BUILD: list[Callable[[Any], Any]] = [sequential, residual]


@pytest.fixture(params=BUILD, ids=lambda build: build.__name__)
def keras_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    keras = door.import_keras()
    keras.utils.set_random_seed(0)
    net = request.param(keras)
    for variable in net.variables:  # statistics and biases that matter
        if variable.path.endswith(("bias", "beta", "moving_mean", "gamma", "moving_variance")):
            variable.assign(keras.random.uniform(variable.shape, 0.5, 1.5))
    path = tmp_path / "net.keras"
    net.save(path)
    return path


def test_the_module_is_the_keras_model(keras_file: Path) -> None:
    loaded = load_model(keras_file)
    net = door.import_keras().saving.load_model(keras_file, compile=False)
    assert torch.equal(loaded.model(loaded.example_inputs), net(loaded.example_inputs, training=False))
    assert copy.deepcopy(loaded.model).state_dict().keys() == loaded.model.state_dict().keys()


def test_it_is_traced_with_a_free_batch_and_couples(keras_file: Path) -> None:
    loaded = load_model(keras_file)
    graph = trace(loaded.model, loaded.example_inputs)
    assert graph.batch_dim
    assert sum(group.size for group in couple(graph).groups) >= 8
    x = torch.randn(5, *loaded.example_inputs.shape[1:])
    torch.testing.assert_close(graph(x), loaded.model(x))


def test_training_updates_the_moving_statistics(keras_file: Path) -> None:
    loaded = load_model(keras_file)
    before = {name: tensor.clone() for name, tensor in loaded.model.named_buffers()}
    assert before
    loaded.model.train()(loaded.example_inputs).sum().backward()
    assert all(p.grad is not None for p in loaded.model.parameters() if p.requires_grad)
    for name, tensor in loaded.model.named_buffers():
        assert not torch.equal(tensor, before[name])


def test_pruned_trained_saved_and_read_again(keras_file: Path, tmp_path: Path) -> None:
    loaded = load_model(keras_file)
    result = prune(loaded.model, loaded.example_inputs, ratio=0.5)
    assert result.in_place
    model = result.model
    assert isinstance(model, door.KerasModule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()(loaded.example_inputs).square().sum().backward()
    optimizer.step()
    model.eval()
    door.save_keras(model, tmp_path / "small.keras")
    again = load_model(tmp_path / "small.keras").model
    torch.testing.assert_close(again(loaded.example_inputs), model(loaded.example_inputs))
    sizes = [sum(p.numel() for p in m.parameters()) for m in (loaded.model, again)]
    assert sizes[1] < 0.7 * sizes[0]
    net = model.to_keras()
    assert type(net).from_config(net.get_config()).count_params() == net.count_params()


@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
def test_a_pruned_network_is_refitted(keras_file: Path, criterion: str) -> None:
    loaded = load_model(keras_file)
    generator = torch.Generator().manual_seed(0)
    shape = loaded.example_inputs.shape[1:]
    data = [torch.rand(64, *shape, generator=generator) for _ in range(4)]
    made = prune(
        loaded.model, loaded.example_inputs, 0.4, criterion=criterion, data=data, reconstruct=True
    ).reconstruction
    assert not made.notes
    assert {fit.method for fit in made.layers} & {"moments", "samples"}
    assert made.error_after < 0.5 * made.error_before


def test_the_artifact_of_a_keras_model_needs_no_keras(keras_file: Path, tmp_path: Path) -> None:
    loaded = load_model(keras_file)
    save_artifact(tmp_path / "out", loaded.model, example_inputs=loaded.example_inputs)
    torch.testing.assert_close(
        load(tmp_path / "out")(loaded.example_inputs), loaded.model(loaded.example_inputs)
    )


def nested(layers: Any) -> list[Any]:
    keras = door.import_keras()
    inner = layers.Input((8, 8, 8))
    block = keras.Model(inner, inner + layers.SeparableConv2D(8, 3, padding="same")(inner))
    part = keras.Sequential([layers.Input((8, 8, 8)), layers.Conv2D(8, 3), block2(keras)])
    return [layers.Input((8, 8, 3)), layers.Conv2D(8, 3, padding="same"), block, part, layers.Flatten()]


def block2(keras: Any) -> Any:
    return keras.Sequential([keras.layers.Input((6, 6, 8)), keras.layers.Conv2D(6, 1, activation="relu")])


def wrapped(layers: Any) -> list[Any]:
    return [
        layers.Input((4, 6, 6, 3)),
        layers.TimeDistributed(layers.Conv2D(8, 3, activation="relu")),
        layers.TimeDistributed(layers.Flatten()),
        layers.Bidirectional(layers.GRU(6, return_sequences=True)),
        layers.EinsumDense("abc,cd->abd", output_shape=(4, 8)),
        layers.RNN([layers.LSTMCell(8), layers.GRUCell(6)]),
    ]


@pytest.mark.parametrize("build", [nested, wrapped])
def test_layers_within_layers_follow(build: Callable[[Any], list[Any]], tmp_path: Path) -> None:
    keras = door.import_keras()
    loaded = door.from_keras(keras.Sequential([*build(keras.layers), keras.layers.Dense(3)]))
    result = prune(loaded.model, loaded.example_inputs, ratio=0.5)
    assert result.in_place, result.reason
    assert result.after["params"] < 0.6 * result.before["params"]
    door.save_keras(result.model, tmp_path / "small.keras")  # type: ignore[arg-type]
    again = load_model(tmp_path / "small.keras").model
    torch.testing.assert_close(again(loaded.example_inputs), result.model(loaded.example_inputs))


def test_adapted_statistics_stay() -> None:
    """A Normalization layer computes with copies of its variables."""
    keras = door.import_keras()
    adapted = keras.layers.Normalization()
    adapted.adapt(5 * torch.rand(64, 6).numpy() + 3)
    layers = [keras.layers.Input((6,)), adapted, keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
    loaded = door.from_keras(keras.Sequential(layers))
    small = prune(loaded.model, loaded.example_inputs, ratio=0.5)
    assert small.in_place, small.reason
    for model in (loaded.model, small.model):
        found = model.to_keras()(loaded.example_inputs)  # type: ignore[operator]
        torch.testing.assert_close(found, model(loaded.example_inputs))


def test_attention_loses_whole_heads_and_stays_keras() -> None:
    """Keras scales by the size of heads that its config gives."""
    keras = door.import_keras()
    given = keras.Input((10, 16))
    x = keras.layers.Dense(24)(given)
    x = x + keras.layers.MultiHeadAttention(4, 6)(x, x)
    loaded = door.from_keras(keras.Model(given, keras.layers.Dense(3)(x)))
    made = prune(loaded.model, loaded.example_inputs, ratio=0.5)
    assert made.in_place, made.reason
    assert isinstance(made.model, door.KerasModule)
    assert made.model.to_keras().layers[2].num_heads == 2


def test_a_layer_of_ones_own_takes_its_sizes_by_number() -> None:
    """As ConvNeXt's scales do, which Keras holds apart from its layers."""
    keras = door.import_keras()
    from keras.src.applications.convnext import LayerScale

    given = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(12, 3, activation="relu")(given)
    x = x + LayerScale(0.5, 12)(keras.layers.Conv2D(12, 1)(x))
    loaded = door.from_keras(keras.Model(given, keras.layers.Conv2D(3, 1)(x)))
    made = prune(loaded.model, loaded.example_inputs, ratio=0.5)
    assert made.in_place, made.reason
    assert isinstance(made.model, door.KerasModule)
    found = made.model.to_keras()(loaded.example_inputs)
    torch.testing.assert_close(found, made.model(loaded.example_inputs))


def test_sizes_that_keras_cannot_express_are_left_to_the_graph() -> None:
    """Keras scales attention by 1/√(head size): with other sizes it would compute something else."""
    keras = door.import_keras()
    x = keras.Input((5, 8))
    attended = keras.layers.GroupQueryAttention(4, 4, 2)(x, x)
    loaded = door.from_keras(keras.Model(x, keras.layers.Dense(3)(attended)))
    result = prune(loaded.model, loaded.example_inputs, ratio=0.5)
    assert not result.in_place
    assert "grouped_query_attention" in result.reason
    assert result.after["params"] < result.before["params"]


ON_TENSORFLOW = """
import sys, keras, numpy
from safetensors.numpy import load_file, save_file
assert keras.backend.backend() == "tensorflow"
model = keras.saving.load_model(sys.argv[1], compile=False)
x = load_file(sys.argv[2])["x"]
y = numpy.asarray(model(x, training=False))
model.compile("sgd", "mse"); model.fit(x, y, epochs=1, verbose=0)
save_file({"y": y}, sys.argv[3])
"""


@pytest.mark.tf
@pytest.mark.slow
def test_the_pruned_file_serves_and_trains_on_tensorflow(keras_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    loaded = load_model(keras_file)
    model = prune(loaded.model, loaded.example_inputs, ratio=0.5).model
    assert isinstance(model, door.KerasModule)
    door.save_keras(model, tmp_path / "small.keras")
    x = torch.randn(5, *loaded.example_inputs.shape[1:])
    save_file({"x": x}, tmp_path / "x.safetensors")
    files = [str(tmp_path / name) for name in ("small.keras", "x.safetensors", "y.safetensors")]
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-c", ON_TENSORFLOW, *files], check=True, env=environment)
    torch.testing.assert_close(load_file(files[2])["y"], model(x).detach(), rtol=1e-5, atol=1e-5)


def test_code_in_a_file_is_refused(tmp_path: Path) -> None:
    keras = door.import_keras()
    net = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2), keras.layers.Dense(2)])
    net.save(tmp_path / "net.keras")
    with pytest.raises(ArtifactError, match="cannot load"):
        load_model(tmp_path / "net.keras")


def test_what_is_no_keras_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.keras").write_text("x")
    for name in ("net.keras", "none.keras"):
        with pytest.raises(ArtifactError, match=name):
            load_model(tmp_path / name)


@pytest.mark.parametrize(
    ("member", "content"),
    [("config.json", b"[" * 100_000), ("config.json", b"{}"), ("model.weights.h5", b"x" * 100)],
)
def test_a_damaged_file_is_named(member: str, content: bytes, keras_file: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(keras_file) as whole, zipfile.ZipFile(tmp_path / "torn.keras", "w") as damaged:
        for name in whole.namelist():
            damaged.writestr(name, content if name == member else whole.read(name))
    with pytest.raises(ArtifactError, match=r"cannot load .*torn\.keras .*Check that the file is whole"):
        load_model(tmp_path / "torn.keras")


def test_a_file_that_unpacks_beyond_the_memory_is_refused(
    keras_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penjing.archives.memory_bytes", lambda: 1000)
    with pytest.raises(ArtifactError, match=r"unpacked it takes .*has 1 kB of memory"):
        load_model(keras_file)


def test_another_backend_in_the_process_is_an_error_not_a_wrong_model(
    keras_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door.import_keras().backend, "backend", lambda: "tensorflow")
    with pytest.raises(ArtifactError, match="tensorflow backend in this process"):
        load_model(keras_file)


def test_a_keras_model_itself_is_sent_to_its_door() -> None:
    """Its layers would not follow; nothing would be removed, in silence."""
    keras = door.import_keras()
    model = sequential(keras)
    with pytest.raises(TraceError, match="from_keras"):
        prune(model, torch.zeros(2, 12, 12, 3))
    loaded = door.from_keras(model)
    small = prune(loaded.model, loaded.example_inputs, ratio=0.5)
    assert small.model.to_keras().count_params() < model.count_params()  # type: ignore[operator]
