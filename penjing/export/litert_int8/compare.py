"""How well a file keeps the answers of the float one, on calibration samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penjing.export.coexist import quiet_tf
from penjing.export.inputs import Feeds
from penjing.export.saved_model import SIGNATURE
from penjing.export.tf_ops.backend import tf

Outputs = list[dict[str, np.ndarray]]


@dataclass(frozen=True, order=True)
class Quality:
    """What a file keeps.

    Attributes:
        agreement: Expected share of samples with the same largest entry: every sample's output with every
            sample's rounding noise, as a few samples' own answers say little (1 where there is not one matrix
            as output).
        snr: Signal over rounding noise of the worst output, in decibels: −20 log10 of the relative
            root-mean-square difference.
    """

    agreement: float
    snr: float

    def holds(self, least: Quality) -> bool:
        """Whether both are at least these."""
        return self.agreement >= least.agreement and self.snr >= least.snr

    def __str__(self) -> str:
        return f"{100 * self.agreement:.1f}% same answers, {self.snr:.1f} dB"


class Judge:
    """Compares files with the float one, whose outputs are computed once.

    Args:
        reference: The float file.
        samples: Inputs by name, one sample each.
    """

    def __init__(self, reference: bytes, samples: Sequence[Feeds]) -> None:
        self._samples = list(samples)
        self._reference = self._run(reference, len(self._samples))

    def __call__(self, content: bytes) -> Quality:
        """Agreement and noise over all samples."""
        found = self._run(content, len(self._samples))
        return Quality(self._agreement(found), -10 * float(np.log10(max(self._noise(found), 1e-15))))

    def noise(self, content: bytes, count: int) -> float:
        """Noise power of the worst output over the first ``count`` samples, relative to the signal's."""
        return self._noise(self._run(content, min(count, len(self._samples))))

    def _run(self, content: bytes, count: int) -> Outputs:
        with quiet_tf():
            interpreter = tf.lite.Interpreter(model_content=content, num_threads=1)
            runner = interpreter.get_signature_runner(SIGNATURE)
        return [{k: np.array(v) for k, v in runner(**feeds).items()} for feeds in self._samples[:count]]

    def _agreement(self, found: Outputs) -> float:
        first = next(iter(self._reference[0].values()))
        if len(self._reference[0]) != 1 or first.ndim != 2 or first.shape[1] < 2:
            return 1.0
        exact_NK, found_NK = (
            np.concatenate([next(iter(sample.values())) for sample in outputs]).astype(np.float64)
            for outputs in (self._reference, found)
        )
        if not np.isfinite(found_NK).all():
            return float(np.mean(exact_NK.argmax(1) == found_NK.argmax(1)))
        answers_N = exact_NK.argmax(1)
        noisy = (exact_NK + noise_K for noise_K in found_NK - exact_NK)
        return float(np.mean([np.mean(values_NK.argmax(1) == answers_N) for values_NK in noisy]))

    def _noise(self, found: Outputs) -> float:
        worst = 0.0
        for name, value in self._reference[0].items():
            signal = noise = 0.0
            for ours, theirs in zip(found, self._reference, strict=False):
                now = _powers(ours[name], theirs[name], exact=value.dtype.kind != "f")
                signal, noise = signal + now[0], noise + now[1]
            worst = max(worst, noise / signal if signal else float(noise > 0))
        return worst


def _powers(ours: np.ndarray, theirs: np.ndarray, *, exact: bool) -> tuple[float, float]:
    """Signal and noise: for whole numbers the counts of all and of different ones; all is noise where the
    shapes differ or a value is not finite."""
    if exact or ours.shape != theirs.shape:
        different = int((ours != theirs).sum()) if ours.shape == theirs.shape else theirs.size
        return float(theirs.size), float(different)
    where = np.isfinite(theirs)
    a, b = ours[where].astype(np.float64), theirs[where].astype(np.float64)
    signal = float(b @ b)
    return (signal, float((a - b) @ (a - b))) if np.isfinite(a).all() else (signal, signal)
