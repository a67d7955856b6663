"""Text: z ~ N(0, I), tokens | z by a decoder that reads the tokens before (word dropout), or by one that writes all of them at once."""

from __future__ import annotations

import abc
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppvae.build import recorded
from ppvae.errors import ShapeError, check_count
from ppvae.models import priors


class _Text(PyroModule):
    """What both models of text share: the batch, the prior and the site "tokens"."""

    def __init__(self, latent_dim: int, prior: TorchDistribution | nn.Module | None) -> None:
        super().__init__()
        self.prior_given: Any = prior or priors.StandardNormal(latent_dim)

    @abc.abstractmethod
    def likelihood(self, z: Tensor, lengths: Tensor, num_steps: int) -> TorchDistribution:
        """p(tokens | z) of the first ``lengths`` tokens; event shape (T,)."""

    def forward(self, x: dict[str, Tensor]) -> None:
        """Observe the first ``lengths`` tokens of each datum.

        Raises:
            ShapeError: The batch is no dict of tokens and lengths.
        """
        if not isinstance(x, dict) or not x.keys() >= {"tokens", "lengths"}:
            came = f"a dict of {', '.join(map(repr, x))}" if isinstance(x, dict) else f"a {type(x).__name__}"
            raise ShapeError(
                f"needed a dict of 'tokens' and 'lengths', and {came} came",
                mend="{'tokens': tokens, 'lengths': lengths}, (N, T) and (N,), whole numbers",
            )
        tokens, lengths = x["tokens"], x["lengths"]
        with pyro.plate("data", len(tokens), dim=-1):
            given = self.prior_given  # a Pyro distribution is callable too: calling it would draw
            z = pyro.sample("z", given if isinstance(given, TorchDistributionMixin) else given())
            pyro.sample("tokens", self.likelihood(z, lengths, tokens.shape[1]), obs=tokens)


@recorded
class AutoregressiveText(_Text):
    """p(tokens | z) = prod_t p(token_t | z, token_1, ..., token_{t-1}): a GRU that starts from z and sees z at every step.

    A batch is a dict of tokens, (N, T), in 0..V - 1, and lengths, (N,); what stands behind the end is filler. Where each text ends in an
    end symbol that its length counts, log p is of the whole text; without one, of its first ``length`` tokens.

    Args:
        num_tokens: V.
        latent_dim: Z.
        embedding: Width of a token's embedding.
        hidden: Width of the GRU.
        word_dropout: Share of the tokens that the decoder does not get to read, while training: without them it has to ask z.
        prior: Of z; without it N(0, I).

    Raises:
        ShapeError: ``word_dropout`` lies outside [0, 1].

    References:
        Bowman, Vilnis, Vinyals, Dai, Jozefowicz, Bengio (2016), Generating sentences from a continuous space, sec. 3 and 3.1.
    """

    def __init__(
        self,
        num_tokens: int,
        latent_dim: int,
        embedding: int,
        hidden: int,
        word_dropout: float = 0.0,
        prior: TorchDistribution | nn.Module | None = None,
    ) -> None:
        super().__init__(latent_dim, prior)
        check_count("num_tokens", num_tokens, 2)
        if not 0 <= word_dropout <= 1:
            raise ShapeError(f"word_dropout is a share in [0, 1], got {word_dropout}")
        self.decoder = TokenDecoder(num_tokens, latent_dim, embedding, hidden, word_dropout)

    def likelihood(self, z: Tensor, lengths: Tensor, num_steps: int) -> TorchDistribution:
        """p(tokens | z) of the first ``lengths`` tokens; its draws are made token by token."""
        return Autoregressive(self.decoder, z, lengths, num_steps)


@recorded
class ParallelText(_Text):
    """p(tokens | z) = prod_t Categorical(token_t; network(z)_t): all tokens at once, so that what ties them together is z alone.

    Args:
        network: (..., Z) -> (..., T V) logits, token fastest.
        num_tokens: V.
        latent_dim: Z.
        prior: Of z; without it N(0, I).
    """

    def __init__(self, network: nn.Module, num_tokens: int, latent_dim: int, prior: TorchDistribution | nn.Module | None = None) -> None:
        super().__init__(latent_dim, prior)
        check_count("num_tokens", num_tokens, 2)
        self.network, self.num_tokens = network, num_tokens

    def likelihood(self, z: Tensor, lengths: Tensor, num_steps: int) -> TorchDistribution:
        """p(tokens | z) of the first ``lengths`` tokens.

        Raises:
            ShapeError: The network has not T V outputs.
        """
        output = self.network(z)
        if output.shape[-1] != num_steps * self.num_tokens:
            raise ShapeError(
                f"{num_steps} tokens of {self.num_tokens} need {num_steps * self.num_tokens} outputs, got {output.shape[-1]}",
                mend="pad the data to the length that the network was built for",
            )
        inside = torch.arange(num_steps, device=lengths.device) < lengths[:, None]
        each = dist.Categorical(logits=output.unflatten(-1, (num_steps, self.num_tokens)))
        return each.mask(inside).to_event(1)  # type: ignore[no-any-return]


class TokenDecoder(nn.Module):
    """The network of ``AutoregressiveText``: z and the tokens before -> logits of the next one."""

    def __init__(self, num_tokens: int, latent_dim: int, embedding: int, hidden: int, word_dropout: float) -> None:
        super().__init__()
        self.num_tokens, self.word_dropout = num_tokens, word_dropout
        self.embedding = nn.Embedding(num_tokens + 2, embedding)  # two more: the start of the text, and a word that is not shown
        self.first = nn.Linear(latent_dim, hidden)
        self.gru = nn.GRU(embedding + latent_dim, hidden, batch_first=True)
        self.out = nn.Linear(hidden, num_tokens)

    def logits(self, z: Tensor, tokens: Tensor) -> Tensor:
        """(M, Z) and (M, T) -> (M, T, V): entry t is given the tokens before t."""
        start = torch.full_like(tokens[:, :1], self.num_tokens)
        before = torch.cat([start, tokens[:, :-1]], 1)
        if self.training and self.word_dropout:
            hidden = torch.rand(before.shape, device=before.device) < self.word_dropout
            hidden[:, 0] = False
            before = torch.where(hidden, self.num_tokens + 1, before)
        states, _ = self.gru(self._inputs(z, before), torch.tanh(self.first(z))[None])
        return self.out(states)  # type: ignore[no-any-return]

    def draw(self, z: Tensor, num_steps: int) -> Tensor:
        """Tokens drawn one after the other, (M, T)."""
        state = torch.tanh(self.first(z))[None]
        token = torch.full((len(z), 1), self.num_tokens, dtype=torch.long, device=z.device)
        drawn = []
        for _ in range(num_steps):
            states, state = self.gru(self._inputs(z, token), state)
            token = dist.Categorical(logits=self.out(states)).sample()
            drawn.append(token)
        return torch.cat(drawn, 1)

    def _inputs(self, z: Tensor, before: Tensor) -> Tensor:
        return torch.cat([self.embedding(before), z[:, None].expand(-1, before.shape[1], -1)], -1)


class Autoregressive(TorchDistribution):
    """Tokens given z, event shape (T,), batch shape that of z: a density that reads the tokens, and draws that are made one by one.

    Args:
        decoder: Gives the logits.
        z: (..., N, Z).
        lengths: (N,); tokens behind it have no part in the density, and are drawn as 0.
        num_steps: T.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (torch's own attribute)
    has_rsample = False

    def __init__(self, decoder: TokenDecoder, z: Tensor, lengths: Tensor, num_steps: int) -> None:
        self.decoder, self.z, self.lengths = decoder, z, lengths
        super().__init__(z.shape[:-1], torch.Size([num_steps]), validate_args=False)

    @property
    def support(self) -> Any:
        """Whole numbers in 0..V - 1."""
        return constraints.independent(constraints.integer_interval(0, self.decoder.num_tokens - 1), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Autoregressive:
        """The same with more batch dimensions."""
        return Autoregressive(self.decoder, self.z.expand(*batch_shape, -1), self.lengths, self.event_shape[0])

    def log_prob(self, value: Tensor) -> Tensor:
        """sum over t < length of log p(value_t | z, value_1, ..., value_{t-1}), batch shape."""
        shape = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        tokens = value.long().expand(*shape, -1)
        logits = self.decoder.logits(self.z.expand(*shape, -1).flatten(0, -2), tokens.flatten(0, -2))
        said = torch.log_softmax(logits, -1).gather(-1, tokens.flatten(0, -2)[..., None])[..., 0].reshape(*shape, -1)
        return said.where(self._inside(), 0).sum(-1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  (torch's own signature)
        """(*sample_shape, *batch, T)."""
        shape = (*sample_shape, *self.batch_shape)
        with torch.no_grad():
            drawn = self.decoder.draw(self.z.expand(*shape, -1).flatten(0, -2), self.event_shape[0])
        return drawn.reshape(*shape, -1).where(self._inside(), 0)

    def _inside(self) -> Tensor:
        return torch.arange(self.event_shape[0], device=self.lengths.device) < self.lengths[:, None]
