"""Reading rotary positions from config.json: `rope_theta` with `rope_scaling`, or the newer `rope_parameters`."""

from __future__ import annotations

import math

from quire.engine.models.config import RopeSpec
from quire.engine.models.fields import Fields

KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_OLD_NAMES = {"su": "longrope", "ntk": "dynamic"}


def read_rope(fields: Fields, *, head_dim: int, max_position_embeddings: int, default_theta: float) -> RopeSpec:
    """The rope of a config.json; raises ModelError for an unknown type or a missing parameter (M20)."""
    name = "rope_parameters" if fields.has("rope_parameters") else "rope_scaling"
    scaling = fields.object(name) if fields.has(name) else Fields({}, fields.model, fields.file, "rope_scaling.")
    kind = scaling.string("rope_type", scaling.string("type", "default"))
    kind = _OLD_NAMES.get(kind, kind)
    if kind not in KINDS:
        raise fields.error(
            "unknown rope type",
            f"{name}.rope_type is {kind!r}, supported are {', '.join(KINDS)}",
            "use a model with a supported rope type",
        )
    theta = scaling.number("rope_theta", fields.number("rope_theta", default_theta))
    partial = scaling.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    rotary_dim = int(head_dim * partial)
    if rotary_dim < 2 or rotary_dim % 2 or rotary_dim > head_dim:
        raise fields.error(
            "bad field",
            f"head_dim {head_dim} and partial_rotary_factor {partial:g} rotate {rotary_dim} features, "
            f"expected an even number from 2 to {head_dim}",
        )
    plain = RopeSpec("default", theta, rotary_dim, max_position_embeddings)
    if kind == "default":
        return plain
    if kind in ("linear", "dynamic"):
        return RopeSpec(
            "linear" if kind == "linear" else "dynamic",
            theta,
            rotary_dim,
            max_position_embeddings,
            factor=scaling.number("factor"),
        )
    original = scaling.integer(
        "original_max_position_embeddings",
        fields.integer("original_max_position_embeddings", max_position_embeddings),
    )
    if kind == "llama3":
        return _read_llama3(scaling, plain, original)
    return _read_longrope(scaling, plain, original) if kind == "longrope" else _read_yarn(scaling, plain, original)


def _read_llama3(scaling: Fields, plain: RopeSpec, original: int) -> RopeSpec:
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if high <= low:
        raise scaling.wrong("high_freq_factor", f"more than low_freq_factor, {low:g}")
    return RopeSpec(
        "llama3",
        plain.theta,
        plain.rotary_dim,
        plain.max_position_embeddings,
        factor=scaling.number("factor"),
        original_max_position_embeddings=original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _read_yarn(scaling: Fields, plain: RopeSpec, original: int) -> RopeSpec:
    """Peng et al., 2023; the attention factor as in section 3.4, or from DeepSeek's two mscale fields."""
    factor = scaling.number("factor", plain.max_position_embeddings / original)

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    inferred = mscale(1.0)
    if scaling.has("mscale") and scaling.has("mscale_all_dim"):
        inferred = mscale(scaling.number("mscale")) / mscale(scaling.number("mscale_all_dim"))
    return RopeSpec(
        "yarn",
        plain.theta,
        plain.rotary_dim,
        plain.max_position_embeddings,
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=scaling.number("attention_factor", inferred),
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        truncate=scaling.boolean("truncate", True),
    )


def _read_longrope(scaling: Fields, plain: RopeSpec, original: int) -> RopeSpec:
    """Ding et al., 2024."""
    factor = scaling.number("factor", plain.max_position_embeddings / original)
    inferred = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return RopeSpec(
        "longrope",
        plain.theta,
        plain.rotary_dim,
        plain.max_position_embeddings,
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=scaling.number("attention_factor", inferred),
        short_factor=scaling.numbers("short_factor", plain.rotary_dim // 2),
        long_factor=scaling.numbers("long_factor", plain.rotary_dim // 2),
    )
