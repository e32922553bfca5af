"""A Hugging Face transformer pruned, and recovered by its `Trainer`: the original is the teacher.

``python examples/hf_trainer.py``: a small BERT on made-up sentences; nothing is downloaded. For a network of
one's own put it in the place of ``original``, and its data set in the place of ``sentences``.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import penjing as pj

TEMPERATURE = 2.0


class Distilling(Trainer):
    """A `Trainer` whose loss also asks for the teacher's answers (Hinton et al. 2015)."""

    def __init__(self, *args: Any, teacher: torch.nn.Module, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher.eval().to(self.args.device)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        labels = inputs.pop("labels")
        output = model(**inputs)
        with torch.no_grad():
            soft = F.softmax(self.teacher(**inputs).logits / TEMPERATURE, 1)
        kept = F.kl_div(F.log_softmax(output.logits / TEMPERATURE, 1), soft, reduction="batchmean")
        loss = 0.1 * F.cross_entropy(output.logits, labels) + 0.9 * TEMPERATURE**2 * kept
        return (loss, output) if return_outputs else loss


def sentences(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Twelve words each; the label says whether word 7 occurs before word 8."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        words = torch.randint(10, 40, (12,), generator=draw)
        first, second = torch.randperm(12, generator=draw)[:2].tolist()
        words[first], words[second] = 7, 8
        label = torch.tensor(int(first < second))
        made.append({"input_ids": words, "attention_mask": torch.ones_like(words), "labels": label})
    return made


def right(model: torch.nn.Module, data: list[dict[str, torch.Tensor]]) -> float:
    """Share answered right."""
    ids, labels = (torch.stack([one[key] for one in data]) for key in ("input_ids", "labels"))
    with torch.no_grad():
        answers = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.argmax(1)
    return float((answers == labels).float().mean())


def main(epochs: int = 12) -> tuple[float, float, float]:
    """Train, prune, recover; gives the accuracy of the original, and of the small one before and after."""
    train, val = sentences(2000, seed=0), sentences(500, seed=1)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=12,
    )
    original = BertForSequenceClassification(config)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=50,
            learning_rate=2e-3,
            report_to="none",
            remove_unused_columns=False,  # where a traced graph serves, its forward does not name them
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(original, options, train_dataset=train).train()

        example = {
            key: torch.stack([one[key] for one in train[:2]]) for key in ("input_ids", "attention_mask")
        }
        small = pj.prune(original.eval(), example, budget=pj.Budget(params=0.4), scope="global")
        print(small.in_short().title)
        before = right(small.model, val)
        Distilling(small.model, options, train_dataset=train, teacher=original).train()
    found = right(original, val), before, right(small.model, val)
    was, now = small.before["params"], small.after["params"]
    print(
        f"{was:,} → {now:,} parameters; {found[0]:.1%} right, pruned {found[1]:.1%}, recovered {found[2]:.1%}"
    )
    return found


if __name__ == "__main__":
    main()
