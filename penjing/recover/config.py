"""The options of training and recovery."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from penjing.config import Config

_Beta = Annotated[float, Field(ge=0, lt=1)]


class LossTerm(Config):
    """One term of the training loss: ``weight(t) · loss``.

    Attributes:
        name: Name in the loss registry (``penjing.recover.losses``): ``"ce"``, ``"kd"``, ``"dist"``…
        weight: Factor of the term.
        ramp: How the weight changes over the run: ``"constant"``, ``"rise"`` (0 → weight, linear) or
            ``"fall"`` (weight → 0, linear).
        options: The loss's own options (each loss is a `Config`; unknown keys are errors).
    """

    name: str
    weight: float = Field(default=1.0, ge=0)
    ramp: Literal["constant", "rise", "fall"] = "constant"
    options: dict[str, Any] = Field(default_factory=dict)

    def weight_at(self, progress: float) -> float:
        """The factor when ``progress`` in [0, 1] of the run is done."""
        return self.weight * {"constant": 1.0, "rise": progress, "fall": 1.0 - progress}[self.ramp]


class RegularizerTerm(Config):
    """One regularizer of sparse training.

    Attributes:
        name: Name in the registry (``penjing.recover.regularize``): ``"group_lasso"``, ``"growing"``…
        options: Its own options.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


def _term(name: str, given: Any) -> dict[str, Any]:
    """A term of the loss from its weight, or from its weight, its ramp and its own options."""
    if not isinstance(given, dict):
        return {"name": name, "weight": given}
    own = {key: value for key, value in given.items() if key in ("weight", "ramp", "options")}
    rest = {key: value for key, value in given.items() if key not in own}
    return {"name": name, **own, **({"options": {**own.get("options", {}), **rest}} if rest else {})}


class RecoverConfig(Config):
    """Options of `train` and `recover`.

    Length: the run ends at whichever of ``epochs``, ``max_steps`` and ``max_seconds`` comes first; the
    learning-rate schedule spans exactly that length (under ``max_seconds``, by the share of time used, so
    a run that is cut by the clock has still seen its whole schedule).

    Attributes:
        epochs: Passes over the data.
        max_steps: Most optimizer steps in all.
        max_seconds: Time budget in seconds, checked after every step; a resumed run goes on where the
            clock stood.
        steps_per_epoch: Optimizer steps taken in each epoch; None takes the whole data, 1 is "one
            optimizer step an epoch".
        optimizer: ``"sgd"``, ``"adamw"`` or ``"muon"`` (steps as long in every direction of a weight).
        lr: Peak learning rate; under Muon relative to the size of each parameter, under AdamW that of the
            steps of a network in int8.
        momentum, nesterov: For SGD.
        betas: For AdamW, and for what Muon leaves to Adam.
        weight_decay: Not applied to biases, normalisation weights and other parameters of at most one
            dimension.
        schedule: ``"onecycle"`` (cosine up, cosine down), ``"cosine"``, ``"linear"`` (linear warmup then
            decay) or ``"constant"``.
        warmup: Fraction of the run spent warming up; None is 0.25 for ``"onecycle"`` and 0 for the others.
        lr_start, lr_end: First and last learning rate, as fractions of ``lr``.
        grad_clip: Largest total gradient norm; None never clips (a non-finite gradient stops the run all
            the same).
        grad_accumulation: Batches per optimizer step; each counts by its samples.
        ema: Decay of the exponential moving average of the weights (0.99…); 0 keeps none. With it, the
            average is what is validated and returned.
        label_smoothing: For the cross-entropy, 0 to 1.
        ignore_index: The label of samples and positions that count neither in losses with labels nor in the
            accuracy (255 in many segmentation sets).
        mixup, cutmix: Beta parameters α of mixup (Zhang 2018) and CutMix (Yun 2019); 0 is off. With both
            on, each batch takes one of the two.
        dropout: Probability of the model's dropout layers in this run; None keeps their own. A pruned
            network has fewer units to spare: Han et al. 2015 scale the original's by
            √(connections left / connections).
        precision: ``"fp32"``, ``"bf16"`` autocast, or ``"auto"``: bf16 where steps of this network are
            at least 1.25 times as fast in it on this machine, in runs of 200 steps or more.
        channels_last: Memory format of 4-d inputs and weights; None decides by the model (on where it has 2-d
            convolutions).
        compile: Use ``torch.compile``; networks in int8 training or read from ONNX run without, with a note.
        losses: Terms of the loss; empty is cross-entropy for `train`, and for `recover` 0.1 ·
            cross-entropy + 0.9 · KD (labels present), KD alone (no labels) or, where the targets are no
            classes of the outputs, there is one score, or there are several outputs and no labels, the
            original's outputs as they are (``"outputs"``).
            To KD a plan adds what every block gives (40 · ``mse`` with ``layers: blocks``), unless the
            original's answers are remembered or there are no blocks, which the run then says.
        temperature: Default temperature of the logit losses.
        distinct_epochs: After this many epochs the draws of chance begin again: epoch e sees the order, the
            augmentation, the mixing and the dropout of epoch e mod ``distinct_epochs``, and the teacher's
            remembered answers, so it runs in the first of them only (fast knowledge distillation, Shen &
            Xing 2022). The data follows where it has ``set_epoch`` or draws from the global generators;
            where it does not, the run warns. None never repeats.
        teacher_cache: Most samples whose teacher logits are kept in memory, keyed by the sample's content
            (one teacher, logit losses). None keeps all with ``distinct_epochs`` and none without it, where
            it pays if samples repeat exactly (no augmentation).
        patience: Stop after this many evaluations without a better validation result; None never does.
        keep: ``"last"`` returns the final weights, ``"best"`` those of the best validation result. Either
            way `recover` returns the weights it started from where validation finds these better, and says so
            (not in sparse training, which is meant to give up accuracy for now).
        recalibrate: Samples on which `recover` measures batch-norm statistics before the first step. Measured
            anew they replace the given ones where validation data finds that no worse. Then they become those
            of the batches as training sees them (mixed, too), scale and offset moving along, so that training
            starts from the network's own function. 0 leaves everything as it came.
        regularize: Regularizers of sparse training, before removal (``"group_lasso"``, ``"group_norm"``,
            ``"growing"``, ``"slimming"``, ``"soft"``); ``"keep_zeros"`` recovers a masked network.
        eval_every: Epochs between validations (the last epoch is always validated).
        workers_split: In a multi-process run every process sees the same batches and takes its own share
            of each one (True; one with fewer samples than processes is left out), or the loader already
            gives each process its own data (False).
    """

    epochs: int = Field(default=10, ge=0)
    max_steps: int | None = Field(default=None, ge=0)
    max_seconds: float | None = Field(default=None, gt=0)
    steps_per_epoch: int | None = Field(default=None, ge=1)
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    lr: float = Field(default=0.02, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["onecycle", "cosine", "linear", "constant"] = "onecycle"
    warmup: float | None = Field(default=None, ge=0, lt=1)
    lr_start: float = Field(default=0.05, ge=0, le=1)
    lr_end: float = Field(default=0.001, ge=0, le=1)
    grad_clip: float | None = Field(default=5.0, gt=0)
    grad_accumulation: int = Field(default=1, ge=1)
    ema: float = Field(default=0.0, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    ignore_index: int = -100
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool | None = None
    compile: bool = False
    losses: tuple[LossTerm, ...] = ()
    temperature: float = Field(default=4.0, gt=0)
    distinct_epochs: int | None = Field(default=None, ge=1)
    teacher_cache: int | None = Field(default=None, ge=0)
    patience: int | None = Field(default=None, ge=1)
    keep: Literal["last", "best"] = "last"
    recalibrate: int = Field(default=2048, ge=0)
    regularize: tuple[RegularizerTerm, ...] = ()
    eval_every: int = Field(default=1, ge=1)
    workers_split: bool = True

    @field_validator("regularize", mode="before")
    @classmethod
    def _short_names(cls, value: Any) -> Any:
        """Accept ``"soft"``, ``["soft"]`` and ``{"growing": {"ratio": 0.5}}`` for lists of terms."""
        value = [value] if isinstance(value, str) else value
        if isinstance(value, dict) and "name" not in value:
            value = [{"name": name, "options": options or {}} for name, options in value.items()]
        value = [value] if isinstance(value, dict) else value
        return [{"name": item} if isinstance(item, str) else item for item in value]

    @field_validator("losses", mode="before")
    @classmethod
    def _short_terms(cls, value: Any) -> Any:
        """Accept ``["ce", "kd"]``, ``{"ce": 0.1, "kd": 0.9}`` and ``{"mse": {"weight": 30, "layers": …}}``
        for lists of terms.
        """
        if isinstance(value, dict):
            return [_term(name, given) for name, given in value.items()]
        if isinstance(value, (list, tuple)):
            return [{"name": item} if isinstance(item, str) else item for item in value]
        return value

    @model_validator(mode="after")
    def _losses_known(self) -> Self:
        from penjing.recover.losses import make_loss  # the registry imports torch: only when a loss is named

        for term in self.losses:
            make_loss(term.name, term.options)
        if self.regularize:
            from penjing.recover.regularize import make_regularizer

            for one in self.regularize:
                make_regularizer(one.name, one.options)
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0; set nesterov: false")
        return self
