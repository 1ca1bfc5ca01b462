"""EWC on the product B·A, which is all of an adapter that the base can see."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from neuralforge.training.flat import Place

STRONGEST = 1e30
"""Weights above this are this one: all the same to float32, and no infinity times zero."""

_SLOWEST = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldModule:
    """Where A and B of a module stand, what they were, and how much each output (d_out) and input (d_in) matters."""

    place_a: Place
    place_b: Place
    a: torch.Tensor
    b: torch.Tensor
    outputs: torch.Tensor
    inputs: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProductPenalty:
    """weight · Σ over modules of ‖ diag(√u) (B·A − B*·A*) diag(√v) ‖², the same for (B·R⁻¹, R·A) as for (B, A).

    u is the Fisher of B summed over its rows, v that of A over its columns: u·vᵀ stands for the Fisher of the whole
    matrix, scaled so that dropping the module costs what it costs by the Fisher of the factors, Σ F_B · B*². Nothing
    of d_out × d_in is ever formed: the difference is L·R with L = [B − B*, B*], R = [A; A − A*], and the norm of such a
    product is that of two Gram matrices of 2r × 2r.

    A `Settling` penalty: the proximal step of A with B held, then that of B with A held; each is a least-squares
    problem that the eigenvectors of one r × r matrix take apart. For that, a column of A, a row of B, has one rate, the
    harmonic mean of its values' own.
    """

    weight: float
    modules: tuple[HeldModule, ...]

    @classmethod
    def of(
        cls, pairs: Sequence[tuple[Place, Place]], *, weight: float, importance: torch.Tensor, anchor: torch.Tensor
    ) -> ProductPenalty:
        """From the importance of the factors and their anchor, flat vectors in the order of `pairs`."""
        modules = []
        for place_a, place_b in pairs:
            a, b = place_a.of(anchor).clone(), place_b.of(anchor).clone()
            dropping = (place_b.of(importance) * b.square()).sum()
            outputs, inputs = place_b.of(importance).sum(dim=1), place_a.of(importance).sum(dim=0)
            whole = _square(b, a, outputs, inputs)
            # Nothing was learnt here where the product or its importance is zero: nothing is held.
            outputs = outputs * (dropping / whole) if whole > 0 else torch.zeros_like(outputs)
            modules.append(HeldModule(place_a=place_a, place_b=place_b, a=a, b=b, outputs=outputs, inputs=inputs))
        return cls(weight=weight, modules=tuple(modules))

    def value(self, vector: torch.Tensor) -> float:
        """The norm at `vector`, for a weight of 1."""
        total = 0.0
        for held in self.modules:
            a, b = held.place_a.of(vector.detach()), held.place_b.of(vector.detach())
            # With small differences on either side, and not as B·A beside −B*·A*: those would cancel.
            left, right = torch.cat([b - held.b, held.b], dim=1), torch.cat([a, a - held.a])
            total += max(0.0, float(_square(left, right, held.outputs, held.inputs)))
        return total

    def slope(self, vector: torch.Tensor) -> torch.Tensor:
        """The gradient of `value`, flat."""
        gradient = torch.zeros_like(vector)
        for held in self.modules:
            a, b = held.place_a.of(vector.detach()), held.place_b.of(vector.detach())
            left, right = torch.cat([b - held.b, held.b], dim=1), torch.cat([a, a - held.a])
            weighted = left * held.outputs[:, None]
            held.place_b.of(gradient).copy_(2 * weighted @ (right @ (a * held.inputs).T))
            held.place_a.of(gradient).copy_(2 * (b.T @ weighted) @ right * held.inputs)
        return gradient

    def add(self, vector: torch.Tensor, gradient: torch.Tensor) -> float:
        """The term's value; it pulls in `settle`, and adds nothing to the gradient."""
        return self.weight * self.value(vector) if self.weight else 0.0

    def settle(self, vector: torch.Tensor, rates: torch.Tensor) -> None:
        """Move A, then B, of every module to the minimum of distance and term; nothing where weight or rates are 0."""
        if self.weight == 0 or not bool(rates.any()):
            return
        weight = 2 * min(self.weight, STRONGEST)
        for held in self.modules:
            a, b = held.place_a.of(vector), held.place_b.of(vector)
            pull = weight * held.inputs.to(torch.float64)
            stiff = (1 / held.place_a.of(rates).clamp_min(_SLOWEST)).mean(dim=0)
            a.copy_(_settled(a, stiff, pull, (b.T * held.outputs) @ b, (b.T * held.outputs) @ held.b @ held.a))
            pull = weight * held.outputs.to(torch.float64)
            stiff = (1 / held.place_b.of(rates).clamp_min(_SLOWEST)).mean(dim=1)
            wanted = (a * held.inputs) @ held.a.T @ held.b.T
            b.copy_(_settled(b.T, stiff, pull, (a * held.inputs) @ a.T, wanted).T)

    def digest(self) -> str:
        """Of the weight and of all that is held."""
        found = hashlib.blake2b(f"ewc product {self.weight}".encode(), digest_size=16)
        for held in self.modules:
            for part in (held.a, held.b, held.outputs, held.inputs):
                found.update(part.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


def _settled(
    x: torch.Tensor, stiff: torch.Tensor, pull: torch.Tensor, gram: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """Column by column the x (r, n) with (stiff + pull · gram) x = stiff · x₀ + pull · wanted."""
    values, vectors = torch.linalg.eigh(gram.to(torch.float64))
    x, stiff = x.to(torch.float64), stiff.to(torch.float64)
    right = stiff * (vectors.T @ x) + pull * (vectors.T @ wanted.to(torch.float64))
    settled: torch.Tensor = vectors @ (right / (stiff + pull * values.clamp_min(0)[:, None]))
    return settled.to(torch.float32)


def _square(left: torch.Tensor, right: torch.Tensor, outputs: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """‖ diag(√outputs) left · right diag(√inputs) ‖²."""
    left, right = left.to(torch.float64), right.to(torch.float64)
    return (((left.T * outputs) @ left) * ((right * inputs) @ right.T)).sum()
