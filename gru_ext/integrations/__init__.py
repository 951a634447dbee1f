"""Adapters to other packages, each imported by itself: none of them is needed by gru_ext."""
