"""Fused recurrent cells for NumPy."""
