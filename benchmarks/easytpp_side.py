"""EasyTPP 0.3.0's SAHP as its runner builds it for the shipped example; runs in an environment that holds EasyTPP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from processes import BATCH, D_MODEL, N_HEADS, N_LAYERS, RATE, Data

# Its one-step prediction as shipped: the first accepted of 500 proposals, one draw.
THINNING = {
    "num_seq": 10,
    "num_sample": 1,
    "num_exp": 500,
    "look_ahead_time": 10,
    "patience_counter": 5,
    "over_sample_rate": 5,
    "num_samples_boundary": 5,
    "dtime_max": 5,
    "num_step_gen": 1,
}


def version() -> str:
    import importlib.metadata

    import torch

    return f"easy-tpp {importlib.metadata.version('easy-tpp')}, torch {torch.__version__}"


def load_package() -> None:
    """Import what is measured, without its messages."""
    import logging

    import easy_tpp.model  # noqa: F401 (registers the models)

    logging.disable(logging.CRITICAL)


def build(n_types: int, seed: int, training: bool) -> Any:
    """Return its model inside its wrapper."""
    import torch
    from easy_tpp.config_factory.model_config import BaseConfig, ModelConfig, TrainerConfig
    from easy_tpp.model.basemodel import BaseModel
    from easy_tpp.model_wrapper import ModelWrapper

    torch.manual_seed(seed)
    config = ModelConfig(
        model_id="SAHP",
        hidden_size=D_MODEL,
        num_layers=N_LAYERS,
        num_heads=N_HEADS,
        dropout_rate=0.0,
        use_ln=False,
        loss_integral_num_sample_per_step=20,
        training=training,
        thinning=None if training else THINNING,
        num_event_types=n_types,
        num_event_types_pad=n_types + 1,
        event_pad_index=n_types,
    )
    trainer = TrainerConfig(seed=seed, batch_size=BATCH, optimizer="adam", learning_rate=RATE)
    base = BaseConfig(stage="train", backend="torch", model_id="SAHP", specs={})
    return ModelWrapper(BaseModel.generate_model_from_config(config), base, config, trainer)


def collator(data: Data) -> Callable[[np.ndarray], Any]:
    """Return its own way from row numbers to a padded batch, on the lists that its loader keeps."""
    from easy_tpp.config_factory.data_config import DataSpecConfig
    from easy_tpp.preprocess.data_collator import TPPDataCollator
    from easy_tpp.preprocess.dataset import TPPDataset
    from easy_tpp.preprocess.event_tokenizer import EventTokenizer

    specs = DataSpecConfig(num_event_types=data.n_types, pad_token_id=data.n_types, padding_side="right")
    dataset = TPPDataset(
        {
            "time_seqs": [times.tolist() for times, _ in data.rows()],
            "type_seqs": [types.tolist() for _, types in data.rows()],
            "time_delta_seqs": [np.diff(times, prepend=times[0]).tolist() for times, _ in data.rows()],
        }
    )
    collate = TPPDataCollator(
        tokenizer=EventTokenizer(specs), padding=True, truncation=False, return_tensors="pt"
    )
    return lambda rows: collate([dataset[int(row)] for row in rows])


def train_batch(wrapper: Any, batch: Any) -> np.ndarray:
    """Return the loss and the number of events of one training step."""
    from easy_tpp.utils import RunnerPhase

    return np.array(wrapper.run_batch(batch, phase=RunnerPhase.TRAIN)[:2], dtype=float)
