"""The side of transformers.Trainer."""

from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from typing_extensions import override

from benchmarks.training.sides import Orders, plain_model
from benchmarks.training.work import SCHEDULE_STEPS, windows
from shared.training.assignment import TrainerAssignment


def hugging_face(assignment: TrainerAssignment, orders: Orders, num_steps: int) -> None:
    """transformers.Trainer."""
    train = assignment.spec.train
    arguments = TrainingArguments(
        output_dir=assignment.folder,
        max_steps=SCHEDULE_STEPS,
        per_device_train_batch_size=train.micro_batch,
        learning_rate=train.peak_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0,
        max_grad_norm=train.clip_norm,
        optim="adamw_torch_fused",
        weight_decay=0.0,
        torch_compile=train.compile,
        use_cpu=True,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=plain_model(assignment),
        args=arguments,
        train_dataset=_Windows(windows(assignment, num_steps)),
        callbacks=[_Obeying(orders)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


class _Windows(Dataset[dict[str, torch.Tensor]]):
    """Labels are given shifted, so that each window has one for each input, as ours has."""

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @override
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self._rows[index]
        return {"input_ids": row[:-1], "labels": row[1:], "shift_labels": row[1:]}


class _Obeying(TrainerCallback):
    """Holds the Trainer between two steps until more are asked for."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._left = 0

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._left = self._orders.next()

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._left -= 1
        control.should_log = not self._left

    @override
    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        self._orders.done(logs["loss"])
        self._left = self._orders.next()
        control.should_training_stop = not self._left
