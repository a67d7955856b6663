"""Questions about a latent space: where the data lie, what lies between them, what a direction means, what the prior decodes to.

Every function takes programs, runs any measurable pair, and returns a frozen result of its own type with a figure in ``analysis.plots``.
"""

from __future__ import annotations

from ppvae.analysis.latents.attributes import (
    AttributeEdit,
    AttributeEffect,
    AttributeVector,
    attribute_effect,
    attribute_vector,
    edit,
)
from ppvae.analysis.latents.codes import AggregatedPosterior, Codes, aggregated_posterior, codes
from ppvae.analysis.latents.discriminant import Discriminant, discriminant
from ppvae.analysis.latents.moves import PriorGrid, Traversal, prior_grid, traversal
from ppvae.analysis.latents.paths import Continuity, Interpolation, continuity, interpolate, slerp
from ppvae.analysis.latents.quality import AverageImages, Completeness, Origin, average_images, completeness, origin

__all__ = [
    "AggregatedPosterior",
    "AttributeEdit",
    "AttributeEffect",
    "AttributeVector",
    "AverageImages",
    "Codes",
    "Completeness",
    "Continuity",
    "Discriminant",
    "Interpolation",
    "Origin",
    "PriorGrid",
    "Traversal",
    "aggregated_posterior",
    "attribute_effect",
    "attribute_vector",
    "average_images",
    "codes",
    "completeness",
    "continuity",
    "discriminant",
    "edit",
    "interpolate",
    "origin",
    "prior_grid",
    "slerp",
    "traversal",
]
