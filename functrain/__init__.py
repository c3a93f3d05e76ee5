"""Functional training for PyTorch."""
