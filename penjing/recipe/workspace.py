"""What the stages of one run share: its folder, data and models. Models always come from disk.

A stage never hands a module to the next one: it writes weights and plans, and the next one reads them. So a
run that was interrupted and one that was not go through the same files.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils import _pytree as pytree

from penjing.data import DataBundle, Split
from penjing.errors import DataError, RunError
from penjing.files import atomic_write
from penjing.graph.inputs import required_inputs
from penjing.measure.metric import load_metric, name_of
from penjing.measure.original import (
    BY_ORIGINAL,
    Answered,
    agreement,
    goes_by_original,
    needing_no_labels,
)
from penjing.models.spec import LoadedModel, files_of, load_model
from penjing.prune import Budget, Plan, apply
from penjing.recipe.feed import Feed, layout_of
from penjing.recipe.schema import GIVEN, Recipe
from penjing.recipe.seen import part_digests, values_digest
from penjing.recipe.store import Marker, Store, hash_json
from penjing.recover import chance
from penjing.recover.checkpoint import independent, model_tensors, restore_model


@dataclass(frozen=True)
class Given:
    """Objects handed over in Python, for which a recipe has no name.

    Attributes:
        model: The trained network; it is copied.
        data: The opened data.
        metric: What the allowed loss is measured in, instead of the share answered right.
    """

    model: nn.Module | None = None
    data: DataBundle | None = None
    metric: Any = None


class Workspace:
    """The folder of a run and what is read from it.

    Args:
        recipe: What to do.
        folder: The run folder; intermediate files are in its ``work`` folder.
        given: Objects that the recipe calls ``<given>``.
    """

    def __init__(self, recipe: Recipe, folder: Path, given: Given | None = None) -> None:
        self.recipe, self.folder = recipe, folder
        self.work = folder / "work"
        self.store = Store(folder)
        self._given = given or Given()
        self.sensed: Any = None
        self._cut: tuple[bytes, nn.Module] | None = None

    @cached_property
    def named_metric(self) -> Any:
        """The metric that the user names (`penjing.measure.metric`), or None."""
        name = self.recipe.metric
        if self._given.metric is not None or name is None:
            return self._given.metric
        return BY_ORIGINAL[name] if name in BY_ORIGINAL else load_metric(name)

    @cached_property
    def metric(self) -> Any:
        """What quality is judged by: the user's metric, for data without labels how far a network answers as
        the original does, or None for the share answered right.
        """
        if self.named_metric is not None or self.has_targets:
            return self.named_metric
        return needing_no_labels(self._first_answers)

    @cached_property
    def _first_answers(self) -> torch.Tensor:
        """The original's outputs on the first validation batch."""
        return next(iter(Answered(self._first, self.original)))[1]

    @cached_property
    def is_share(self) -> bool:
        """Whether the metric is a share of the samples: agreement, where each has one highest score."""
        return self.metric is agreement and self._first_answers.ndim == 2

    @cached_property
    def has_targets(self) -> bool:
        """Whether the validation data says what is right."""
        if isinstance(self.bundle.val, Split):
            return self.bundle.val.is_labelled
        first = self.feed.first(self._first)
        return first is None or first.target is not None  # that there is no batch is said where it is read

    @cached_property
    def _first(self) -> list[Any]:
        """The first validation batch, where there is one."""
        with self.same_chance("targets"):  # whichever stage asks first
            return list(islice(self.feed.split("val"), 1))

    def judged(self, which: str = "val", limit: int | None = None) -> Iterable[Any]:
        """A split as the metric wants it: with the original's answers as targets where it goes by them."""
        batches = self.feed.split(which, limit)
        return Answered(batches, self.dense) if goes_by_original(self.metric) else batches

    def rated(self, which: str, limit: int | None = None) -> Iterable[Any]:
        """A split, or ``limit`` of its samples, as `names_classes` says that they are rated."""
        return self.feed.split(which, limit) if self.names_classes else self.judged(which, limit)

    @cached_property
    def names_classes(self) -> bool:
        """Whether the data's targets are one class for each sample; what is not is judged by the metric.

        Raises:
            DataError: where it is not and there is no metric.
        """
        from penjing.measure.predict import are_classes, labelled

        if not self.has_targets:
            return False
        targets = next((found for _, found in labelled(self._first, self.feed.names)), None)
        if targets is None or are_classes(targets):
            return True
        if self.metric is None:
            raise DataError(
                f"the targets are {targets.dtype} of shape {list(targets.shape)}, "
                "not one class for each sample, so there is no accuracy",
                remedy="Give metric=, a function of outputs and targets, to say what counts",
            )
        return False

    @property
    def recovery_metric(self) -> Any:
        """What recovery validates by: the metric where there are no classes, else None for accuracy."""
        return None if self.names_classes else self.metric

    def with_budget(self, budget: Budget) -> Workspace:
        """The same folder and data under another pruning budget."""
        prune = self.recipe.prune.model_copy(update={"budget": budget})
        other = copy.copy(self)
        other.recipe = self.recipe.model_copy(update={"prune": prune})
        return other

    def remember(self, sensed: Mapping[str, Any] | None) -> None:
        """Keep a sensitivity that was measured, so that the next pruning of the dense network can use it."""
        if sensed is not None:
            from penjing.search.sensitivity import Sensitivity

            self.sensed = Sensitivity.from_dict(sensed)

    @cached_property
    def bundle(self) -> DataBundle:
        """The opened data."""
        if self.recipe.data.spec == GIVEN:
            if self._given.data is None:
                raise _not_given("data", self.folder)
            return self._given.data
        from penjing.data import open_data

        return open_data(self.recipe.data.spec, **self.recipe.data.options)

    @cached_property
    def _generators(self) -> list[tuple[torch.Generator, torch.Tensor]]:
        """Those of one's own loaders, as they were before anything was read."""
        bundle = self.bundle
        found = (
            g for part in (bundle.train, bundle.val, bundle.test) for g in chance.loader_generators(part)
        )
        return [(one, one.get_state()) for one in found]

    @contextmanager
    def same_chance(self, what: str) -> Iterator[None]:
        """Inside, what is drawn does not depend on what was drawn before, in this session or in another one:
        the global generators are seeded, those of one's own loaders are as they came. Afterwards all are as
        they were.
        """
        now = [(one, one.get_state()) for one, _ in self._generators]
        with chance.private_globals():
            chance.seed_globals(self.recipe.seed, *what.encode())
            for one, state in self._generators:
                one.set_state(state)
            try:
                yield
            finally:
                for one, state in now:
                    one.set_state(state)

    @cached_property
    def feed(self) -> Feed:
        """The data as batches for this model."""
        config = self.recipe.data
        layout = self._layout() if config.layout == "auto" else config.layout
        given = self.recipe.model.spec == GIVEN
        return Feed(
            config,
            self.bundle,
            layout=layout,
            seed=self.recipe.seed,
            source=None if given else self._source.normalize,
            trains=self.recipe.train is not None,
            names=required_inputs(self._given.model if given else self._source.model),
        )

    @cached_property
    def examples(self) -> Any:
        """Example inputs for tracing: two validation samples."""
        with self.same_chance("examples"):
            return self.feed.examples(2)

    @cached_property
    def _source(self) -> LoadedModel:
        """The network as its spec gives it, with its own example inputs."""
        config = self.recipe.model
        options = dict(config.options)
        if config.spec.startswith("penjing:"):
            channels, height = (*self.bundle.image_shape, 0, 0)[:2]
            fitting = {"num_classes": self.bundle.num_classes, "in_channels": channels, "image_size": height}
            options = {"seed": self.recipe.seed, **{k: v for k, v in fitting.items() if v}, **options}
        with chance.private_globals():  # a factory draws weights from the global generators
            chance.seed_globals(self.recipe.seed, *b"model")
            return load_model(config.spec, weights=config.weights, trust=config.trust, **options)

    def original(self) -> nn.Module:
        """A fresh copy of the network as its spec gives it: untrained, or with the weights it came with."""
        if self.recipe.model.spec != GIVEN:
            return copy.deepcopy(self._source.model)
        if self._given.model is None:
            raise _not_given("model", self.folder)
        return copy.deepcopy(self._given.model)

    def dense(self, name: str = "dense") -> nn.Module:
        """The trained dense network."""
        return self.load_weights(self.original(), name)

    def plan(self, name: str = "plan") -> Plan:
        """A plan that the pruning stage wrote."""
        return Plan.load(self.work / f"{name}.json")

    def student(self, weights: str, plan: str = "plan") -> nn.Module:
        """A pruned network: the original cut by a plan, with the weights of that name."""
        return self.load_weights(copy.deepcopy(self._shape(plan)), weights)

    def _shape(self, plan: str) -> nn.Module:
        """The original cut by a plan, which takes a trace; that of the last plan is kept."""
        said = (self.work / f"{plan}.json").read_bytes()
        if self._cut is None or self._cut[0] != said:
            self._cut = said, apply(self.original(), self.plan(plan), self.examples).model
        return self._cut[1]

    def weights_path(self, name: str) -> Path:
        """Where the weights of that name are."""
        return self.work / f"{name}.safetensors"

    def save_weights(self, model: nn.Module, name: str) -> str:
        """Write all parameters and buffers; gives the path relative to the run folder."""
        path = self.weights_path(name)
        with atomic_write(path) as aside:
            save_file(independent(model_tensors(model)), aside)
        return self.relative(path)

    def load_weights(self, model: nn.Module, name: str) -> nn.Module:
        """Put the weights of that name into a model; gives the model."""
        path = self.weights_path(name)
        try:
            restore_model(model, load_file(path))
        except (OSError, SafetensorError) as error:
            cause = f"cannot read {path} ({error})"
            raise RunError(cause, remedy="Delete the run folder and start anew") from error
        return model

    def result(self, stage: str) -> dict[str, Any]:
        """What a finished stage reported.

        Raises:
            RunError: if it has not finished.
        """
        return self._marker(stage).result

    def seconds(self, stage: str) -> float:
        """How long a finished stage took; where it took over what a trial had made, how long that took.

        Raises:
            RunError: if it has not finished.
        """
        timing = self._marker(stage).timing
        return float(timing.get("trial_seconds") or timing.get("stage_seconds", 0.0))

    def relative(self, path: Path) -> str:
        """A path relative to the run folder, with forward slashes."""
        return path.relative_to(self.folder).as_posix()

    def _marker(self, stage: str) -> Marker:
        marker = self.store.read(stage)
        if marker is None:
            raise RunError(f"stage {stage} has not finished", remedy="Run again with --resume")
        return marker

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Hashes of what the recipe calls ``<given>``: the model's weights, the data's first samples."""
        found = {}
        if self.recipe.model.spec == GIVEN and self._given.model is not None:
            found["given model"] = values_digest(model_tensors(self._given.model))
        if self.recipe.data.spec == GIVEN and self._given.data is not None:
            facts = hash_json(self.bundle.to_dict())
            with self.same_chance("given data"):
                samples = values_digest(pytree.tree_leaves(self.feed.examples(8)))
            found["given data"] = hash_json([facts, samples])
        if self.named_metric is not None:
            found["given metric"] = hash_json(name_of(self.named_metric))
        return found

    def inputs(self) -> dict[str, str]:
        """Hashes of what the recipe names but does not hold: data (labels, statistics, first images; of one's
        own loaders what `loader_digest` sees) and files of weights or networks, and what was given in Python.
        Code is left out: it may be mended between sessions.
        """
        found = {f"the {name}": digest for name, digest in self.fingerprints.items()}
        bundle = self.bundle
        if self.recipe.data.spec != GIVEN:
            facts = [bundle.classes, bundle.mean, bundle.std, bundle.image_shape]
            found[self._of_data("classes, sizes and statistics")] = hash_json(facts)
        found |= {**self._samples("train", bundle.train), **self._samples("val", bundle.val)}
        for spec in (self.recipe.model.spec, self.recipe.model.weights):
            found |= {str(path): self.store.hash(path) for path in files_of(spec)} if spec else {}
        return found

    def test_inputs(self) -> dict[str, str]:
        """The same of the test data, which the measuring stage reads and no other."""
        return self._samples("test", self.bundle.test)

    def _samples(self, name: str, part: Any) -> dict[str, str]:
        return {self._of_data(what): digest for what, digest in part_digests(name, part).items()}

    def _of_data(self, what: str) -> str:
        spec = self.recipe.data.spec
        return f"the {'given data' if spec == GIVEN else f'data {spec}'} ({what})"

    def _layout(self) -> str:
        if self.recipe.model.spec == GIVEN or self.recipe.model.spec.startswith("penjing:"):
            return "nchw"
        return layout_of(self._source.example_inputs, self.bundle)


def _not_given(what: str, folder: Path) -> RunError:
    return RunError(
        f"the recipe of {folder} was made in Python around a {what} that has no name",
        remedy=f"Go on in Python: penjing.compress(…, out={str(folder)!r}, resume=True), same {what}",
    )
