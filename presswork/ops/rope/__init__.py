"""Rotary position embedding: frequencies, per-row tables and the rotation."""

from presswork.ops.rope.reference import apply_rope, rope_frequencies, rope_table

__all__ = ["apply_rope", "rope_frequencies", "rope_table"]
