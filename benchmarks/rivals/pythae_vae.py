"""Pythae: the loop of ``BaseTrainer.train_step`` over batches that are binarised as they come, and ``get_nll``.

Its Bernoulli likelihood takes probabilities, so that its decoder ends in a sigmoid; its encoder speaks of log variances.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator

import torch
from pythae.data.datasets import BaseDataset, DatasetOutput
from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor

from benchmarks import networks
from benchmarks.architectures import PIXELS
from benchmarks.job import Job, Prepared


class Encoder(BaseEncoder):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.layers = networks.encoder(job.architecture)

    def forward(self, x: Tensor) -> ModelOutput:
        loc, log_scale = self.layers(x.reshape(len(x), PIXELS)).chunk(2, -1)
        return ModelOutput(embedding=loc, log_covariance=2 * log_scale)


class Decoder(BaseDecoder):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.layers = networks.decoder(job.architecture)

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=torch.sigmoid(self.layers(z)))


class Loader:
    """So many batches, as Pythae's trainer takes them from a DataLoader."""

    def __init__(self, job: Job) -> None:
        self.batches, self.length = networks.Batches(job), 1
        self.dataset = self.batches.grey

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[DatasetOutput]:
        for _ in range(self.length):
            yield DatasetOutput(data=self.batches())


def model(job: Job) -> VAE:
    """The model with the job's weights."""
    torch.manual_seed(job.seed)
    settings = {"input_dim": (PIXELS,), "latent_dim": job.architecture.latent_dim, "reconstruction_loss": "bce"}
    encoder, decoder = Encoder(job), Decoder(job)
    if job.num_particles > 1 and job.task == "step":
        return IWAE(IWAEConfig(number_samples=job.num_particles, **settings), encoder, decoder)
    found = VAE(VAEConfig(**settings), encoder, decoder)
    networks.fill([*encoder.parameters(), *decoder.parameters()], job)
    return found.to(job.device)


def step(job: Job) -> Prepared:
    """Training steps; the trainer's loop runs over as many batches as there are iterations."""
    logging.disable(logging.INFO)
    few = BaseDataset(torch.zeros(job.batch_size, PIXELS), torch.zeros(job.batch_size))
    settings = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(),
        learning_rate=1e-3,
        per_device_train_batch_size=job.batch_size,
        no_cuda=job.device == "cpu",
    )
    trainer = BaseTrainer(model(job), few, training_config=settings)
    trainer.prepare_training()
    loader = trainer.train_loader = Loader(job)

    def run(iterations: int) -> float:
        loader.length = iterations
        loss = trainer.train_step(epoch=1)
        networks.finish(job)
        return float(loss)

    return Prepared(run)


def log_likelihood(job: Job) -> Prepared:
    """log p(x) by ``get_nll``, in its batches of 100 particles. An iteration is a datum."""
    found, x = model(job), networks.binary(job)
    place = [0]

    @torch.no_grad()
    def one() -> float:
        place[0] += 1
        datum = x[(place[0] - 1) % job.num_data][None]
        return float(found.get_nll(datum, n_samples=job.num_particles, batch_size=100))

    return Prepared(networks.looped(one, job))
